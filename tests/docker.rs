//! The agent against real engines, dockerd and Podman, in a guest that is a network namespace, with the real host end
//! in another one. Each test has its own namespaces and its own engine.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use support::agent::Agent;
use support::docker::Engine;
use support::receiver::Receiver;
use support::vm::{GUEST, HOST, Vm};
use support::{TempDir, eventually, run};

/// A guest with an engine and the agent, and a host with the host end.
struct World {
    agent: Agent,
    host: Option<Agent>,
    engine: Engine,
    vm: Vm,
    dir: TempDir,
}

impl World {
    /// With the host end's policy at its default unless `host_args` says otherwise.
    fn new(agent_args: &[&str], host_args: &[&str]) -> World {
        let (vm, dir) = (Vm::new(), TempDir::new());
        let engine = Engine::docker(&vm.guest);
        let url = format!("unix://{}", dir.join("host").display());
        let host = Agent::host(Some(&vm.host), &[&["--listen", &url], host_args].concat());
        let agent = Agent::start(Some(&vm.guest), &engine.socket(), &[&["--sink", &url], agent_args].concat());
        agent.wait_log("source ready");
        World { agent, host: Some(host), engine, vm, dir }
    }

    fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        self.vm.connect(address)
    }

    fn wait_200(&self, address: &str) {
        self.vm.wait_200(address, &self.agent);
    }

    fn wait_refused(&self, address: &str) {
        self.vm.wait_refused(address);
    }

    fn host_out(&self) -> String {
        self.host.as_ref().map(Agent::out).unwrap_or_default()
    }
}

