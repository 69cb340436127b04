//! Servers that stall, lie, cut and flood. Each is well again in the end, and so is what it holds.

use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::engine_stub::{id, ports};
use crate::support::host_switch::Fault;
use crate::support::{eventually, within};
use crate::world::{World, lines};

/// One container before the trouble, one that comes and one that goes meanwhile.
fn survives(fault: Fault, said: &str) -> (World, Agent) {
    let world = World::new();
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8401")]));
    world.engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8402"), ("81/tcp", "0.0.0.0", "8403")]));
    world.wait(&["127.0.0.1:8401", "127.0.0.1:8402", "127.0.0.1:8403"], &[]);
    world.server.set_fault(fault.clone());
    world.engine.start(&id(3), ports(&[("80/tcp", "0.0.0.0", "8404"), ("81/tcp", "0.0.0.0", "8405")]));
    world.engine.end(&id(2));
    agent.wait_log(said);
    world.server.set_fault(Fault::None);
    world.wait(&["127.0.0.1:8401", "127.0.0.1:8404", "127.0.0.1:8405"], &[]);
    assert!(agent.log().lines().count() < 60, "{fault:?}: {}", agent.log());
    (world, agent)
}

#[test]
fn stalls() {
    let (world, agent) = survives(Fault::Stall, "does not answer in time");
    // What was cut off may have been carried out late.
    world.wait(&["127.0.0.1:8401", "127.0.0.1:8404", "127.0.0.1:8405"], &[]);
    // What the server still has in hand when the agent has ended, no agent can undo.
    eventually("an end of every request", || {
        let open: Vec<String> =
            world.server.requests().iter().filter(|r| r.status == 0).map(|r| r.body.clone()).collect();
        if open.is_empty() { Ok(()) } else { Err(open) }
    });
    assert_eq!(agent.stop(), Some(0));
    world.wait(&[], &[]);
}

#[test]
fn answers_404() {
    survives(Fault::Status(404, "404 page not found\n".into()), "is no expose API: answers 404");
}

#[test]
fn answers_500() {
    survives(Fault::Status(500, "x\u{1b}[2J".repeat(1000)), "is no expose API: answers");
}

#[test]
fn answers_a_page() {
    survives(Fault::Html, "is no expose API");
}

#[test]
fn redirects() {
    survives(Fault::Status(307, String::new()), "is no expose API: answers 307");
}

#[test]
fn floods() {
    survives(Fault::Endless, "answers");
}

#[test]
fn resets() {
    survives(Fault::Reset, "http://127.0.0.1");
}

#[test]
fn cuts_answers() {
    survives(Fault::CutBody, "http://127.0.0.1");
}

#[test]
fn s29_a_server_that_stalls_does_not_delay_other_sinks() {
    let world = World::new();
    world.server.set_fault(Fault::Stall);
    let agent = world.agent(&["--sink", "stdout:"]);
    for n in 1..20_u32 {
        let begun = Instant::now();
        let port = (8420 + n).to_string();
        world.engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &port)]));
        let told = || if agent.out().contains(&format!("\"hostPort\":{port}")) { Ok(()) } else { Err(agent.out()) };
        within(Duration::from_secs(2), "the other sink", told);
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    world.server.set_fault(Fault::None);
    eventually("everything", || match world.server.forwards().len() {
        19 => Ok(()),
        n => Err((n, agent.log())),
    });
}

#[test]
fn ends_in_time_beside_a_server_that_stalls() {
    let world = World::new();
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8450")]));
    world.wait(&["127.0.0.1:8450"], &[]);
    world.server.set_fault(Fault::Stall);
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn a_failing_server_is_no_flood_of_lines() {
    let world = World::new();
    world.server.set_fault(Fault::Reset);
    for n in 1..101 {
        world.engine.add(&id(n), ports(&[("80/tcp", "0.0.0.0", &(8500 + n).to_string())]));
    }
    let agent = world.agent(&[]);
    eventually("many tries", || match world.count("/all") {
        n if n >= 8 => Ok(()),
        n => Err(n),
    });
    assert!(agent.log().lines().count() < 30, "{}", agent.log());
    assert!(world.server.requests().len() < 60, "{}", world.server.requests().len());
    assert_eq!(lines(&agent, "sink unreachable"), 1, "{}", agent.log());
}
