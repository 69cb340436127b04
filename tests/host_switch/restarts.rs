//! The agent ends, dies and comes back; the server does.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::support::engine_stub::{id, ports};
use crate::support::eventually;
use crate::support::host_switch::{HostSwitch, bind};
use crate::world::{World, lines};

#[test]
fn s24_what_is_there_is_adopted_and_what_is_not_ours_left_alone() {
    let world = World::new();
    let strange = "tcp 127.0.0.1:2222 192.168.127.3:22";
    world.server.insert("tcp", "127.0.0.1:2222", "192.168.127.3:22");
    for local in ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"] {
        world.insert_ours(local);
    }
    // 8082 and 8083 lead to us, but no run of the agent has made them; 9000 is gone since.
    world.write_state(&["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9000"]);
    world.engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080"), ("83/tcp", "0.0.0.0", "8083")]));
    let agent = world.agent(&[]);
    agent.wait_log("forwarding binding=127.0.0.1:8080/tcp");
    agent.wait_log("forwarding binding=127.0.0.1:8083/tcp");
    let made = world.tcp("127.0.0.1:8082");
    world.wait(&["127.0.0.1:8080", "127.0.0.1:8083"], &[strange, &made]);
    assert_eq!(world.count("/expose"), 0, "{:?}", world.server.requests());
    assert_eq!(world.count("/unexpose"), 1, "{:?}", world.server.requests());
    assert!(!agent.log().contains("already running"), "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    world.server.wait_forwards(&[strange, &made]);
}

#[test]
fn s24_kill_and_restart_with_containers_gone_ends_with_exactly_what_is_wanted() {
    let world = World::new();
    let mut agent = world.agent(&[]);
    for n in 1..6 {
        world.engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &(8200 + n).to_string())]));
    }
    let all = ["127.0.0.1:8201", "127.0.0.1:8202", "127.0.0.1:8203", "127.0.0.1:8204", "127.0.0.1:8205"];
    world.wait(&all, &[]);
    agent.process.signal(Signal::SIGKILL);
    agent.process.wait();
    world.engine.hang_up();
    world.engine.forget(&id(2));
    world.engine.forget(&id(4));
    world.engine.add(&id(6), ports(&[("80/tcp", "0.0.0.0", "8206")]));
    world.server.forget_requests();
    let agent = world.agent(&[]);
    world.wait(&["127.0.0.1:8201", "127.0.0.1:8203", "127.0.0.1:8205", "127.0.0.1:8206"], &[]);
    assert_eq!((world.count("/expose"), world.count("/unexpose")), (1, 2), "{:?}", world.server.requests());
    assert_eq!(agent.stop(), Some(0));
    world.wait(&[], &[]);
}

#[test]
fn s24_what_a_killed_agent_asked_for_is_removed_also_where_it_was_carried_out_late() {
    let world = World::new();
    // Written down and sent; then the agent was killed, and the container ended.
    world.write_state(&["127.0.0.1:8207"]);
    let agent = world.agent(&[]);
    eventually("the list is read", || if world.count("/all") > 0 { Ok(()) } else { Err(agent.log()) });
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8208")]));
    world.wait(&["127.0.0.1:8208"], &[]);
    world.insert_ours("127.0.0.1:8207");
    world.wait(&["127.0.0.1:8208"], &[]);
    assert_eq!(lines(&agent, "does not hold everything"), 0, "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    world.wait(&[], &[]);
}

#[test]
fn s08_a_server_that_comes_up_later_is_told_everything() {
    let addr: SocketAddr = bind("127.0.0.1:0".parse().unwrap()).local_addr().unwrap();
    let world = World::new();
    world.engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8210")]));
    let agent = world.agent_with(&format!("http://{addr}"), &[], &[]);
    agent.wait_log("sink unreachable");
    let late = HostSwitch::start_at(addr);
    late.wait_forwards(&[&world.tcp("127.0.0.1:8210")]);
    agent.wait_log("sink reachable");
    assert_eq!(agent.stop(), Some(0));
    late.wait_forwards(&[]);
}

#[test]
fn a_server_that_has_forgotten_everything_is_told_again() {
    let world = World::new();
    let agent = world.agent(&[]);
    let published = ["8211", "8212"].map(|port| ("80/tcp", "0.0.0.0", port));
    world.engine.start(&id(1), ports(&published));
    world.wait(&["127.0.0.1:8211", "127.0.0.1:8212"], &[]);
    world.server.forget_all();
    world.wait(&["127.0.0.1:8211", "127.0.0.1:8212"], &[]);
    agent.wait_log("host-switch does not hold everything any more");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn s08_a_server_that_restarts_is_told_everything_again() {
    let mut world = World::new();
    let addr = world.server.addr();
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8213")]));
    world.wait(&["127.0.0.1:8213"], &[]);
    // The old one has to free the port first.
    world.server = HostSwitch::start();
    world.server = HostSwitch::start_at(addr);
    world.wait(&["127.0.0.1:8213"], &[]);
    eventually("a container that ends meanwhile", || {
        world.engine.end(&id(1));
        if world.server.forwards().is_empty() { Ok(()) } else { Err(lines(&agent, "withdrawn")) }
    });
}
