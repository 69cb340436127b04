//! The server goes away and comes back: soon, late, or as another cluster.

use std::time::{Duration, Instant};

use crate::support::certs::Pki;
use crate::support::eventually;
use crate::support::kube_server::Cut;
use crate::support::kubeconfig::KubeConfig;
use crate::world::{LONG_GRACE, World, count, node_port};

#[test]
#[ignore = "needs openssl"]
fn s02_a_restart_keeps_then_compares() {
    let services = [node_port("stays", 30001), node_port("goes", 30002), node_port("changes", 30003)];
    let (world, mut agent) = World::running(&services, &LONG_GRACE);
    let mut expect = vec!["+ 0.0.0.0:30003/tcp", "+ 0.0.0.0:30002/tcp", "+ 0.0.0.0:30001/tcp"];
    world.wait_documents(&agent, &expect);
    let pid = agent.pid();
    world.server.restart();
    world.server.wait_watches(1);
    world.wait_marker_after(&agent, &mut expect);

    world.server.stop();
    world.server.apply(node_port("changes", 30013));
    world.server.delete("default", "goes");
    world.server.apply(node_port("new", 30004));
    agent.wait_log("source lost");
    assert_eq!(world.receiver.held().len(), 3, "kept while nobody answers");
    world.server.resume();
    world.receiver.wait_held(&["0.0.0.0:30001/tcp", "0.0.0.0:30004/tcp", "0.0.0.0:30013/tcp"]);
    world.server.wait_watches(1);
    let documents = world.documents();
    let (before, after) = documents.split_at(expect.len());
    assert_eq!(before, expect);
    let mut after = after.to_vec();
    after.sort();
    assert_eq!(after, ["+ 0.0.0.0:30004/tcp", "+ 0.0.0.0:30013/tcp", "- 0.0.0.0:30002/tcp", "- 0.0.0.0:30003/tcp"]);
    assert!(agent.process.is_running() && agent.pid() == pid);
    let log = agent.log();
    assert!(count(&log, "source lost") <= 2 && count(&log, " WARN ") == count(&log, "source lost"), "{log}");
}

#[test]
#[ignore = "needs openssl"]
fn s02_a_server_that_stays_away_is_withdrawn_after_the_grace_time() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &["--engine-grace", "1s"]);
    let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
    world.wait_documents(&agent, &expect);
    let stopped = Instant::now();
    world.server.stop();
    expect.push("- 0.0.0.0:30080/tcp");
    world.wait_documents(&agent, &expect);
    let (withdrawn, grace) = (world.receiver.all()[1].at - stopped, Duration::from_secs(1));
    assert!(withdrawn >= grace, "after {withdrawn:?}");
    world.server.resume();
    expect.push("+ 0.0.0.0:30080/tcp");
    world.wait_documents(&agent, &expect);
    assert_eq!(count(&agent.log(), "source lost"), 1, "{}", agent.log());
}

/// All Services have gone with the old cluster, whose authority nobody has the key of any more.
#[test]
#[ignore = "needs openssl"]
fn s02_a_cluster_that_is_reset() {
    let (world, agent) = World::running(&[node_port("old", 30001), node_port("stays", 30002)], &LONG_GRACE);
    world.receiver.wait_held(&["0.0.0.0:30001/tcp", "0.0.0.0:30002/tcp"]);
    let other = Pki::new();
    world.server.stop();
    world.server.delete("default", "old");
    world.server.restart_with(&other);
    agent.wait_log("certificate-authority");
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("certificate-authority")).unwrap();
    assert!(line.contains("source lost") && line.contains(&world.server.url()), "{log}");
    assert!(line.contains("another cluster") && line.contains("reset"), "{log}");
    assert_eq!(world.receiver.held().len(), 2, "nothing is known of the new cluster yet");
    KubeConfig::new(&other, &world.server.url()).write(&world.kubeconfig());
    world.receiver.wait_held(&["0.0.0.0:30002/tcp"]);
    assert_eq!(world.documents()[2..], ["- 0.0.0.0:30001/tcp"]);
    assert_eq!(count(&agent.log(), "certificate-authority"), 1, "{}", agent.log());
}

/// While everything works: what the new one says counts within seconds.
#[test]
#[ignore = "needs openssl"]
fn s02_another_cluster_while_the_old_one_is_there() {
    let (world, agent) = World::running(&[node_port("old", 30001), node_port("both", 30002)], &LONG_GRACE);
    world.receiver.wait_held(&["0.0.0.0:30001/tcp", "0.0.0.0:30002/tcp"]);
    let other = World::new();
    other.server.apply(node_port("new", 30003));
    other.server.apply(node_port("both", 30002));
    other.config().write(&world.kubeconfig());
    world.receiver.wait_held(&["0.0.0.0:30002/tcp", "0.0.0.0:30003/tcp"]);
    world.server.wait_watches(0);
    other.server.wait_watches(1);
    let documents = world.documents();
    assert_eq!(documents.iter().filter(|document| document.contains("30002")).count(), 1, "{documents:?}");
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
}

/// Where something happens all the time, no watch is ever silent: the end of one is when the new kubeconfig is seen.
#[test]
#[ignore = "needs openssl"]
fn s02_another_cluster_while_the_old_one_is_busy() {
    let (world, agent) = World::running(&[node_port("old", 30001)], &LONG_GRACE);
    world.receiver.wait_held(&["0.0.0.0:30001/tcp"]);
    let other = World::new();
    other.server.apply(node_port("new", 30003));
    other.config().write(&world.kubeconfig());
    world.server.cut_watches(Cut::InOrder);
    eventually("the other cluster", || {
        world.server.apply(node_port("old", 30001));
        Some(()).filter(|()| other.server.watches_opened() > 0).ok_or_else(|| agent.log())
    });
    world.receiver.wait_held(&["0.0.0.0:30003/tcp"]);
}

/// A kubeconfig that goes away has no say: whoever replaces it without a rename takes it away for a moment.
#[test]
#[ignore = "needs openssl"]
fn s02_a_kubeconfig_that_is_gone_changes_nothing() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
    world.wait_documents(&agent, &expect);
    std::fs::remove_file(world.kubeconfig()).unwrap();
    world.server.restart();
    world.server.wait_watches(1);
    world.wait_marker_after(&agent, &mut expect);
    // Only a new session asks for it.
    world.server.stop();
    agent.wait_log("looked for again until it is there");
    world.server.resume();
    world.config().write(&world.kubeconfig());
    world.server.wait_watches(1);
    world.wait_marker_after(&agent, &mut expect);
}
