//! Servers that send what no apiserver should: it is named, left out, and costs nobody else's ports; nothing grows.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::raw::RawServer;
use crate::support::agent::Agent;
use crate::support::kube_server::{Cut, Port, Service};
use crate::support::{eventually, status_kb, within};
use crate::world::{LONG_GRACE, World, count, node_port, side_by_side};

fn running() -> (World, Agent, Vec<&'static str>) {
    let (world, agent) = World::running(&[node_port("web", 30080)], &LONG_GRACE);
    let expect = vec!["+ 0.0.0.0:30080/tcp"];
    world.wait_documents(&agent, &expect);
    (world, agent, expect)
}

fn wait_opened(world: &World, agent: &Agent, expect: u64) {
    eventually(&format!("watch {expect}"), || {
        Some(()).filter(|()| world.server.watches_opened() == expect).ok_or_else(|| agent.log())
    });
}

fn event(kind: &str, object: &Value) -> Vec<u8> {
    format!("{}\n", json!({"type": kind, "object": object})).into_bytes()
}

fn service(name: &Value, spec: &Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "1002"}, "spec": spec})
}

/// After each of them there is a new list, which has what the event may have said.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn events_that_cannot_be_read() {
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30081}]});
    let pod = json!({"kind": "Pod", "metadata": service(&json!("web"), &ports)["metadata"]});
    let no_version = json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"}});
    let bookmark = |version: Value| {
        event("BOOKMARK", &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": version}}))
    };
    let events: Vec<(Vec<u8>, &str)> = vec![
        (b"{\"type\":\"DELETED\",\"object\":\n".to_vec(), "event"),
        (b"this is no JSON\n".to_vec(), "event"),
        (b"\xff\xfe\n".to_vec(), "event"),
        (b"[]\n".to_vec(), "type"),
        (b"null\n".to_vec(), "type"),
        (("[".repeat(10_000) + "\n").into_bytes(), "event"),
        (event("RENAMED", &service(&json!("web"), &ports)), "RENAMED"),
        (event("DELETED", &pod), "kind"),
        (event("DELETED", &service(&json!(17), &ports)), "metadata.name"),
        (event("DELETED", &service(&json!("../../web"), &ports)), "metadata.name"),
        (event("DELETED", &json!("default/web")), "kind"),
        (event("ADDED", &no_version), "resourceVersion"),
        (bookmark(json!(17)), "resourceVersion"),
        (bookmark(json!("1 2&x=y")), "resourceVersion"),
    ];
    // A few for each agent: after every one it waits longer.
    side_by_side(events.chunks(4), |events| {
        let (world, agent, mut expect) = running();
        for (number, (bytes, word)) in (1..).zip(events) {
            world.server.raw_event(bytes);
            let skipped = format!("skipped input source=kubernetes count={number} ");
            agent.wait_log(&skipped);
            let log = agent.log();
            let line = log.lines().find(|line| line.contains(&skipped)).unwrap();
            assert!(line.contains(word) && line.len() < 600, "{word}: {line}");
            wait_opened(&world, &agent, number + 1);
        }
        world.wait_marker_after(&agent, &mut expect);
        assert_eq!(count(&agent.log(), " WARN "), events.len(), "{}", agent.log());
    });
}

/// A Service that is wrong in parts publishes the others; the watch goes on.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn services_that_are_wrong_in_parts() {
    let (world, agent, mut expect) = running();
    let ports = json!([
        {"port": 70000, "nodePort": 30081},
        {"port": 81, "nodePort": 70000},
        {"port": 82, "nodePort": -1},
        {"port": 83, "nodePort": "30083"},
        {"port": 0, "nodePort": 30084},
        {"port": 85, "nodePort": 30085, "protocol": 6},
        {"port": 86, "nodePort": 30086, "protocol": "\u{1b}[31mTCP"},
        "port",
        {"port": 88, "nodePort": 30088},
    ]);
    world.server.raw_event(&event("ADDED", &service(&json!("bad"), &json!({"type": "NodePort", "ports": ports}))));
    expect.push("+ 0.0.0.0:30088/tcp");
    world.wait_documents(&agent, &expect);
    agent.wait_log("count=8 ");
    for spec in [
        json!({"type": "NodePort", "ports": {"port": 80}}),
        json!({"type": 17, "ports": [{"port": 80, "nodePort": 30089}]}),
        json!([]),
    ] {
        world.server.raw_event(&event("ADDED", &service(&json!("worse"), &spec)));
    }
    agent.wait_log("count=11 ");
    world.wait_marker_after(&agent, &mut expect);
    let log = agent.log();
    assert_eq!((count(&log, "skipped input"), count(&log, " WARN ")), (11, 11), "{log}");
    assert!(log.contains("default/bad port 70000") && !log.contains('\u{1b}'), "{log}");
    assert_eq!(world.server.watches_opened(), 1, "the watch went on");
}

