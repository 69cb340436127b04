//! Today's Rancher Desktop, whole: real engines in a guest that is 192.168.127.2, host-switch's stand-in at 192.168.127.1
//! in another namespace with real forwarding, wsl-proxy's stand-in, and the agent as Rancher Desktop starts it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use support::agent::Agent;
use support::cni::{Cni, Port, Variant};
use support::containerd::{Containerd, ports_label};
use support::docker::Engine;
use support::host_switch::relayed::Relayed;
use support::host_switch::{HostSwitch, bind};
use support::vm::{SWITCH, TAP, Vm};
use support::wsl_proxy::WslProxy;
use support::{Process, TempDir, eventually, run, within};

/// The guest, and what is told of it.
struct World {
    agent: Option<Agent>,
    switch: HostSwitch,
    wsl_proxy: WslProxy,
    vm: Vm,
    dir: TempDir,
}

impl World {
    fn new() -> World {
        let (vm, dir) = (Vm::on_tap(), TempDir::new());
        let serve = || {
            let forwarding = Relayed::start().unwrap();
            HostSwitch::serve(bind(format!("{SWITCH}:80").parse().unwrap()), Box::new(forwarding))
        };
        let switch = vm.host.enter(serve);
        let wsl_proxy = WslProxy::new();
        World { agent: None, switch, wsl_proxy, vm, dir }
    }

