//! The agent with neither engine nor host end, as Rancher Desktop starts it where WSL does the forwarding: NAT rules of
//! the real CNI plugins, listeners for them, and a container's web server behind the rules. Each test has its own guest.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use support::agent::Agent;
use support::cni::{Attachment, Cni, Port, Variant};
use support::docker::Engine;
use support::engine_stub::{self, EngineStub};
use support::vm::{GUEST, Namespace, Vm};
use support::{Process, TempDir, eventually};

/// A container: its network namespace, its rules, and the web server in it. `GET /` answers with its name.
struct Container {
    _web: Process,
    _files: TempDir,
    attachment: Attachment,
}

impl Container {
    fn new(cni: &Cni, name: &str, ports: &[Port]) -> Container {
        let (attachment, files) = (cni.add(name, ports), TempDir::new());
        fs::write(files.join("index.html"), name).unwrap();
        let mut command = attachment.command("/bin/busybox");
        let web = Process::spawn(command.args(["httpd", "-f", "-p", "80", "-h"]).arg(files.path()));
        Container { _web: web, _files: files, attachment }
    }
}

fn tcp(host_ip: &str, host_port: u16) -> Port<'_> {
    Port { host_ip, host_port, container_port: 80, protocol: "tcp" }
}

/// What a web server's answer ends with, as seen from that namespace.
fn get(from: &Namespace, address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().unwrap();
    let connected = from.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)));
    let answer = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200") => Ok(body.into()),
        _ => Err(answer),
    }
}

fn wait_answer(from: &Namespace, address: &str, name: &str) {
    eventually(&format!("{name} at {address}"), || match get(from, address) {
        Ok(body) if body == name => Ok(()),
        other => Err(other),
    });
}

fn wait_listening(vm: &Vm, agent: &Agent, expect: &[&str]) {
    eventually(&format!("listeners {expect:?}"), || match vm.guest.listening() {
        seen if seen == expect => Ok(()),
        seen => Err((seen, agent.log())),
    });
}

