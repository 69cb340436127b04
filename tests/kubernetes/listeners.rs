//! `-kubernetes` with neither engine nor host end: listeners for WSL to notice, in a guest of the test's own.

use std::time::Duration;

use crate::support::agent::Agent;
use crate::support::certs::Pki;
use crate::support::kube_server::{KubeServer, Port, Service};
use crate::support::kubeconfig::KubeConfig;
use crate::support::vm::{HOST, Vm};
use crate::support::{TempDir, eventually, run, within};
use crate::world::node_port;

/// The server is on the guest's other end of the link, so that all that listens in the guest is the agent.
struct Guest {
    vm: Vm,
    server: KubeServer,
    pki: Pki,
    dir: TempDir,
}

impl Guest {
    fn new() -> Guest {
        let (vm, pki) = (Vm::new(), Pki::new());
        let server = KubeServer::start_in(&vm.host, &pki, &format!("{HOST}:6443"));
        let guest = Guest { vm, server, pki, dir: TempDir::new() };
        KubeConfig::new(&guest.pki, &guest.server.url()).write(&guest.dir.join("k3s.yaml"));
        guest
    }

    fn agent(&self, more: &[&str]) -> Agent {
        let path = self.dir.join("k3s.yaml");
        let agent =
            Agent::run(Some(&self.vm.guest), &[&["-kubernetes", "-kubeconfig", path.to_str().unwrap()], more].concat());
        self.server.wait_watches(1);
        agent
    }

    fn wait_listening(&self, agent: &Agent, expect: &[&str]) {
        eventually(&format!("listeners {expect:?}"), || match self.vm.guest.listening() {
            seen if seen == expect => Ok(()),
            seen => Err((seen, agent.log())),
        });
    }
}

#[test]
#[ignore = "needs root, openssl, iproute2, iptables (scripts/deps.sh openssl cni)"]
fn s22_node_ports_get_listeners() {
    let guest = Guest::new();
    guest.server.apply(node_port("early", 30080));
    let agent = guest.agent(&[]);
    guest.wait_listening(&agent, &["0.0.0.0:30080"]);
    guest.server.apply(Service::load_balancer("default", "lb", &[Port::tcp(80, 30081)], &["192.168.143.2"]));
    guest.server.apply(node_port("six", 30082).families(&["IPv6", "IPv4"]));
    let all = ["0.0.0.0:80", "0.0.0.0:30080", "0.0.0.0:30081", "0.0.0.0:30082", "[::]:30082"];
    guest.wait_listening(&agent, &all);
    guest.server.delete("default", "early");
    guest.server.delete("default", "lb");
    guest.wait_listening(&agent, &["0.0.0.0:30082", "[::]:30082"]);
    guest.server.apply(node_port("six", 30083));
    guest.wait_listening(&agent, &["0.0.0.0:30083"]);
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    assert!(guest.vm.guest.listening().is_empty());
}

#[test]
#[ignore = "needs root, openssl, iproute2, iptables (scripts/deps.sh openssl cni)"]
fn s30_node_ports_on_the_loopback_get_listeners_there() {
    let guest = Guest::new();
    guest.server.apply(Service::node_port("default", "web", &[Port::tcp(80, 30080), Port::udp(53, 30053)]));
    let agent = guest.agent(&["-k8sServiceListenerAddr", "127.0.0.1"]);
    guest.wait_listening(&agent, &["127.0.0.1:30080"]);
    // Nobody who looks at listeners would notice one for UDP.
    agent.wait_log("left out binding=127.0.0.1:30053/udp");
    guest.server.delete("default", "web");
    guest.wait_listening(&agent, &[]);
}

/// The guest's side of the link goes down, and with it every answer: not even a reset comes.
#[test]
#[ignore = "needs root, openssl, iproute2, iptables (scripts/deps.sh openssl cni)"]
fn s02_a_server_that_vanishes_without_a_word_is_noticed() {
    let guest = Guest::new();
    guest.server.apply(node_port("web", 30080));
    let agent = guest.agent(&["-iptables=false", "--engine-grace", "1s"]);
    guest.wait_listening(&agent, &["0.0.0.0:30080"]);
    let ip = |state: &str| {
        let mut command = guest.vm.host.command("ip");
        run(command.args(["link", "set", "vm0", state]));
    };
    ip("down");
    // Probes after 15 s, three times 5 s apart; then another connection is tried for 5 s.
    within(Duration::from_secs(60), "the end of the connection", || match agent.log() {
        log if log.contains("source lost, trying on source=kubernetes") => Ok(()),
        log => Err(log),
    });
    guest.wait_listening(&agent, &[]);
    ip("up");
    guest.wait_listening(&agent, &["0.0.0.0:30080"]);
}