/// Far more than any object can be.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn an_event_of_64_mb() {
    let (world, agent, mut expect) = running();
    let before = status_kb(agent.pid(), "VmHWM:");
    world.server.raw_event(&vec![b'x'; 64 << 20]);
    agent.wait_log("skipped input source=kubernetes count=1 ");
    eventually("a new watch", || Some(()).filter(|()| world.server.watches_opened() == 2).ok_or_else(|| agent.log()));
    world.wait_marker_after(&agent, &mut expect);
    let after = status_kb(agent.pid(), "VmHWM:");
    println!("VmHWM {before} KiB, {after} KiB after an event of 64 MB");
    assert!(after < 16 << 10, "{before} KiB, then {after} KiB");
    assert_eq!(count(&agent.log(), " WARN "), 1, "{}", agent.log());
}

/// A Service as large as the server's storage takes, and all of it in what the agent does not want.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_service_of_1_5_mb() {
    let (world, agent, mut expect) = running();
    let mut large = service(&json!("large"), &json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30081}]}));
    large["metadata"]["annotations"] = json!({"note": "x".repeat(3 << 19)});
    world.server.raw_event(&event("ADDED", &large));
    expect.push("+ 0.0.0.0:30081/tcp");
    world.wait_marker_after(&agent, &mut expect);
    let peak = status_kb(agent.pid(), "VmHWM:");
    assert!(peak < 16 << 10, "{peak} KiB");
}

/// The first thousand are kept, and that there are more is said.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_service_of_more_ports_than_are_taken() {
    let (world, agent, _) = running();
    let ports: Vec<Port> = (0..1100).map(|n| Port::tcp(1 + n, 31000 + n)).collect();
    world.server.apply(Service::node_port("default", "many", &ports));
    eventually("1,001 ports", || {
        Some(()).filter(|()| world.receiver.held().len() == 1001).ok_or(world.receiver.held().len())
    });
    agent.wait_log("default/many: more than 1000 ports");
    world.server.delete("default", "many");
    world.receiver.wait_held(&["0.0.0.0:30080/tcp"]);
    assert_eq!(count(&agent.log(), " WARN "), 1);
}

/// Nothing of such a list counts, and it is asked for again.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn lists_that_cannot_be_used() {
    let metadata = json!({"resourceVersion": "1001"});
    let whole = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": []}).to_string();
    let lists = [
        ("<html><body>Please log in</body></html>".to_owned(), "list"),
        (String::new(), "list"),
        ("null".to_owned(), "list"),
        ("{}".to_owned(), "kind"),
        (whole[..whole.len() - 1].to_owned(), "list"),
        (format!("{whole}{whole}"), "list"),
        (whole.replace("\"items\":[]", "\"items\":{}"), "items"),
        (whole.replace("ServiceList", "PodList"), "kind"),
        (whole.replace("\"1001\"", "\"1001\",\"continue\":\"abc\""), "continue"),
        (whole.replace("\"1001\"", "1001"), "resourceVersion"),
    ];
    side_by_side(lists, |(list, word)| {
        let (world, agent, mut expect) = running();
        let before = world.server.requests().len();
        world.server.raw_list(Some(list.clone().into_bytes()));
        world.server.cut_watches(Cut::BetweenLines);
        let seen = world.server.wait_requests(before + 4, |_| true);
        assert!(seen[before..].iter().all(|request| request.is_list()), "{list}: {seen:?}");
        let log = agent.log();
        let line =
            log.lines().find(|line| line.contains("source in trouble")).unwrap_or_else(|| panic!("{list}: {log}"));
        assert!(line.contains("the list of Services from https://") && line.contains(word), "{list}: {line}");
        assert_eq!(count(&log, " WARN "), 1, "{list}: {log}");
        world.server.raw_list(None);
        world.server.wait_watches(1);
        world.wait_marker_after(&agent, &mut expect);
    });
}