/// A listener of the agent answers there, and nothing else.
fn assert_reset(from: &Namespace, address: (&str, u16)) {
    let ip: IpAddr = address.0.parse().unwrap();
    let read = from.enter(|| TcpStream::connect((ip, address.1)).and_then(|mut stream| stream.read(&mut [0])));
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

fn follows_the_rules(variant: Variant) {
    let vm = Vm::new();
    let cni = Cni::new(&vm.guest, variant);
    let before = Container::new(&cni, "default-before", &[tcp("", 80)]);
    let agent = Agent::run(Some(&vm.guest), &["-iptables=true"]);
    wait_listening(&vm, &agent, &["0.0.0.0:80"]);

    let udp = Port { host_ip: "", host_port: 5353, container_port: 53, protocol: "udp" };
    let web = Container::new(&cni, "default-web", &[tcp("", 8080), tcp("127.0.0.1", 8081), udp]);
    wait_listening(&vm, &agent, &["0.0.0.0:80", "0.0.0.0:8080", "127.0.0.1:8081"]);
    let outside = format!("{GUEST}:8080");
    for (from, address) in
        [(&vm.guest, "127.0.0.1:8080"), (&vm.guest, "127.0.0.1:8081"), (&vm.guest, &outside), (&vm.host, &outside)]
    {
        wait_answer(from, address, "default-web");
        // And each time, not only when the container is faster than the agent.
        for _ in 0..20 {
            assert_eq!(get(from, address).as_deref(), Ok("default-web"), "{address}");
        }
    }
    let beyond = get(&vm.host, &format!("{GUEST}:8081")).unwrap_err();
    assert!(beyond.contains("refused"), "published on the loopback only: {beyond}");

    web.attachment.delete();
    wait_listening(&vm, &agent, &["0.0.0.0:80"]);
    before.attachment.delete();
    wait_listening(&vm, &agent, &[]);
    assert!(!agent.log().contains("trying on"), "{}", agent.log());
    let _again = Container::new(&cni, "default-again", &[tcp("", 80)]);
    wait_listening(&vm, &agent, &["0.0.0.0:80"]);
    wait_answer(&vm.host, &format!("{GUEST}:80"), "default-again");
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(vm.guest.listening(), [""; 0]);
    wait_answer(&vm.host, &format!("{GUEST}:80"), "default-again");
}

#[test]
#[ignore = "needs root and CNI's plugins (scripts/deps.sh cni)"]
fn s07_rules_of_iptables_nft_get_listeners() {
    follows_the_rules(Variant::Nft);
}

#[test]
#[ignore = "needs root and CNI's plugins (scripts/deps.sh cni)"]
fn s07_rules_of_iptables_legacy_get_listeners() {
    follows_the_rules(Variant::Legacy);
}

#[test]
#[ignore = "needs root and CNI's plugins (scripts/deps.sh cni)"]
fn a_port_that_is_taken_in_the_guest_is_said_and_had_later() {
    let vm = Vm::new();
    let cni = Cni::new(&vm.guest, Variant::Nft);
    let busy = vm.guest.enter(|| std::net::TcpListener::bind("0.0.0.0:8080").unwrap());
    let agent = Agent::run(Some(&vm.guest), &["-iptables=true"]);
    let _web = Container::new(&cni, "default-web", &[tcp("", 8080), tcp("", 8081)]);
    wait_listening(&vm, &agent, &["0.0.0.0:8080", "0.0.0.0:8081"]);
    agent.wait_log("0.0.0.0:8080 is in use in the guest");
    // Whoever holds the port: the rule comes first.
    wait_answer(&vm.guest, "127.0.0.1:8080", "default-web");
    drop(busy);
    agent.wait_log("forwarding binding=0.0.0.0:8080/tcp");
    wait_listening(&vm, &agent, &["0.0.0.0:8080", "0.0.0.0:8081"]);
}

#[test]
#[ignore = "needs root and CNI's plugins (scripts/deps.sh cni)"]
fn rules_of_both_families_get_listeners_of_both() {
    let vm = Vm::new();
    let cni = Cni::new_dual(&vm.guest, Variant::Nft);
    let agent = Agent::run(Some(&vm.guest), &["-iptables=true"]);
    let web = Container::new(&cni, "default-web", &[tcp("", 8080)]);
    wait_listening(&vm, &agent, &["0.0.0.0:8080", "[::]:8080"]);
    wait_answer(&vm.host, &format!("{GUEST}:8080"), "default-web");
    wait_answer(&vm.host, "[fd00:143::2]:8080", "default-web");
    web.attachment.delete();
    wait_listening(&vm, &agent, &[]);
}

/// Without the nat source: claims come from an engine made of paper, rules and container are real.
#[test]
#[ignore = "needs root and CNI's plugins (scripts/deps.sh cni)"]
fn the_rules_come_before_the_listeners() {
    let (vm, engine) = (Vm::new(), EngineStub::new());
    let cni = Cni::new(&vm.guest, Variant::Nft);
    let ports = [
        ("80/tcp", "0.0.0.0", "8080"),
        ("80/tcp", "127.0.0.1", "8081"),
        ("53/udp", "0.0.0.0", "5353"),
        ("80/tcp", "0.0.0.0", "80"),
    ];
    engine.add(&engine_stub::id(1), engine_stub::ports(&ports));
    let agent = Agent::start(Some(&vm.guest), &engine.socket(), &["--sink", "listener:"]);
    wait_listening(&vm, &agent, &["0.0.0.0:80", "0.0.0.0:8080", "127.0.0.1:8081"]);
    assert_reset(&vm.guest, ("127.0.0.1", 8080));
    assert_reset(&vm.host, (GUEST, 8080));
    let web = Container::new(&cni, "default-web", &[tcp("", 8080), tcp("127.0.0.1", 8081)]);
    wait_answer(&vm.guest, "127.0.0.1:8080", "default-web");
    wait_answer(&vm.guest, "127.0.0.1:8081", "default-web");
    wait_answer(&vm.host, &format!("{GUEST}:8080"), "default-web");
    web.attachment.delete();
    assert_reset(&vm.guest, ("127.0.0.1", 8081));
    engine.end(&engine_stub::id(1));
    wait_listening(&vm, &agent, &[]);
    assert_eq!(agent.stop(), Some(0));
}

/// Podman listens on its ports itself, after it has written the rules: a listener of the agent's would be in its way.
#[test]
#[ignore = "needs root, podman (scripts/deps.sh podman)"]
fn podman_is_not_kept_from_its_ports() {
    let vm = Vm::new();
    let engine = Engine::podman(&vm.guest);
    let agent = Agent::run(Some(&vm.guest), &["-iptables=true", "--sink", "listener:", "--sink", "stdout:"]);
    agent.wait_log("source ready");
    for _ in 0..3 {
        let range = "-p 8081-8090:81-90".split(' ');
        engine.web("web", &[&["-p", "8080:80"], &*range.collect::<Vec<_>>()].concat());
        let own: Vec<String> = (8080..=8090).map(|port| format!("0.0.0.0:{port}")).collect();
        wait_listening(&vm, &agent, &own.iter().map(String::as_str).collect::<Vec<_>>());
        engine.remove("web");
    }
    eventually("their end", || match agent.out().matches("\"change\":\"remove\"").count() {
        33 => Ok(()),
        other => Err((other, agent.out())),
    });
    for wrong in ["conflict", "stale"] {
        assert!(!agent.log().contains(wrong), "{}", agent.log());
    }
}