    /// Starts the agent; but for paths that would be shared with other tests, it chooses what Rancher Desktop has.
    fn start(&mut self, socket: Option<&std::path::Path>, args: &[&str]) {
        let state = self.dir.join("state").join("state.json").display().to_string();
        let wsl_proxy = self.wsl_proxy.url();
        let own = ["--sink", "http://192.168.127.1:80", "--sink", &wsl_proxy, "--state-file", &state];
        let args = [&own[..], args].concat();
        let agent = match socket {
            Some(socket) => Agent::start(Some(&self.vm.guest), socket, &args),
            None => Agent::run(Some(&self.vm.guest), &args),
        };

        self.agent = Some(agent);
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn wait_200(&self, address: &str) {
        self.vm.wait_200(address, self.agent());
    }

    fn wait_refused(&self, address: &str) {
        self.vm.wait_refused(address);
    }

    /// Waits until host-switch holds exactly the forwards to these ports, of the form `tcp 127.0.0.1:8080`.
    fn wait_forwards(&self, expect: &[&str]) {
        let line = |local: &&str| format!("{local} {TAP}:{}", local.rsplit(':').next().unwrap());
        let expect: Vec<String> = expect.iter().map(line).collect();
        eventually(&format!("{expect:?}"), || match self.switch.forwards() {
            held if held == expect => Ok(()),
            held => Err((held, self.agent().log())),
        });
    }

    fn udp_answer(&self, address: &str) -> Result<String, String> {
        let socket = self.vm.host.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.send_to(b"hello\n", address).map_err(|error| error.to_string())?;
        let mut buffer = [0; 100];
        let n = socket.recv(&mut buffer).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
    }
}

/// With dockerd.
fn docker() -> (World, Engine) {
    let mut world = World::new();
    let engine = Engine::docker(&world.vm.guest);
    world.start(Some(&engine.socket()), &[]);
    world.agent().wait_log("source ready source=sockets");
    world.agent().wait_log("source ready source=docker");
    (world, engine)
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn published_ports_answer_on_the_hosts_loopback_and_in_other_distributions() {
    let (world, engine) = docker();
    engine.web("web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80"]);
    engine.run("echo", &["-p", "5353:53/udp", "-p", "127.0.0.1:5354:53/udp"], &["busybox:local", "/udp_echo", "53"]);
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        world.wait_200(address);
    }
    for address in ["127.0.0.1:5353", "127.0.0.1:5354"] {
        eventually("an echo by UDP", || match world.udp_answer(address) {
            Ok(answer) if answer == "hello\n" => Ok(()),
            other => Err((other, world.agent().log())),
        });
    }
    // s10: of a UDP port, exactly that.
    let all = ["tcp 127.0.0.1:8080", "tcp 127.0.0.1:8081", "udp 127.0.0.1:5353", "udp 127.0.0.1:5354"];
    world.wait_forwards(&all);
    world.wsl_proxy.wait_open(&all);
    engine.remove("web");
    engine.remove("echo");
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        world.wait_refused(address);
    }
    world.wait_forwards(&[]);
    world.wsl_proxy.wait_open(&[]);
    assert_eq!(world.agent.unwrap().stop(), Some(0));
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s12_a_loopback_publish_is_for_the_host_alone() {
    let (world, engine) = docker();
    engine.web("web", &["-p", "127.0.0.1:8080:80"]);
    world.wait_200("127.0.0.1:8080");
    // No rule of the agent's own (scenario 1), and nobody but host-switch gets in through the relay.
    let rules = run(&mut world.vm.guest.command("iptables-save"));
    assert_eq!(rules.lines().filter(|line| line.contains("8080")).count(), 1, "{rules}");
    let refused = world.vm.guest.enter(|| {
        let mut stream = TcpStream::connect(format!("{TAP}:8080")).unwrap();
        stream.write_all(b"GET /busybox HTTP/1.0\r\n\r\n").and_then(|()| stream.read(&mut [0; 1]))
    });
    assert!(matches!(refused, Err(_) | Ok(0)), "{refused:?}");
    assert!(world.vm.connect(&format!("{SWITCH}:8080")).is_err(), "host-switch binds loopback only");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s11_a_host_network_container_comes_and_goes() {
    let (world, engine) = docker();
    for (name, listen) in [("everywhere", "9000"), ("loopback", "127.0.0.1:9001")] {
        let serve = ["busybox:local", "/busybox", "httpd", "-f", "-p", listen, "-h", "/"];
        engine.run(name, &["--network", "host"], &serve);
        let address = format!("127.0.0.1:{}", listen.rsplit(':').next().unwrap());
        world.wait_200(&address);
        engine.remove(name);
        world.wait_refused(&address);
    }
    world.wait_forwards(&[]);
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s14_the_port_is_there_when_docker_run_returns() {
    let (world, engine) = docker();
    for n in 0..10 {
        let (name, address) = (format!("web{n}"), format!("127.0.0.1:{}", 8100 + n));
        engine.web(&name, &["-p", &format!("{}:80", 8100 + n)]);
        within(Duration::from_millis(500), "a connection", || world.vm.connect(&address).map(drop));
    }
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s24_a_killed_agent_s_forwards_are_adopted_or_removed() {
    let (mut world, engine) = docker();
    engine.web("stays", &["-p", "8080:80"]);
    engine.web("goes", &["-p", "8081:80", "-p", "127.0.0.1:8082:80"]);
    let mut other =
        Process::spawn(world.vm.guest.command("/bin/busybox").args(["httpd", "-f", "-p", "8083", "-h", "/"]));
    world.switch.insert("tcp", "127.0.0.1:2222", &format!("{TAP}:22"));
    let all = ["8080", "8081", "8082", "8083"].map(|port| format!("tcp 127.0.0.1:{port}"));
    let with_other: Vec<String> = all.iter().map(|l| format!("{l} {TAP}:{}", &l[l.len() - 4..])).collect();
    eventually("all forwards", || {
        let held = world.switch.forwards();
        if with_other.iter().all(|line| held.contains(line)) { Ok(()) } else { Err((held, world.agent().log())) }
    });
    drop(world.agent.take()); // SIGKILL
    engine.remove("goes");
    other.signal(nix::sys::signal::Signal::SIGKILL);
    other.wait();
    world.switch.forget_requests();
    world.start(Some(&engine.socket()), &[]);
    let expect = [format!("tcp 127.0.0.1:2222 {TAP}:22"), format!("tcp 127.0.0.1:8080 {TAP}:8080")];
    eventually("what is wanted, and what is not ours", || match world.switch.forwards() {
        held if held == expect => Ok(()),
        held => Err((held, world.agent().log())),
    });
    world.wait_200("127.0.0.1:8080");
    let asked: Vec<_> = world.switch.requests().into_iter().filter(|r| r.path.ends_with("/expose")).collect();
    assert!(
        asked.is_empty(),
        "what is there need not be asked for: {:?}",
        asked.iter().map(|r| &r.body).collect::<Vec<_>>()
    );
    assert_eq!(world.agent.take().unwrap().stop(), Some(0));
    assert_eq!(world.switch.forwards(), [format!("tcp 127.0.0.1:2222 {TAP}:22")]);
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s04_s08_containers_before_the_agent_and_gone_by_force() {
    let mut world = World::new();
    let engine = Engine::docker(&world.vm.guest);
    engine.web("early", &["-p", "8080:80"]);
    world.start(Some(&engine.socket()), &["-adminInstall"]);
    eventually("the port on every address", || match world.switch.forwards() {
        held if held == [format!("tcp 0.0.0.0:8080 {TAP}:8080")] => Ok(()),
        held => Err((held, world.agent().log())),
    });
    engine.remove("early");
    world.wait_forwards(&[]);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn containerd_s_ports_take_the_same_way() {
    let mut world = World::new();
    let containerd = Containerd::start(&world.vm.guest);
    let socket = containerd.socket().display().to_string();
    world.start(None, &["-containerd", "-containerdSock", &socket]);
    let cni = Cni::new(&world.vm.guest, Variant::Nft);
    let ports = [("127.0.0.1", 8080), ("0.0.0.0", 8081)];
    let port = |(host_ip, host_port): &(&'static str, u16)| Port {
        host_ip,
        host_port: *host_port,
        container_port: 80,
        protocol: "tcp",
    };
    let attachment = cni.add("default-web", &ports.iter().map(port).collect::<Vec<_>>());
    let recorded = ports.map(|(ip, port)| (ip, port, 80, "tcp"));
    containerd.web("default", "web", &[("nerdctl/ports", &ports_label(&recorded))], Some(&attachment.netns));
    world.wait_200("127.0.0.1:8080");
    world.wait_200("127.0.0.1:8081");
    run(Command::new("ctr").args(["--address", &socket, "-n", "default", "task", "kill", "-s", "9", "web"]));
    world.wait_forwards(&[]);
}