fn udp_answer(world: &World, address: &str) -> Result<String, String> {
    let socket = world.vm.host.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(b"hello\n", address).map_err(|error| error.to_string())?;
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn published_ports_answer_on_the_hosts_loopback() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8082:80/tcp"]);
    let publish = ["-p", "5353:53/udp", "-p", "127.0.0.1:5354:53/udp"];
    world.engine.run("echo", &publish, &["busybox:local", "/udp_echo", "53"]);
    for address in ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082", "[::1]:8080"] {
        world.wait_200(address);
    }
    for address in ["127.0.0.1:5353", "127.0.0.1:5354"] {
        eventually("an echo by UDP", || match udp_answer(&world, address) {
            Ok(answer) if answer == "hello\n" => Ok(()),
            other => Err((other, world.agent.log())),
        });
    }
    world.engine.remove("web");
    world.engine.remove("echo");
    for address in ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082", "[::1]:8080"] {
        world.wait_refused(address);
    }
    assert_eq!(world.agent.stop(), Some(0));
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s01_loopback_publish_reaches_the_host_without_a_nat_rule() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "127.0.0.1:8080:80"]);
    world.wait_200("127.0.0.1:8080");
    let rules = run(&mut world.vm.guest.command("iptables-save"));
    let ours: Vec<&str> = rules.lines().filter(|line| line.contains("8080")).collect();
    // Docker's own DNAT rule for 127.0.0.1, and nothing for the address that the host connects to.
    assert_eq!(ours.len(), 1, "{ours:#?}");
    assert!(ours[0].contains("-A DOCKER -d 127.0.0.1/32"), "{ours:#?}");
    // Only the host may use the relay: not another guest, and not the guest's containers.
    let refused = world.vm.guest.enter(|| {
        let mut stream = TcpStream::connect(format!("{GUEST}:8080")).unwrap();
        stream.write_all(b"GET /busybox HTTP/1.0\r\n\r\n").and_then(|()| stream.read(&mut [0; 1]))
    });
    assert!(matches!(refused, Err(_) | Ok(0)), "{refused:?}");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s02_engine_restart_loses_and_leaves_nothing() {
    let mut world = World::new(&["--engine-grace", "60s"], &[]);
    world.engine.web("keep", &["-p", "8080:80", "--restart=always"]);
    world.engine.web("lose", &["-p", "8081:80"]);
    world.wait_200("127.0.0.1:8080");
    world.wait_200("127.0.0.1:8081");
    let pid = world.agent.pid();
    world.engine.halt();
    world.agent.wait_log("source lost");
    world.engine.launch();
    world.wait_200("127.0.0.1:8080");
    world.wait_refused("127.0.0.1:8081");
    world.engine.web("new", &["-p", "8082:80"]);
    world.wait_200("127.0.0.1:8082");
    assert!(world.agent.process.is_running() && world.agent.pid() == pid);
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s04_force_removed_container_is_withdrawn() {
    let world = World::new(&[], &[]);
    for round in 0..5 {
        world.engine.web("web", &["-p", "8080:80"]);
        world.wait_200("127.0.0.1:8080");
        world.engine.remove("web");
        world.wait_refused("127.0.0.1:8080");
        assert!(!world.agent.log().contains("source lost"), "round {round}: {}", world.agent.log());
    }
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s08_container_that_started_before_the_sink_arrives() {
    let mut world = World::new(&[], &[]);
    world.host.take().unwrap().stop();
    world.engine.web("web", &["-p", "8080:80", "--restart=always"]);
    world.agent.wait_log("sink unreachable");
    let url = format!("unix://{}", world.dir.join("host").display());
    world.host = Some(Agent::host(Some(&world.vm.host), &["--listen", &url]));
    world.wait_200("127.0.0.1:8080");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s10_udp_publish_makes_no_tcp_forward() {
    let world = World::new(&[], &[]);
    let sleep = ["busybox:local", "/busybox", "sleep", "1000"];
    world.engine.run("udp", &["-p", "0.0.0.0:1234:1234/udp"], &sleep);
    eventually("the forward", || Some(()).filter(|()| world.host_out().contains("opened")).ok_or(world.host_out()));
    world.engine.remove("udp");
    eventually("its end", || Some(()).filter(|()| world.host_out().contains("closed")).ok_or(world.host_out()));
    let opened: Vec<String> = world.host_out().lines().filter(|l| l.contains("opened")).map(str::to_owned).collect();
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert!(opened[0].contains(r#""protocol":"udp""#) && opened[0].contains("1234"), "{opened:?}");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s12_loopback_publish_stays_on_the_hosts_loopback() {
    // Even where everything else may be bound everywhere.
    let all = ["--allow", "0.0.0.0/0:1-65535", "--allow", "[::/0]:1-65535"];
    let world = World::new(&["-adminInstall"], &all);
    world.engine.web("web", &["-p", "127.0.0.1:8000:80", "-p", "0.0.0.0:8001:80"]);
    world.wait_200("127.0.0.1:8000");
    world.wait_200("127.0.0.1:8001");
    world.wait_200(&format!("{HOST}:8001"));
    world.wait_refused(&format!("{HOST}:8000"));
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s14_the_port_is_there_when_docker_run_returns() {
    let world = World::new(&[], &[]);
    let mut worst = Duration::ZERO;
    for n in 0..10 {
        let (name, publish) = (format!("web{n}"), format!("{}:80", 8100 + n));
        world.engine.web(&name, &["-p", &publish]);
        let begun = Instant::now();
        let address = format!("127.0.0.1:{}", 8100 + n);
        // The client's own start has taken longer than this.
        support::within(Duration::from_millis(500), "a connection", || world.connect(&address).map(drop));
        worst = worst.max(begun.elapsed());
    }
    println!("worst wait after docker run returned: {worst:?}");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s26_a_range_of_ports_opens_and_closes() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "0.0.0.0:20000-20199:20000-20199", "-p", "8080:80"]);
    world.wait_200("127.0.0.1:8080");
    let count = |event: &str| world.host_out().matches(&format!("\"{event}\"")).count();
    eventually("202 forwards", || Some(()).filter(|()| count("opened") == 202).ok_or(count("opened")));
    world.engine.remove("web");
    eventually("their end", || Some(()).filter(|()| count("closed") == 202).ok_or(count("closed")));
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s27_ipv4_and_ipv6_keep_their_own_ports() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "0.0.0.0:8080:80", "-p", "[::]:8081:80"]);
    world.wait_200("127.0.0.1:8080");
    world.wait_200("[::1]:8081");
    world.wait_refused("127.0.0.1:8081");
    world.wait_refused("[::1]:8080");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn s29_dropped_packets_delay_no_other_sink() {
    let receiver = Receiver::new();
    let hole = format!("tcp://{HOST}:3040");
    let world = World::new(&["--sink", &hole, "--sink", &receiver.url()], &[]);
    run(world.vm.guest.command("iptables").args(["-A", "OUTPUT", "-p", "tcp", "--dport", "3040", "-j", "DROP"]));
    let begun = Instant::now();
    world.engine.web("web", &["-p", "0.0.0.0:8080:80"]);
    let run_took = begun.elapsed();
    receiver.wait_held(&["127.0.0.1:8080/tcp"]);
    world.wait_200("127.0.0.1:8080");
    assert!(begun.elapsed() < run_took + Duration::from_secs(2), "{:?}", begun.elapsed());
    world.agent.wait_log("sink unreachable");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn network_disconnect_and_connect_follow() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "0.0.0.0:8080:80"]);
    world.wait_200("127.0.0.1:8080");
    world.engine.ask(&["network", "disconnect", "bridge", "web"]);
    world.wait_refused("127.0.0.1:8080");
    world.engine.ask(&["network", "connect", "bridge", "web"]);
    world.wait_200("127.0.0.1:8080");
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn a_changed_guest_address_is_announced_again() {
    let world = World::new(&[], &[]);
    world.engine.web("web", &["-p", "0.0.0.0:8080:80", "-p", "127.0.0.1:8081:80"]);
    world.wait_200("127.0.0.1:8080");
    world.wait_200("127.0.0.1:8081");
    let ip = |args: &[&str]| run(Command::new("ip").arg("-n").arg(world.vm.guest.name()).args(args));
    ip(&["addr", "del", "192.168.143.2/24", "dev", "eth0"]);
    ip(&["addr", "add", "192.168.143.7/24", "dev", "eth0"]);
    ip(&["route", "add", "default", "via", HOST]);
    world.wait_200("127.0.0.1:8080");
    world.wait_200("127.0.0.1:8081");
    let moved: IpAddr = "192.168.143.7".parse().unwrap();
    assert!(world.host_out().contains(&moved.to_string()), "{}", world.host_out());
}

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn a_paused_container_keeps_its_ports() {
    let (vm, receiver) = (Vm::new(), Receiver::new());
    let engine = Engine::docker(&vm.guest);
    engine.web("web", &["-p", "0.0.0.0:8080:80"]);
    engine.ask(&["pause", "web"]);
    let url = receiver.url();
    let _agent = Agent::start(Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    receiver.wait_held(&["127.0.0.1:8080/tcp"]);
    engine.remove("web");
    receiver.wait_held(&[]);
}

#[test]
#[ignore = "needs root and podman (scripts/deps.sh podman)"]
fn podman_serves_the_same_source() {
    let vm = Vm::new();
    let receiver = Receiver::new();
    let engine = Engine::podman(&vm.guest);
    engine.web("before", &["-p", "8070:80"]);
    // Its list names the first port of a range only.
    engine.web("range", &["-p", "127.0.0.1:8060-8062:80-82"]);
    let url = receiver.url();
    let agent = Agent::start(Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    let range = ["127.0.0.1:8060/tcp", "127.0.0.1:8061/tcp", "127.0.0.1:8062/tcp"];
    receiver.wait_held(&[&range[..], &["127.0.0.1:8070/tcp"]].concat());
    engine.remove("range");
    engine.web("web", &["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "5353:53/udp"]);
    let all = ["127.0.0.1:8070/tcp", "127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp", "127.0.0.1:5353/udp"];
    receiver.wait_held(&all);
    engine.ask(&["restart", "-t", "0", "web"]);
    engine.web("after", &["-p", "8090:80"]);
    receiver.wait_held(&[&all[..], &["127.0.0.1:8090/tcp"]].concat());
    for end in ["stop", "kill"] {
        engine.ask(&[end, "after"]);
        receiver.wait_held(&all);
        engine.ask(&["start", "after"]);
        receiver.wait_held(&[&all[..], &["127.0.0.1:8090/tcp"]].concat());
    }
    engine.ask(&["network", "create", "other"]);
    engine.ask(&["network", "connect", "other", "web"]);
    engine.ask(&["network", "disconnect", "other", "web"]);
    for name in ["before", "web", "after"] {
        engine.remove(name);
    }
    receiver.wait_held(&[]);
    assert!(!agent.log().contains("skipped"), "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
}
