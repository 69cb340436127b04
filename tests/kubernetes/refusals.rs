//! A server that answers, but not with what it was asked for: it is left alone for as long as it wants, and what it
//! published stays.

use std::fs;
use std::time::Duration;

use crate::support::kube_server::{Client, Cut, Fault, On, Request};
use crate::support::kubeconfig::KubeConfig;
use crate::world::{LONG_GRACE, World, count, node_port, side_by_side};

/// Shorter than any of these tests: what a server that answers published does not depend on it.
const SHORT_GRACE: [&str; 2] = ["--engine-grace", "100ms"];

fn pauses(requests: &[Request]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

#[test]
#[ignore = "needs openssl"]
fn a_wrong_token_is_refused_until_the_kubeconfig_has_a_right_one() {
    let world = World::new();
    world.server.add_token("the-right-one");
    world.server.apply(node_port("web", 30080));
    world.config_with_token("the-wrong-one").write(&world.kubeconfig());
    let agent = world.agent(&["-debug"]);
    agent.wait_log("refusals=4");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    assert!(log.contains(&format!("{} answers 401: Unauthorized", world.server.url())), "{log}");
    assert!(log.contains("credentials in the kubeconfig, which is read again"), "{log}");
    let first = &world.server.requests()[0];
    assert_eq!(first.header("authorization"), Some("Bearer the-wrong-one"));
    world.config_with_token("the-right-one").write(&world.kubeconfig());
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
    let log = agent.log();
    assert!(!log.contains("the-right-one") && !log.contains("the-wrong-one"), "a token in the log: {log}");
}

/// As kubelet does it for service accounts, every hour: the kubeconfig stays as it is.
#[test]
#[ignore = "needs openssl"]
fn a_token_file_that_is_replaced_is_read_again() {
    let world = World::new();
    let path = world.dir.join("token");
    fs::write(&path, "first\n").unwrap();
    world.server.add_token("first");
    let config =
        KubeConfig { token_file: Some("token".into()), ..KubeConfig::anonymous(&world.pki, &world.server.url()) };
    config.write(&world.kubeconfig());
    let agent = world.agent(&[]);
    world.server.wait_watches(1);
    let mut expect = Vec::new();
    world.wait_marker_after(&agent, &mut expect);
    fs::write(&path, "second\n").unwrap();
    world.server.forget_tokens();
    world.server.add_token("second");
    for how in [Cut::InOrder, Cut::BetweenLines] {
        world.server.cut_watches(how);
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
    }
    let bearer = |request: &Request| request.header("authorization").unwrap().to_owned();
    let seen: Vec<String> = world.server.requests().iter().map(bearer).collect();
    let (first, second) = ("Bearer first", "Bearer second");
    assert_eq!(seen, [first, first, second, second, second], "list, watch, watch, list, watch");
    assert!(world.server.requests().iter().all(|request| request.client == Client::Token));
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
    // Nothing of it, or half: asked again, with words about the file.
    for (text, cause) in [("", "tokenFile"), ("two words", "tokenFile")] {
        fs::write(&path, text).unwrap();
        world.server.cut_watches(Cut::BetweenLines);
        agent.wait_log(cause);
        fs::write(&path, "second").unwrap();
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
    }
    assert!(!agent.log().contains("two words"), "{}", agent.log());
}

/// All of it with claims that stay, far longer than the grace time.
#[test]
#[ignore = "needs openssl"]
fn refusals_change_nothing_and_are_asked_less_and_less() {
    let status = |code| Fault::Status { code, retry_after: None };
    let cases = [
        (status(401), "answers 401: Unauthorized (wrong or expired credentials"),
        (status(403), "the kubeconfig's user needs the rights to list and watch services"),
        (status(429), "answers 429"),
        (status(500), "answers 500: Internal error occurred: etcdserver"),
        (status(503), "answers 503: apiserver not ready"),
        (Fault::Text { code: 504, retry_after: None }, "answers 504: upstream connect error"),
    ];
    side_by_side(cases, |(fault, words)| {
        let (world, agent) = World::running(&[node_port("web", 30080)], &SHORT_GRACE);
        let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
        world.wait_documents(&agent, &expect);
        world.server.fault(On::Any, fault, None);
        world.server.cut_watches(Cut::BetweenLines);
        agent.wait_log(words);
        // After the list and the watch that were answered.
        let pauses = pauses(&world.server.wait_requests(2 + 5, |_| true)[2..]);
        for (pause, least) in pauses.iter().zip([100, 200, 400, 800]) {
            assert!(*pause >= Duration::from_millis(least), "{fault:?}: {pauses:?}");
        }
        assert_eq!(count(&agent.log(), " WARN "), 1, "{}", agent.log());
        world.server.clear_faults();
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
        assert_eq!(count(&agent.log(), "source ready"), 2, "{}", agent.log());
    });
}

/// Not before its time: neither of the list nor of the watch, whatever the body of the answer is.
#[test]
#[ignore = "needs openssl"]
fn retry_after_is_heeded() {
    let wait = Duration::from_secs(2);
    let retry_after = Some(wait.as_secs());
    let faults = [
        Fault::Status { code: 429, retry_after },
        Fault::Text { code: 429, retry_after },
        Fault::Status { code: 503, retry_after },
    ];
    side_by_side(faults.into_iter().flat_map(|fault| [(fault, On::List), (fault, On::Watch)]), |(fault, on)| {
        let (world, agent) = World::running(&[node_port("web", 30080)], &SHORT_GRACE);
        let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
        world.wait_documents(&agent, &expect);
        world.server.fault(on, fault, Some(1));
        world.server.cut_watches(if on == On::List { Cut::BetweenLines } else { Cut::InOrder });
        let refused = world.server.wait_requests(4, |_| true);
        let pause = refused[3].at - refused[2].at;
        assert!(pause >= wait && pause < wait * 5, "{fault:?} {on:?}: {pause:?}");
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
        assert_eq!(count(&agent.log(), "source lost"), 1, "{}", agent.log());
    });
}

/// Who may list, but not watch, is refused again and again.
#[test]
#[ignore = "needs openssl"]
fn a_watch_that_is_refused_is_no_busy_loop() {
    side_by_side([403, 500], |code| {
        let (world, agent) = World::running(&[node_port("web", 30080)], &SHORT_GRACE);
        let mut expect = vec!["+ 0.0.0.0:30080/tcp"];
        world.wait_documents(&agent, &expect);
        world.server.fault(On::Watch, Fault::Status { code, retry_after: None }, None);
        world.server.cut_watches(Cut::InOrder);
        // After the one that was answered.
        let pauses = pauses(&world.server.wait_requests(1 + 6, Request::is_watch)[1..]);
        for (pause, least) in pauses.iter().zip([100, 200, 400, 800, 1600]) {
            assert!(*pause >= Duration::from_millis(least), "{code}: {pauses:?}");
        }
        let (watches, lists): (Vec<Request>, Vec<Request>) =
            world.server.requests().into_iter().partition(Request::is_watch);
        assert!(lists.len() <= watches.len(), "{lists:?}");
        // What the lists show counts all the same.
        world.server.apply(node_port("new", 30081));
        expect.push("+ 0.0.0.0:30081/tcp");
        world.wait_documents(&agent, &expect);
        world.server.clear_faults();
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
    });
}

/// As an apiserver does, which refuses for a while between the first connection and the first list.
#[test]
#[ignore = "needs openssl"]
fn a_server_that_starts_slowly_is_waited_for() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.stop();
    agent.wait_log("source lost");
    world.server.apply(node_port("new", 30081));
    world.server.fault(On::Any, Fault::Status { code: 503, retry_after: Some(1) }, Some(4));
    world.server.resume();
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp", "+ 0.0.0.0:30081/tcp"]);
}

/// A restart that takes longer than the grace time, but for a part of which the server answers.
#[test]
#[ignore = "needs openssl"]
fn s02_a_server_that_refuses_after_a_restart_keeps_its_services() {
    let (world, agent) = World::running(&[node_port("web", 30080)], &["-debug", "--engine-grace", "2s"]);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.fault(On::Any, Fault::Status { code: 503, retry_after: Some(1) }, Some(4));
    world.server.stop();
    agent.wait_log("source lost");
    world.server.resume();
    agent.wait_log("refusals=4");
    world.server.wait_watches(1);
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp"]);
}
