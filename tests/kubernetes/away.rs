//! Servers that are away without a word: everything that is waited for has an end. These tests wait for it, side by side.

use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::kube_server::{Cut, Fault, On, Request};
use crate::support::within;
use crate::world::{LONG_GRACE, World, count, node_port};

/// Nothing of HTTP or TLS is given more than ten seconds.
const PATIENCE: Duration = Duration::from_secs(25);

fn wait_ready(agent: &Agent, limit: Duration) {
    within(limit, "the list", || Some(()).filter(|()| agent.log().contains("source ready")).ok_or_else(|| agent.log()));
}

fn starts_though_the_first_stalls(fault: Fault) {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    world.server.fault(On::Any, fault, Some(1));
    world.config().write(&world.kubeconfig());
    let agent = world.agent(&[]);
    wait_ready(&agent, PATIENCE);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    let log = agent.log();
    assert_eq!((count(&log, "source lost"), count(&log, " WARN ")), (1, 1), "{log}");
    assert!(log.contains(&world.server.url()), "{log}");
}

#[test]
#[ignore = "needs openssl"]
fn s09_a_handshake_that_stalls() {
    starts_though_the_first_stalls(Fault::HandshakeStall);
}

#[test]
#[ignore = "needs openssl"]
fn s09_a_connection_that_is_never_answered() {
    starts_though_the_first_stalls(Fault::Mute);
}

#[test]
#[ignore = "needs openssl"]
fn s09_a_list_that_is_cut_after_its_head() {
    starts_though_the_first_stalls(Fault::DropAfterHead);
}

/// Half a list is no list: what it lacks is not gone.
#[test]
#[ignore = "needs openssl"]
fn s02_a_list_that_stalls_is_not_taken_for_an_empty_one() {
    let services: Vec<_> = (0..50).map(|n| node_port(&format!("s{n}"), 30100 + n)).collect();
    let (world, agent) = World::running(&services, &LONG_GRACE);
    let held: Vec<String> = (0..50).map(|n| format!("0.0.0.0:{}/tcp", 30100 + n)).collect();
    world.receiver.wait_held(&held.iter().map(String::as_str).collect::<Vec<_>>());
    world.server.fault(On::List, Fault::Stall, Some(1));
    world.server.fault(On::List, Fault::DropAfterHead, Some(1));
    world.server.cut_watches(Cut::BetweenLines);
    within(PATIENCE, "a third list after the two", || match world.server.watches_opened() {
        opened if opened >= 2 => Ok(()),
        _ => Err(agent.log()),
    });
    world.server.apply(node_port("last", 30099));
    agent.wait_log("0.0.0.0:30099/tcp");
    assert_eq!(world.receiver.all().len(), 51, "nothing was withdrawn");
    assert_eq!(world.server.requests().iter().filter(|request| request.is_list()).count(), 4);
}

/// A watch that is accepted, and of which not even the head comes.
#[test]
#[ignore = "needs openssl"]
fn s02_a_watch_that_is_never_answered() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.fault(On::Watch, Fault::Mute, Some(1));
    world.server.cut_watches(Cut::InOrder);
    within(PATIENCE, "another watch", || {
        Some(()).filter(|()| world.server.watches_opened() >= 2).ok_or_else(|| agent.log())
    });
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
}

/// An event of which the second half does not come.
#[test]
#[ignore = "needs openssl"]
fn s02_an_event_that_stalls() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.raw_event(b"{\"type\":\"DELETED\",\"object\":{\"kind\":\"Service\",\"metadata\":{");
    within(PATIENCE, "another watch", || {
        Some(()).filter(|()| world.server.watches_opened() >= 2).ok_or_else(|| agent.log())
    });
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
}

/// The connection stays open, and nothing comes any more: neither events nor the end that was asked for. Next to it, a
/// watch that ends when it should. Takes 70 s.
#[test]
#[ignore = "needs openssl"]
fn s02_a_watch_that_stalls_is_noticed_and_one_that_ends_is_not() {
    let (quiet, quiet_agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    let (world, agent) = World::running(&[node_port("web", 30080), node_port("goes", 30081)], &LONG_GRACE);
    world.receiver.wait_held(&["0.0.0.0:30080/tcp", "0.0.0.0:30081/tcp"]);
    let opened = Instant::now();
    world.server.stall_watches(true);
    world.server.apply(node_port("new", 30082));
    world.server.delete("default", "goes");
    within(Duration::from_secs(80), "the new list", || match world.receiver.held() {
        held if held == ["0.0.0.0:30080/tcp", "0.0.0.0:30082/tcp"] => Ok(()),
        held => Err((held, agent.log())),
    });
    let noticed = opened.elapsed();
    assert!(noticed < Duration::from_secs(75), "after {noticed:?}");
    assert_eq!(world.receiver.all().len(), 4, "{:?}", world.documents());
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());

    quiet.wait_marker(&quiet_agent, &["+ 0.0.0.0:30080/tcp"]);
    let requests = quiet.server.requests();
    let (lists, watches): (Vec<&Request>, Vec<&Request>) = requests.iter().partition(|request| request.is_list());
    assert_eq!((lists.len(), watches.len()), (1, 2), "{requests:?}");
    let lasted = watches[1].at - watches[0].at;
    assert!((59..63).contains(&lasted.as_secs()), "{lasted:?}");
    assert!(!quiet_agent.log().contains(" WARN "), "{}", quiet_agent.log());
}
