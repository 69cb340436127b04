//! How soon `wait` returns.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::world::World;

const RUNS: u16 = 21;

/// After host-switch was asked for the forward, which it grants at once.
const MEDIAN_MAX: Duration = Duration::from_millis(20);

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn wait_returns_as_soon_as_the_forward_is_there() {
    let world = World::new(&[]);
    let mut delays: Vec<Duration> = Vec::new();
    for run in 0..RUNS {
        let (name, port) = (format!("web{run}"), 8100 + run);
        let mut child = world.agent.ask(&["wait", "--port", &port.to_string()]).stdout(Stdio::null()).spawn().unwrap();
        // It is waiting already, so what is measured is not the start of a process.
        world.wait_clients(2);
        let ended = std::thread::spawn(move || (child.wait().unwrap().code(), Instant::now()));
        world.engine.web(&name, &["-p", &format!("127.0.0.1:{port}:80")]);
        let (code, at) = ended.join().unwrap();
        assert_eq!(code, Some(0), "{}", world.agent.log());
        let asked = eventually("the request", || {
            let local = format!("127.0.0.1:{port}");
            let requests = world.switch.requests();
            requests
                .iter()
                .find(|r| r.path.ends_with("/expose") && r.body.contains(&local))
                .map(|r| r.at)
                .ok_or(requests)
        });
        delays.push(at.duration_since(asked));
        world.engine.remove(&name);
    }
    delays.sort();
    let median = delays[delays.len() / 2];
    println!("wait returns after: median {median:?}, at most {:?}", delays.last().unwrap());
    assert!(median <= MEDIAN_MAX, "{delays:?}");
}
