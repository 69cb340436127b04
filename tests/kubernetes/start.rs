//! How it begins: in which order server, kubeconfig, sink and agent come up, and in what environment.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::kube_server::{Port, Service};
use crate::support::receiver::Receiver;
use crate::support::within;
use crate::world::{World, arguments, count, node_port};

const AGENT: &str = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s09_api_that_comes_up_later() {
    let world = World::new();
    world.server.stop();
    world.server.apply(node_port("web", 30080));
    world.config().write(&world.kubeconfig());
    // With it, every attempt can be counted.
    let agent = world.agent(&["-debug"]);
    agent.wait_log("session ended source=kubernetes failures=5");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    assert_eq!(count(&log, "source lost, trying on source=kubernetes"), 1, "{log}");
    assert!(log.contains(&format!("cannot ask {}", world.server.url())) && log.contains("refused"), "{log}");
    assert!(world.documents().is_empty());
    world.server.resume();
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.wait_watches(1);
    world.server.apply(node_port("late", 30081));
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp", "+ 0.0.0.0:30081/tcp"]);
    assert_eq!(count(&agent.log(), "source ready source=kubernetes"), 1, "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    assert!(world.receiver.held().is_empty(), "withdrawn at the end");
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s09_kubeconfig_that_appears_later() {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    let agent = world.agent(&["-debug"]);
    agent.wait_log("session ended source=kubernetes failures=5");
    let log = agent.log();
    assert_eq!(count(&log, " WARN "), 1, "{log}");
    let expect = format!("kubeconfig {}: No such file", world.kubeconfig().display());
    assert!(log.contains(&expect) && log.contains("looked for again until it is there"), "{log}");
    assert!(world.server.requests().is_empty());
    world.config().write(&world.kubeconfig());
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
}

/// As k3s writes it: not at once.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s09_kubeconfig_that_is_written_slowly() {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    let text = world.config().text();
    let path = world.kubeconfig();
    std::fs::write(&path, "").unwrap();
    let agent = world.agent(&[]);
    agent.wait_log("source lost");
    for (before, complaint) in [("contexts:", "current-context"), ("    client-key-data", "both are needed")] {
        std::fs::write(&path, text.split(before).next().unwrap()).unwrap();
        agent.wait_log(complaint);
    }
    std::fs::write(&path, &text).unwrap();
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    // Each time the file may have been seen empty for a moment.
    assert!(count(&agent.log(), "source lost") <= 6, "{}", agent.log());
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s22_nothing_in_the_environment_is_needed() {
    for variables in [&[][..], &["PATH="], &["PATH=/nonexistent", "KUBECONFIG=/nonexistent"]] {
        let world = World::new();
        world.config().write(&world.kubeconfig());
        let (url, kubeconfig) = (world.receiver.url(), world.kubeconfig());
        let args =
            [&["-i"], variables, &[AGENT], &arguments(&url, &kubeconfig), &["-adminInstall", "--control-socket", ""]]
                .concat();
        let agent = Agent::run_program("/usr/bin/env".as_ref(), None, &args, &[]);
        world.server.wait_watches(1);
        world.server.apply(node_port("web", 30080));
        world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
        assert!(!agent.log().contains(" WARN "), "{}", agent.log());
    }
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s25_proxies_are_never_contacted() {
    let (world, proxy) = (World::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    proxy.set_nonblocking(true).unwrap();
    world.server.apply(node_port("web", 30080));
    world.config().write(&world.kubeconfig());
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let environment = names.map(|name| (name, &*address));
    let (url, kubeconfig) = (world.receiver.url(), world.kubeconfig());
    let args = [&arguments(&url, &kubeconfig)[..], &["-adminInstall"]].concat();
    let agent = Agent::run_program(AGENT.as_ref(), None, &args, &environment);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    assert_eq!(proxy.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s08_sink_that_comes_up_later_gets_everything() {
    let world = World { receiver: Receiver::absent(), ..World::new() };
    world.server.apply(node_port("early", 30080));
    world.config().write(&world.kubeconfig());
    let agent = world.agent(&[]);
    agent.wait_log("sink unreachable");
    world.server.wait_watches(1);
    world.server.apply(node_port("late", 30081));
    world.server.apply(node_port("gone", 30082));
    world.server.delete("default", "gone");
    world.receiver.listen();
    world.receiver.wait_held(&["0.0.0.0:30080/tcp", "0.0.0.0:30081/tcp"]);
    assert_eq!(count(&agent.log(), "sink unreachable"), 1, "{}", agent.log());
}

/// Nothing else is needed: neither engine nor NAT rules.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn s28_kubernetes_alone_runs() {
    let world = World::new();
    world.server.apply(node_port("web", 30080));
    world.config().write(&world.kubeconfig());
    let path = world.kubeconfig();
    let args = ["-kubernetes", "-kubeconfig", path.to_str().unwrap(), "-iptables=false", "--sink", "stdout:"];
    let checked = Command::new(AGENT).args(args).arg("--check").stdin(Stdio::null()).output().unwrap();
    let expect = format!("source=kubernetes:{} services=0.0.0.0 sink=stdout: exposure=loopback\n", path.display());
    assert_eq!((checked.status.code(), String::from_utf8_lossy(&checked.stdout)), (Some(0), expect.into()));
    assert!(world.server.requests().is_empty(), "a check asks nobody");
    let agent = Agent::run(None, &args);
    agent.wait_log("source ready source=kubernetes");
    world.server.wait_watches(1);
    world.server.delete("default", "web");
    let lines = within(Duration::from_secs(30), "two lines", || {
        let out = agent.out();
        if out.lines().count() == 2 { Ok(out) } else { Err(out) }
    });
    for (line, change) in lines.lines().zip(["add", "remove"]) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
        assert_eq!(
            (field("change"), field("source"), field("owner")),
            (change.to_owned(), "kubernetes".to_owned(), "default/web".to_owned())
        );
        assert_eq!(
            (&value["hostPort"], &value["containerPort"], &value["hostIp"]),
            (&30080.into(), &80.into(), &"127.0.0.1".into())
        );
    }
    assert_eq!(agent.stop(), Some(0));
}

/// What docker and Kubernetes both publish is one forward, until neither does.
#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn a_port_of_docker_and_kubernetes_is_one_forward() {
    let (world, engine) = (World::new(), EngineStub::new());
    world.config().write(&world.kubeconfig());
    let (url, kubeconfig) = (world.receiver.url(), world.kubeconfig());
    let host = format!("unix://{}", engine.socket().display());
    let args = [&["-docker", "-adminInstall"], &arguments(&url, &kubeconfig)[..]].concat();
    let agent = Agent::run_program(AGENT.as_ref(), None, &args, &[("DOCKER_HOST", &host)]);
    engine.wait_subscriptions(1);
    world.server.wait_watches(1);
    agent.wait_log("source ready source=docker");
    let both = [Port::tcp(80, 30080), Port::udp(53, 30053)];
    let mut expect = Vec::new();
    // Each of them once first and once last.
    for docker_first in [true, false] {
        let container = || engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "30080")]));
        let service = || world.server.apply(Service::node_port("default", "web", &both));
        if docker_first {
            container();
            expect.push("+ 0.0.0.0:30080/tcp");
            world.wait_documents(&agent, &expect);
            service();
            expect.push("+ 0.0.0.0:30053/udp");
            world.wait_documents(&agent, &expect);
            engine.end(&id(1));
            engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8080")]));
            expect.push("+ 0.0.0.0:8080/tcp");
            world.wait_documents(&agent, &expect);
            world.server.delete("default", "web");
            expect.push("- 0.0.0.0:30053/udp 0.0.0.0:30080/tcp");
            world.wait_documents(&agent, &expect);
            engine.end(&id(2));
            expect.push("- 0.0.0.0:8080/tcp");
        } else {
            service();
            expect.push("+ 0.0.0.0:30053/udp 0.0.0.0:30080/tcp");
            world.wait_documents(&agent, &expect);
            container();
            engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8080")]));
            expect.push("+ 0.0.0.0:8080/tcp");
            world.wait_documents(&agent, &expect);
            world.server.delete("default", "web");
            expect.push("- 0.0.0.0:30053/udp");
            world.wait_documents(&agent, &expect);
            engine.end(&id(1));
            expect.push("- 0.0.0.0:30080/tcp");
        }
        world.wait_documents(&agent, &expect);
    }
}
