//! Thousands of ports, and long lists.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::support::engine_stub::{id, ports};
use crate::support::host_switch::Fault;
use crate::support::{eventually, status_kb};
use crate::world::World;

#[test]
fn s26_five_thousand_ports_take_seconds_and_few_connections() {
    let world = World::new();
    let agent = world.agent(&["-adminInstall=true"]);
    world.server.set_fault(Fault::Delay(Duration::from_millis(5)));
    let numbers: Vec<String> = (10_000..15_000).map(|port: u32| port.to_string()).collect();
    let keys: Vec<String> = numbers.iter().map(|port| format!("{port}/tcp")).collect();
    let published: Vec<(&str, &str, &str)> =
        keys.iter().zip(&numbers).map(|(key, port)| (key.as_str(), "0.0.0.0", port.as_str())).collect();
    let begun = Instant::now();
    world.engine.start(&id(1), ports(&published));
    eventually("all exposed", || match world.server.forwards().len() {
        5_000 => Ok(()),
        n => Err(n),
    });
    let exposed = begun.elapsed();
    assert_eq!(world.count("/expose"), 5_000);
    assert!(world.server.connections_max() <= 8, "{}", world.server.connections_max());
    let begun = Instant::now();
    let log = agent.log();
    assert_eq!(agent.stop(), Some(0));
    let withdrawn = begun.elapsed();
    println!("5,000 ports: exposed {exposed:?}, withdrawn {withdrawn:?}");
    assert_eq!(world.server.forwards(), [""; 0]);
    assert!(exposed < Duration::from_secs(15) && withdrawn < Duration::from_secs(6), "{exposed:?} {withdrawn:?}");
    assert!(log.lines().count() < 300, "{}", log.lines().count());
}

#[test]
fn a_list_of_100_000_is_read() {
    let world = World::new();
    let ours = world.tap.clone();
    let mut list = String::from("[");
    for n in 0..100_000_u32 {
        let (host, port) = (n / 50_000 + 1, n % 50_000 + 1);
        let entry = format!(r#"{{"local":"10.0.0.{host}:{port}","remote":"1.2.3.4:5","protocol":"tcp","x":[{{}}]}},"#);
        let _ = write!(list, "{entry}{}", if n == 0 { &*entry } else { "" });
    }
    let _ = write!(list, r#"{{"local":"127.0.0.1:8601","remote":"{ours}:8601","protocol":"tcp"}}]"#);
    world.server.set_fault(Fault::Raw(list.into_bytes()));
    world.write_state(&["127.0.0.1:8601"]);
    world.engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8601"), ("81/tcp", "0.0.0.0", "8602")]));
    let agent = world.agent(&[]);
    world.wait(&["127.0.0.1:8602"], &[]);
    agent.wait_log("forwarding binding=127.0.0.1:8601/tcp");
    assert!(status_kb(agent.pid(), "VmHWM") < 64 << 10, "{} KiB", status_kb(agent.pid(), "VmHWM"));
}