fn answer(out: &mut dyn Write, head: &str, body: &str) -> io::Result<()> {
    write!(out, "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The agent has followed, and then there is another server in the place of the real one.
fn instead(answer: impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static, words: &str) {
    let (world, agent, mut expect) = running();
    world.server.stop();
    let address = format!("127.0.0.1:{}", world.server.port());
    let other = RawServer::start(&world.pki, &address, answer);
    agent.wait_log(words);
    let begun = Instant::now();
    let first = other.requests();
    eventually("three more requests", || {
        Some(()).filter(|()| other.requests() >= first + 3).ok_or_else(|| agent.log())
    });
    assert!(begun.elapsed() > Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(world.documents(), expect);
    let peak = status_kb(agent.pid(), "VmHWM:");
    assert!(peak < 16 << 10, "{peak} KiB");
    drop(other);
    world.server.resume();
    world.server.wait_watches(1);
    world.wait_marker_after(&agent, &mut expect);
    let log = agent.log();
    assert!(count(&log, " WARN ") < 8, "{log}");
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn html_in_place_of_a_list() {
    let html = "<html><head><title>Sign in</title></head></html>";
    instead(move |_, out| answer(out, "200 OK\r\nContent-Type: text/html", html), "the list of Services from");
    instead(move |_, out| answer(out, "502 Bad Gateway\r\nContent-Type: text/html", html), "answers 502: <html>");
}

/// Nobody is asked but the server that the kubeconfig names, credentials or not.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn redirects_are_never_followed() {
    let codes = ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"];
    side_by_side(codes, |code| {
        let elsewhere = World::new();
        let head = format!("{code}\r\nLocation: {}/api/v1/services", elsewhere.server.url());
        instead(move |_, out| answer(out, &head, ""), &format!("answers {}", &code[..3]));
        assert!(elsewhere.server.requests().is_empty(), "{code}");
    });
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn headers_without_end() {
    instead(
        |_, out| {
            out.write_all(b"HTTP/1.1 200 OK\r\n")?;
            let line = format!("X-More: {}\r\n", "x".repeat(1000));
            // Until the client has had enough; never more than 64 MB.
            (0..64 << 10).try_for_each(|_| out.write_all(line.as_bytes()))
        },
        "cannot ask https://",
    );
    instead(
        |_, out| {
            out.write_all(b"HTTP/1.1 200 ")?;
            (0..64 << 10).try_for_each(|_| out.write_all(&[b'x'; 1024]))
        },
        "cannot ask https://",
    );
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn what_is_no_http() {
    instead(|_, out| out.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"), "cannot ask https://");
    instead(|_, _| Ok(()), "cannot ask https://");
    instead(
        |_, out| out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"kind\":"),
        "Services from https://",
    );
}

/// A server that lists one Service, and says to a watch whatever `watch` does; and an agent that follows it.
fn answers_watches_with(
    more: &[&str],
    watch: impl Fn(&mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
) -> (World, RawServer, Agent) {
    let list = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": [
        {"metadata": {"namespace": "default", "name": "web", "resourceVersion": "1"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}}]});
    let list = list.to_string();
    let world = World::new();
    let other = RawServer::start(&world.pki, "127.0.0.1:0", move |line, out| {
        if line.contains("watch=1") { watch(out) } else { answer(out, "200 OK\r\nConnection: close", &list) }
    });
    let server = format!("https://{}", other.address());
    crate::support::kubeconfig::KubeConfig { server, ..world.config() }.write(&world.kubeconfig());
    let agent = world.agent(more);
    (world, other, agent)
}

/// Each byte comes in time, but there is no end of them: in the middle of an event, between events, and of a refusal.
/// Takes 70 s.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn watches_that_trickle_in_without_end() {
    let cases = [("200 OK", " "), ("200 OK", "\n"), ("500 Internal Server Error", "x")];
    side_by_side(cases, |(head, byte)| {
        let (world, other, agent) = answers_watches_with(&["-debug"], move |out| {
            write!(out, "HTTP/1.1 {head}\r\n\r\n")?;
            loop {
                out.write_all(byte.as_bytes())?;
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        within(Duration::from_secs(80), "a third request", || {
            Some(()).filter(|()| other.requests() >= 3).ok_or_else(|| (head, byte, agent.log()))
        });
        assert_eq!(world.documents(), ["+ 0.0.0.0:30080/tcp"]);
    });
}

/// However long it takes to say no: as priority and fairness does, where a request waits in a queue first.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn watches_that_are_refused_slowly_are_asked_for_less_and_less() {
    let (world, _other, agent) = answers_watches_with(&["-debug"], |out| {
        std::thread::sleep(Duration::from_millis(1100));
        answer(out, "429 Too Many Requests", "later")
    });
    agent.wait_log("refusals=3");
    assert_eq!(world.documents(), ["+ 0.0.0.0:30080/tcp"]);
}

/// A list is answered, and the connection of each watch ends without a word.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn watches_that_are_closed_unanswered_are_no_busy_loop() {
    let (world, other, agent) = answers_watches_with(&[], |_| Ok(()));
    let begun = Instant::now();
    eventually("ten requests", || Some(()).filter(|()| other.requests() >= 10).ok_or_else(|| agent.log()));
    // 100, 200, 400 and 800 ms.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}: {}", begun.elapsed(), agent.log());
    assert_eq!(world.documents(), ["+ 0.0.0.0:30080/tcp"]);
}
