//! The sockets source: the real agent and the kernel's real sockets, in a guest that is a network namespace of its own.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr, ReusePort};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket};
use serde_json::Value;
use support::agent::Agent;
use support::engine_stub::{self, EngineStub};
use support::receiver::Receiver;
use support::vm::{GUEST, Namespace, Vm};
use support::{Process, eventually, run};

/// The source alone, with what it claims on standard output; and a short interval.
const ARGS: [&str; 5] = ["-sockets", "-iptables=false", "--sink=stdout:", "-adminInstall", "--socket-interval=50ms"];

/// Every line so far: whether it adds, who claims it, and what.
fn changes(agent: &Agent) -> Vec<(bool, String, String)> {
    let out = agent.out();
    // The last line may be half written.
    let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let ip = line["hostIp"].as_str().unwrap();
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let owner = format!("{}:{}", line["source"].as_str().unwrap(), line["owner"].as_str().unwrap());
        assert_eq!(line["hostPort"], line["containerPort"]);
        let binding = format!("{ip}:{}/{}", line["hostPort"], line["protocol"].as_str().unwrap());
        (line["change"] == "add", owner, binding)
    };
    whole.lines().map(read).collect()
}

/// What is announced now.
fn held(agent: &Agent) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for (adds, _, binding) in changes(agent) {
        if adds {
            held.insert(binding);
        } else {
            held.remove(&binding);
        }
    }
    held
}

fn wait_held(agent: &Agent, expect: &[&str]) {
    let expect: BTreeSet<String> = expect.iter().map(ToString::to_string).collect();
    eventually(&format!("{expect:?}"), || match held(agent) {
        held if held == expect => Ok(()),
        held => Err((held, agent.log())),
    });
}

/// What was ever announced.
fn announced(agent: &Agent) -> BTreeSet<String> {
    changes(agent).into_iter().filter(|(adds, _, _)| *adds).map(|(_, _, binding)| binding).collect()
}

/// Of the guest.
fn tcp(guest: &Namespace, addr: &str) -> OwnedFd {
    let addr: SocketAddr = addr.parse().unwrap();
    guest.enter(|| TcpListener::bind(addr).unwrap()).into()
}

fn udp(guest: &Namespace, addr: &str) -> OwnedFd {
    let addr: SocketAddr = addr.parse().unwrap();
    guest.enter(|| UdpSocket::bind(addr).unwrap()).into()
}

/// As `tcp` and `udp`, on `[::]`, of both families or of IPv6 alone.
fn on_all(guest: &Namespace, kind: SockType, port: u16, v6only: bool) -> OwnedFd {
    guest.enter(|| {
        let socket = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, Ipv6V6Only, &v6only).unwrap();
        open(socket, kind, (Ipv6Addr::UNSPECIFIED, port).into())
    })
}

fn on_link_local(interface: &str, port: u16) -> Result<TcpListener, String> {
    let entries = nix::ifaddrs::getifaddrs().unwrap().filter(|entry| entry.interface_name == interface);
    let mut addrs = entries.filter_map(|entry| entry.address?.as_sockaddr_in6().map(|addr| SocketAddrV6::from(*addr)));
    let addr = addrs.find(|addr| addr.ip().is_unicast_link_local()).ok_or("no address")?;
    let addr = SocketAddrV6::new(*addr.ip(), port, 0, addr.scope_id());
    TcpListener::bind(addr).map_err(|error| format!("{addr}: {error}"))
}

fn open(socket: OwnedFd, kind: SockType, addr: SocketAddr) -> OwnedFd {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).unwrap();
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(8).unwrap()).unwrap();
    }
    socket
}

/// One of several on that address.
fn shared(guest: &Namespace, addr: &str) -> OwnedFd {
    guest.enter(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, ReuseAddr, &true).unwrap();
        setsockopt(&socket, ReusePort, &true).unwrap();
        open(socket, SockType::Stream, addr.parse().unwrap())
    })
}

