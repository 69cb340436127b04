//! What people and scripts meet: a port that is taken, rules that deny, and nothing to do.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::Process;
use crate::world::World;

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s13_a_taken_port_is_shown_the_others_forward_and_it_is_taken_when_free() {
    let world = World::new(&[]);
    let holder = world.vm.host.enter(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    world.engine.web("web", &["-p", "8080:80", "-p", "8081:80", "-p", "8082:80"]);
    world.told(&["wait", "--port", "8080"], 0);
    world.told(&["wait", "--port", "8082"], 0);
    world.vm.wait_200("127.0.0.1:8080", &world.agent);
    let reason = "listen tcp 127.0.0.1:8081: bind: address already in use";
    let row = world.told(&["wait", "--port", "8081/tcp", "--state", "conflict"], 0);
    assert!(row.contains("conflict") && row.contains(reason), "{row}");
    let ports = world.told(&["ports", "--state", "conflict"], 0);
    assert!(ports.contains("0.0.0.0:8081/tcp") && ports.contains(reason), "{ports}");
    let explained = world.told(&["explain", "8081"], 3);
    for expect in ["8081: not forwarded", "publishes 0.0.0.0:8081/tcp", reason, "stop who has it"] {
        assert!(explained.contains(expect), "{expect}: {explained}");
    }
    let status = world.told(&["status"], 3);
    assert!(status.starts_with("degraded: 1 forward in conflict\n"), "{status}");
    let late = world.ask(&["wait", "--port", "8081", "--timeout", "100ms"]);
    let message = String::from_utf8_lossy(&late.stderr);
    assert!(late.status.code() == Some(5) && message.contains(reason), "{message}");
    let mut wait = Process::spawn(world.agent.ask(&["wait", "--port", "8081"]).stdout(Stdio::null()));
    assert!(wait.is_running(), "the port is still taken");
    drop(holder);
    assert_eq!(wait.wait(), Some(0));
    world.vm.wait_200("127.0.0.1:8081", &world.agent);
    assert!(world.told(&["status"], 0).starts_with("ok\n"));
    world.told(&["explain", "8081"], 0);
    let mut gone =
        Process::spawn(world.agent.ask(&["wait", "--port", "8081", "--state", "withdrawn"]).stdout(Stdio::null()));
    world.wait_clients(2);
    assert!(gone.is_running());
    world.engine.remove("web");
    assert_eq!(gone.wait(), Some(0));
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s19_denied_ports_are_shown_with_their_rule() {
    let world = World::new(&["--deny", "*"]);
    world.engine.web("web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80"]);
    world.told(&["wait", "--port", "8081", "--state", "denied"], 0);
    let documents = world.told(&["ports", "--json"], 0);
    assert!(documents.lines().count() >= 2, "{documents}");
    for line in documents.lines() {
        assert!(line.contains(r#""sink":null,"state":"denied","reason":"--deny *""#), "{line}");
    }
    let explained = world.told(&["explain", "8080"], 3);
    assert!(explained.contains("denied by the rule --deny *\n"), "{explained}");
    assert!(explained.contains("- The agent was started with --deny *: "), "{explained}");
    assert_eq!(world.told(&["wait", "--port", "8080", "--state", "withdrawn"], 0), "port 8080: no forward is left\n");
    assert!(world.switch.forwards().is_empty());
}

#[test]
fn s28_nothing_to_do_and_nobody_to_ask() {
    let agent = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
        command.args(words).env_remove("DOCKER_HOST").output().unwrap()
    };
    let off = ["-docker=false", "-containerd=false", "-kubernetes=false", "-iptables=false", "-sockets=false"];
    let started = agent(&off);
    let message = String::from_utf8_lossy(&started.stderr);
    assert!(started.status.code() == Some(2) && message.contains("at least one source"), "{message}");
    let asked = agent(&["status", "--socket", "/nonexistent/control.sock"]);
    let message = String::from_utf8_lossy(&asked.stderr);
    assert_eq!(asked.status.code(), Some(4), "{message}");
    assert!(message.contains("no agent answers at /nonexistent/control.sock") && asked.stdout.is_empty(), "{message}");
}
