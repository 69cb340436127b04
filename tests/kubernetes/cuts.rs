//! Watches that end, in every way that they can: nothing is sent because of it, nothing is missed.

use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::eventually;
use crate::support::kube_server::{Cut, Fault, On, Port, Request, Service};
use crate::world::{World, count, node_port};

/// Three Services, so that what flaps would show.
fn running() -> (World, Agent, Vec<&'static str>) {
    let services =
        [node_port("a", 30001), node_port("b", 30002), Service::node_port("default", "c", &[Port::udp(53, 30053)])];
    let (world, agent) = World::running(&services, &[]);
    let held = ["0.0.0.0:30001/tcp", "0.0.0.0:30002/tcp", "0.0.0.0:30053/udp"];
    world.receiver.wait_held(&held);
    (world, agent, vec!["+ 0.0.0.0:30001/tcp", "+ 0.0.0.0:30002/tcp", "+ 0.0.0.0:30053/udp"])
}

fn wait_opened(world: &World, agent: &Agent, expect: u64) {
    eventually(&format!("watch {expect}"), || match world.server.watches_opened() {
        opened if opened >= expect => Ok(()),
        opened => Err((opened, agent.log())),
    });
}

fn lists(world: &World) -> usize {
    world.server.requests().iter().filter(|request| request.is_list()).count()
}

fn watches(world: &World) -> Vec<Request> {
    world.server.requests().into_iter().filter(Request::is_watch).collect()
}

fn a_cut_is_not_noticed(how: Cut) {
    let (world, agent, mut expect) = running();
    for round in 1..=4 {
        world.server.cut_watches(how);
        wait_opened(&world, &agent, round + 1);
        world.wait_marker_after(&agent, &mut expect);
    }
    assert_eq!(lists(&world), if how == Cut::InOrder { 1 } else { 5 }, "{:?}", world.server.requests());
    let log = agent.log();
    assert!(!log.contains(" WARN "), "{log}");
    assert_eq!(count(&log, "source ready"), 1, "{log}");
    let mut agent = agent;
    assert!(agent.process.is_running());
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_a_watch_cut_in_the_middle_of_a_line() {
    a_cut_is_not_noticed(Cut::MidLine);
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_a_watch_cut_between_lines() {
    a_cut_is_not_noticed(Cut::BetweenLines);
}

/// As after `timeoutSeconds`: no list is needed then.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_a_watch_that_ends_in_order() {
    a_cut_is_not_noticed(Cut::InOrder);
}

/// It goes on at the version of the last event or bookmark, and on the same connection.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_a_watch_goes_on_where_it_was() {
    let (world, agent, _) = running();
    let listed = world.server.version().to_string();
    world.server.advance(7);
    world.server.bookmark();
    let bookmark = world.server.version().to_string();
    // Sent after the bookmark, on the same watch.
    let event = world.server.apply(node_port("d", 30004)).version.to_string();
    agent.wait_log("0.0.0.0:30004/tcp");
    world.server.cut_watches(Cut::InOrder);
    wait_opened(&world, &agent, 2);
    world.server.advance(7);
    world.server.bookmark();
    let second = world.server.version().to_string();
    world.server.cut_watches(Cut::InOrder);
    wait_opened(&world, &agent, 3);
    let versions: Vec<String> =
        watches(&world).iter().map(|watch| watch.parameter("resourceVersion").to_owned()).collect();
    assert_eq!(versions, [listed, event, second], "never {bookmark} again: the event was later");
    assert_eq!(lists(&world), 1);
    for watch in watches(&world) {
        let parameter = |name| watch.parameter(name);
        assert_eq!((parameter("allowWatchBookmarks"), parameter("timeoutSeconds")), ("true", "60"), "{watch:?}");
    }
}

/// What changed while the watch was down comes from the list, which is compared.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_what_changes_meanwhile_arrives() {
    for how in [Cut::MidLine, Cut::BetweenLines, Cut::InOrder] {
        let (world, agent, _) = running();
        world.server.stall_watches(true);
        world.server.apply(node_port("b", 30012));
        world.server.delete("default", "a");
        world.server.apply(node_port("d", 30004));
        world.server.cut_watches(how);
        wait_opened(&world, &agent, 2);
        world.server.stall_watches(false);
        world.receiver.wait_held(&["0.0.0.0:30012/tcp", "0.0.0.0:30004/tcp", "0.0.0.0:30053/udp"]);
        let documents = world.documents();
        assert_eq!(documents.len(), 3 + 4, "{how:?}: {documents:?}");
        assert!(documents[3..].iter().all(|document| !document.contains("30053")), "{how:?}: {documents:?}");
    }
}

/// The version has become too old, which the server says in one way or another; each time something has changed.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_a_version_that_has_expired() {
    for way in ["status", "event", "now"] {
        let (world, agent, _) = running();
        world.server.stall_watches(true);
        world.server.apply(node_port("b", 30012));
        world.server.delete("default", "a");
        match way {
            "status" => {
                world.server.fault(On::Watch, Fault::Status { code: 410, retry_after: None }, Some(1));
                world.server.cut_watches(Cut::InOrder);
            }
            "event" => {
                world.server.compact();
                world.server.cut_watches(Cut::InOrder);
            }
            _ => world.server.expire_watches(),
        }
        world.receiver.wait_held(&["0.0.0.0:30012/tcp", "0.0.0.0:30053/udp"]);
        world.server.wait_watches(1);
        world.server.stall_watches(false);
        world.server.apply(node_port("d", 30004));
        world.receiver.wait_held(&["0.0.0.0:30012/tcp", "0.0.0.0:30004/tcp", "0.0.0.0:30053/udp"]);
        let documents = world.documents();
        assert_eq!(documents.len(), 3 + 4, "{way}: {documents:?}");
        assert_eq!(lists(&world), 2, "{way}: {:?}", world.server.requests());
        assert!(!agent.log().contains(" WARN "), "{way}: {}", agent.log());
    }
}

/// A server that ends watches at once is asked less and less often.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s02_watches_that_end_at_once_are_no_busy_loop() {
    for fault in [Fault::DropAfterHead, Fault::Status { code: 410, retry_after: None }] {
        let (world, agent, mut expect) = running();
        world.server.fault(On::Watch, fault, None);
        world.server.cut_watches(Cut::InOrder);
        let seen = world.server.wait_requests(7, Request::is_watch);
        // 100, 200, 400, 800 and 1,600 ms.
        let pauses: Vec<Duration> = seen.windows(2).map(|pair| pair[1].at - pair[0].at).skip(1).collect();
        for (pause, least) in pauses.iter().zip([100, 200, 400, 800, 1600]) {
            assert!(*pause >= Duration::from_millis(least), "{fault:?}: {pauses:?}");
        }
        world.server.clear_faults();
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
        assert!(!agent.log().contains(" WARN "), "{}", agent.log());
    }
}