fn agent(vm: &Vm, more: &[&str]) -> Agent {
    let agent = Agent::run(Some(&vm.guest), &[&ARGS, more].concat());
    agent.wait_log("source ready");
    agent
}

/// User and system time.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
}

#[test]
#[ignore = "needs root and iproute2"]
fn s11_a_process_binds_and_exits() {
    let vm = Vm::new();
    let _before = tcp(&vm.guest, "0.0.0.0:80");
    let agent = agent(&vm, &[]);
    wait_held(&agent, &["0.0.0.0:80/tcp"]);
    let mut server = vm.guest.command("/bin/busybox");
    let mut server =
        Process::spawn(server.args(["httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/tmp"]).stdin(Stdio::null()));
    wait_held(&agent, &["0.0.0.0:80/tcp", "127.0.0.1:8080/tcp"]);
    assert!(server.is_running());
    server.signal(nix::sys::signal::Signal::SIGKILL);
    wait_held(&agent, &["0.0.0.0:80/tcp"]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
#[ignore = "needs root and iproute2"]
fn s11_every_protocol_and_family() {
    let vm = Vm::new();
    let agent = agent(&vm, &[]);
    let (stream, datagram) = (SockType::Stream, SockType::Datagram);
    let open: [(OwnedFd, &[&str]); 9] = [
        (tcp(&vm.guest, "0.0.0.0:1001"), &["0.0.0.0:1001/tcp"]),
        (udp(&vm.guest, "0.0.0.0:1002"), &["0.0.0.0:1002/udp"]),
        (tcp(&vm.guest, "[::1]:1003"), &["[::1]:1003/tcp"]),
        (udp(&vm.guest, "127.0.0.2:1004"), &["127.0.0.2:1004/udp"]),
        (on_all(&vm.guest, stream, 1005, false), &["[::]:1005/tcp", "0.0.0.0:1005/tcp"]),
        (on_all(&vm.guest, stream, 1006, true), &["[::]:1006/tcp"]),
        (on_all(&vm.guest, datagram, 1007, false), &["[::]:1007/udp", "0.0.0.0:1007/udp"]),
        (on_all(&vm.guest, datagram, 1008, true), &["[::]:1008/udp"]),
        (tcp(&vm.guest, "[::ffff:127.0.0.1]:1009"), &["127.0.0.1:1009/tcp"]),
    ];
    let mut expect: Vec<&str> = open.iter().flat_map(|(_, expect)| expect.iter().copied()).collect();
    wait_held(&agent, &expect);
    for (socket, gone) in open {
        drop(socket);
        expect.retain(|binding| !gone.contains(binding));
        wait_held(&agent, &expect);
    }
    // A change of one leaves the others alone: each came and went once.
    let changes = changes(&agent);
    assert_eq!(changes.len(), 2 * announced(&agent).len(), "{changes:?}");
    assert!(changes.iter().any(|(_, owner, binding)| owner == "sockets:tcp/1005" && binding == "0.0.0.0:1005/tcp"));
}

#[test]
#[ignore = "needs root and iproute2"]
fn a_port_that_two_processes_share_stays_until_the_last_has_gone() {
    let vm = Vm::new();
    let agent = agent(&vm, &[]);
    let first = shared(&vm.guest, "0.0.0.0:8080");
    wait_held(&agent, &["0.0.0.0:8080/tcp"]);
    let second = shared(&vm.guest, "0.0.0.0:8080");
    let _marker = tcp(&vm.guest, "127.0.0.1:1");
    wait_held(&agent, &["0.0.0.0:8080/tcp", "127.0.0.1:1/tcp"]);
    drop(first);
    let _marker = tcp(&vm.guest, "127.0.0.1:2");
    wait_held(&agent, &["0.0.0.0:8080/tcp", "127.0.0.1:1/tcp", "127.0.0.1:2/tcp"]);
    drop(second);
    wait_held(&agent, &["127.0.0.1:1/tcp", "127.0.0.1:2/tcp"]);
    assert_eq!(changes(&agent).iter().filter(|(_, owner, _)| owner == "sockets:tcp/8080").count(), 2);
}

#[test]
#[ignore = "needs root and iproute2"]
fn what_listens_for_less_than_an_interval_is_not_announced() {
    let vm = Vm::new();
    let agent = agent(&vm, &["--socket-interval=1s"]);
    // In each part of the interval.
    for port in 2000..2030 {
        let socket = tcp(&vm.guest, &format!("0.0.0.0:{port}"));
        sleep(Duration::from_millis(50));
        drop(socket);
    }
    let _marker = tcp(&vm.guest, "127.0.0.1:1");
    wait_held(&agent, &["127.0.0.1:1/tcp"]);
    assert_eq!(announced(&agent).len(), 1, "{:?}", changes(&agent));
}

#[test]
#[ignore = "needs root and iproute2"]
fn s16_unrelated_sockets_cost_nothing() {
    const FOR: Duration = Duration::from_secs(5);
    const CPU_MAX: Duration = Duration::from_millis(100);
    let vm = Vm::new();
    let (_stays, agent) = (tcp(&vm.guest, "0.0.0.0:8080"), agent(&vm, &["--socket-interval=200ms"]));
    wait_held(&agent, &["0.0.0.0:8080/tcp"]);
    let (before, begun, mut opened) = (cpu(agent.pid()), Instant::now(), 0);
    while begun.elapsed() < FOR {
        // 90 a second, of which each look sees one or none.
        drop((tcp(&vm.guest, "127.0.0.1:0"), udp(&vm.guest, "0.0.0.0:0")));
        opened += 2;
        sleep(Duration::from_millis(20));
    }
    let used = cpu(agent.pid()) - before;
    assert_eq!(announced(&agent).len(), 1, "{:?}", changes(&agent));
    assert!(opened > 200 && used <= CPU_MAX, "{used:?} for {opened} sockets in {FOR:?}");
}

#[test]
#[ignore = "needs root and iproute2"]
fn s18_what_is_the_guests_own_is_never_announced() {
    let vm = Vm::new();
    let guest = &vm.guest;
    for args in ["link add bridge0 type bridge", "addr add 172.17.0.1/16 dev bridge0", "link set bridge0 up"] {
        run(std::process::Command::new("ip").args(["-n", guest.name()]).args(args.split(' ')));
    }
    let agent = agent(&vm, &[]);
    let mut open = Vec::new();
    for port in [68, 323, 67, 546, 547, 5353] {
        open.push(udp(guest, &format!("0.0.0.0:{port}")));
        open.push(on_all(guest, SockType::Datagram, port, true));
    }
    // Addresses that the host does not connect to: a bridge's, the guest's own on a link that no sink uses, a group's.
    open.push(tcp(guest, "172.17.0.1:8080"));
    open.push(tcp(guest, &format!("{GUEST}:8080")));
    open.push(udp(guest, "224.0.0.251:1900"));
    // The kernel gives a link its address in its own time, and has it used once it is known that nobody else has it.
    let link_local = eventually("a socket on a link-local address", || guest.enter(|| on_link_local("eth0", 8080)));
    // Clients are not servers: these have ports that nobody asked for.
    let client = guest.enter(|| {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"hello", "127.0.0.1:9").unwrap();
        client
    });
    for port in [1, 2] {
        open.push(tcp(guest, &format!("127.0.0.1:{port}")));
        eventually("the marker", || held(&agent).contains(&format!("127.0.0.1:{port}/tcp")).then_some(()).ok_or(()));
    }
    let expect: BTreeSet<String> = ["127.0.0.1:1/tcp".into(), "127.0.0.1:2/tcp".into()].into();
    assert_eq!(announced(&agent), expect, "{client:?} {link_local:?}");
}

#[test]
#[ignore = "needs root and iproute2"]
fn s19_denied_sockets_are_not_announced() {
    let vm = Vm::new();
    let (low, middle, high) = ("0.0.0.0:9000", "0.0.0.0:9005", "0.0.0.0:9011");
    let _open = [tcp(&vm.guest, low), tcp(&vm.guest, middle), tcp(&vm.guest, high), udp(&vm.guest, low)];
    let range = "--deny=tcp/9000-9010@sockets";
    for (rules, expect) in [
        (&["--deny=*"][..], &[][..]),
        (&["--deny=*@sockets"], &[]),
        (&[range], &["0.0.0.0:9011/tcp", "0.0.0.0:9000/udp"]),
        (&["--allow=tcp/9005", range], &["0.0.0.0:9005/tcp", "0.0.0.0:9011/tcp", "0.0.0.0:9000/udp"]),
        (&[range, "--allow=tcp/9005"], &["0.0.0.0:9011/tcp", "0.0.0.0:9000/udp"]),
        (&["--deny=*@docker", "--deny=tcp/*"], &["0.0.0.0:9000/udp"]),
    ] {
        let agent = agent(&vm, rules);
        wait_held(&agent, expect);
        // It has told of its whole view, which is decided on as one.
        assert_eq!(announced(&agent).len(), expect.len(), "{rules:?}: {:?}", changes(&agent));
        let denied = agent.log().matches("denied binding=").count();
        assert_eq!(denied, 4 - expect.len(), "{}", agent.log());
    }
}

#[test]
#[ignore = "needs root and iproute2"]
fn s15_the_agents_own_listeners_are_not_claimed() {
    let (vm, engine) = (Vm::new(), EngineStub::new());
    let host = format!("unix://{}", engine.socket().display());
    let args = [&ARGS[..], &["-docker", "--sink=listener:"]].concat();
    let program = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");
    let agent = Agent::run_program(program.as_ref(), Some(&vm.guest), &args, &[("DOCKER_HOST", &host)]);
    engine.wait_subscriptions(1);
    engine.start(&engine_stub::id(1), engine_stub::ports(&[("80/tcp", "0.0.0.0", "80")]));
    eventually("a listener", || match vm.guest.listening() {
        seen if seen == ["0.0.0.0:80"] => Ok(()),
        seen => Err((seen, agent.log())),
    });
    let marker = tcp(&vm.guest, "127.0.0.1:1");
    wait_held(&agent, &["0.0.0.0:80/tcp", "127.0.0.1:1/tcp"]);
    engine.end(&engine_stub::id(1));
    wait_held(&agent, &["127.0.0.1:1/tcp"]);
    drop(marker);
    wait_held(&agent, &[]);
    let owners: BTreeSet<String> = changes(&agent).into_iter().map(|(_, owner, _)| owner).collect();
    assert_eq!(owners, [format!("docker:{}", engine_stub::id(1)), "sockets:tcp/1".into()].into());
}

#[test]
#[ignore = "needs root and iproute2"]
fn what_a_container_leaves_listening_is_announced_again_also_where_sockets_come_and_go() {
    let (vm, engine) = (Vm::new(), EngineStub::new());
    let host = format!("unix://{}", engine.socket().display());
    let args = [&ARGS[..], &["-docker"]].concat();
    let program = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");
    let agent = Agent::run_program(program.as_ref(), Some(&vm.guest), &args, &[("DOCKER_HOST", &host)]);
    engine.wait_subscriptions(1);
    let _server = tcp(&vm.guest, "0.0.0.0:8080");
    wait_held(&agent, &["0.0.0.0:8080/tcp"]);
    let published = [("8080/tcp", "0.0.0.0", "8080"), ("8081/tcp", "0.0.0.0", "8081")];
    engine.start(&engine_stub::id(1), engine_stub::ports(&published));
    wait_held(&agent, &["0.0.0.0:8080/tcp", "0.0.0.0:8081/tcp"]);
    engine.end(&engine_stub::id(1));
    wait_held(&agent, &[]);
    // No look sees what the one before it saw.
    let mut client = udp(&vm.guest, "0.0.0.0:0");
    eventually("the socket's port", || {
        client = udp(&vm.guest, "0.0.0.0:0");
        if held(&agent).len() == 1 { Ok(()) } else { Err((client.as_raw_fd(), agent.log())) }
    });
}

#[test]
#[ignore = "needs root and iproute2"]
fn a_loopback_socket_is_relayed_and_the_relay_is_not_claimed() {
    let (vm, receiver) = (Vm::new(), Receiver::new());
    let args = ["-sockets", "-iptables=false", "--socket-interval=50ms", "--sink", &receiver.url()];
    let agent = Agent::run(Some(&vm.guest), &args);
    let server = tcp(&vm.guest, "127.0.0.1:8080");
    let also_outward = tcp(&vm.guest, &format!("{GUEST}:8081"));
    receiver.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    assert!(vm.connect(&format!("{GUEST}:8080")).is_ok(), "the relay is there");
    let marker = tcp(&vm.guest, "127.0.0.1:1");
    receiver.wait_held(&["127.0.0.1:1/tcp", "127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    drop((server, also_outward));
    receiver.wait_held(&["127.0.0.1:1/tcp"]);
    vm.wait_refused(&format!("{GUEST}:8080"));
    drop(marker);
    receiver.wait_held(&[]);
    assert!(!agent.log().contains(&format!("published={GUEST}:8080")), "{}", agent.log());
}

#[test]
#[ignore = "needs root, iproute2 and setpriv"]
fn a_conflict_names_the_process_of_another_user() {
    let (vm, receiver) = (Vm::new(), Receiver::new());
    let (_server, taken) = (tcp(&vm.guest, "127.0.0.1:8080"), format!("{GUEST}:8080"));
    let mut other = vm.guest.command("setpriv");
    other.args(["--reuid=54321", "--regid=54321", "--clear-groups"]);
    other.args(["/bin/busybox", "httpd", "-f", "-p", &taken, "-h", "/tmp"]);
    let other = Process::spawn(other.stdin(Stdio::null()));
    eventually("it listens", || {
        vm.guest.listening().contains(&taken).then_some(()).ok_or_else(|| vm.guest.listening())
    });
    let args = ["-sockets", "-iptables=false", "--socket-interval=50ms", "--sink", &receiver.url()];
    let agent = Agent::run(Some(&vm.guest), &args);
    let name = std::fs::read_to_string(format!("/proc/{}/comm", other.pid())).unwrap();
    agent.wait_log(&format!("relay: {taken} is in use in the guest by {} (pid {})", name.trim(), other.pid()));
    // Looking has left nothing behind: no thread has more than it needs to bind.
    const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
    for task in std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(u64::from_str_radix(effective.trim(), 16).unwrap(), CAP_NET_BIND_SERVICE, "{status}");
    }
    drop(other);
    receiver.wait_held(&["127.0.0.1:8080/tcp"]);
}

#[test]
fn s11_for_anyone_on_loopback() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    let allow = format!("--allow=tcp/{}", addr.port());
    // Whatever else listens on this machine.
    let agent = Agent::run(None, &[&ARGS[..], &[&allow, "--deny=*"]].concat());
    wait_held(&agent, &[&format!("{addr}/tcp")]);
    drop(server);
    wait_held(&agent, &[]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
#[ignore = "needs root and iproute2"]
fn a_namespace_without_sockets_is_a_complete_view() {
    let vm = Vm::new();
    let agent = agent(&vm, &[]);
    assert_eq!(changes(&agent), []);
    assert_eq!(agent.stop(), Some(0));
}
