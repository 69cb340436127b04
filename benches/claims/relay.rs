//! The relay next to no relay at all and next to socat: throughput, requests, connections, and what it keeps of them.
//!
//! Twice: over loopback, the relay of `rancher-desktop-hostagent`; and over a link, from the address of a guest's tap
//! interface to its loopback, that of `rancher-desktop-guestagent` in host-switch mode. Relays and socats are processes of
//! their own, and lead to the same servers in this process. The ways take turns, so that whatever else the machine does
//! meets all of them.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::net::{self, Servers, on};
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::host_switch::HostSwitch;
use crate::support::vm::Vm;
use crate::support::{Process, TempDir, descriptors, eventually, run, status_kb};

const TARGET: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const RELAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const SOCAT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// In the guest, on its link to the host: the address of the tap interface, and others for the other ways.
const TAP: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const TAP_SOCAT: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 3);
const TAP_DIRECT: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 4);
const TAP_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const ROUND_CONNECTIONS: u64 = 1_000;
/// Before the rounds.
const WARM_UP: Duration = Duration::from_millis(200);
const WARM_UP_CONNECTIONS: u64 = 100;

const SHORT_CONNECTIONS: u64 = 10_000;
const SHORT_CONNECTIONS_WARM_UP: u64 = 1_000;

pub fn measure() -> Vec<Row> {
    let mut rows = over_loopback();
    rows.extend(over_a_link());
    rows
}

fn over_loopback() -> Vec<Row> {
    let servers = Servers::start(TARGET);
    let relay = Relay::start(&servers);
    let _socats = tcp(&servers).map(|port| socat(Command::new("socat"), SOCAT, TARGET, port));
    for port in tcp(&servers) {
        eventually("socat listens", || std::net::TcpStream::connect(on(SOCAT, port)).map(drop));
    }
    let way = |ip| Way { ip, servers: &servers };
    let mut rows = compare(&format!("Relay ({})", relay.build), "Relay", [way(TARGET), way(RELAY), way(SOCAT)]);
    rows.extend(short_connections("Relay", relay.host.pid(), relay.threads, way(RELAY)));
    rows
}

fn over_a_link() -> Vec<Row> {
    let vm = Vm::new();
    for (namespace, device, ip) in [
        (&vm.host, "vm0", TAP_HOST),
        (&vm.guest, "eth0", TAP),
        (&vm.guest, "eth0", TAP_SOCAT),
        (&vm.guest, "eth0", TAP_DIRECT),
    ] {
        run(Command::new("ip").args(["-n", namespace.name(), "addr", "add", &format!("{ip}/24"), "dev", device]));
    }
    run(Command::new("ip").args(["-n", vm.guest.name(), "route", "replace", "default", "via", &TAP_HOST.to_string()]));
    let [servers, direct] = vm.guest.enter(|| [Ipv4Addr::LOCALHOST, TAP_DIRECT].map(Servers::start));
    let (program, engine, dir) = (Program::agent(), EngineStub::new(), TempDir::new());
    let port = |port: u16| port.to_string();
    let [drain, echo, once, udp] = [servers.drain, servers.echo, servers.once, servers.udp].map(port);
    let lo = "127.0.0.1";
    engine
        .add(&id(1), ports(&[("1/tcp", lo, &drain), ("2/tcp", lo, &echo), ("3/tcp", lo, &once), ("4/udp", lo, &udp)]));
    let switch = HostSwitch::start_in(&vm.host, on(TAP_HOST, 80));
    let state = dir.join("state").display().to_string();
    let args = ["--sink", &switch.url(), "-sockets=false", "--state-file", &state];
    let agent = Agent::start_program(&program.path, Some(&vm.guest), &engine.socket(), &args);
    eventually("four forwards", || match switch.forwards() {
        forwards if forwards.len() == 4 => Ok(()),
        forwards => Err((forwards, agent.log())),
    });
    let _socats = tcp(&servers).map(|port| socat(vm.guest.command("socat"), TAP_SOCAT, Ipv4Addr::LOCALHOST, port));
    vm.host.enter(|| {
        for port in tcp(&servers) {
            eventually("socat listens", || std::net::TcpStream::connect(on(TAP_SOCAT, port)).map(drop));
        }
        let threads = status_kb(agent.pid(), "Threads:");
        let way = |ip| Way { ip, servers: &servers };
        let three = [Way { ip: TAP_DIRECT, servers: &direct }, way(TAP), way(TAP_SOCAT)];
        let name = "Relay from the tap address";
        let mut rows = compare(&format!("{name} ({}, over a veth)", program.build), name, three);
        rows.extend(short_connections(name, agent.pid(), threads, way(TAP)));
        rows
    })
}

/// One way to servers.
#[derive(Clone, Copy)]
struct Way<'a> {
    ip: Ipv4Addr,
    servers: &'a Servers,
}

impl Way<'_> {
    fn to(self, port: fn(&Servers) -> u16) -> SocketAddr {
        on(self.ip, port(self.servers))
    }
}

fn tcp(servers: &Servers) -> [u16; 3] {
    [servers.drain, servers.echo, servers.once]
}

/// Directly, by the relay and by socat, in that order.
fn compare(first: &str, name: &str, three: [Way<'_>; 3]) -> Vec<Row> {
    let [direct, relay, _] = three;
    let throughput =
        rounds("throughput", three, |way, warm| net::throughput(way.to(|s| s.drain), time(warm))).map(|b| b / 1e9);
    let requests = rounds("requests", three, |way, warm| net::requests(way.to(|s| s.echo), time(warm)));
    let connections = rounds("connections", three, |way, warm| {
        net::connections(way.to(|s| s.once), if warm { WARM_UP_CONNECTIONS } else { ROUND_CONNECTIONS })
    });
    let datagrams = rounds("datagrams", [direct, relay], |way, warm| net::datagrams(way.to(|s| s.udp), time(warm)));

    let tcp_row = |claim: &str, [direct, relay, socat]: [f64; 3], show: fn(f64) -> String| {
        let [direct_shown, relay_shown, socat_shown] = [direct, relay, socat].map(show);
        let ratios = format!("{:.2} × direct, {:.2} × socat", relay / direct, relay / socat);
        Row::report(claim, format!("direct {direct_shown}, relay {relay_shown}, socat {socat_shown}: {ratios}"))
    };
    let per_second = |value: f64| format!("{}/s", thousands(value as u64));
    let [direct, relayed] = datagrams;
    vec![
        tcp_row(
            &format!("{first}: TCP, one stream, median of {ROUNDS} rounds of {} s", ROUND.as_secs()),
            throughput,
            |value| format!("{value:.2} GB/s"),
        ),
        tcp_row(&format!("{name}: TCP, request and response of 64 bytes, one connection"), requests, per_second),
        tcp_row(&format!("{name}: TCP, a connection for each request"), connections, per_second),
        Row::report(
            &format!("{name}: UDP, request and response of 64 bytes"),
            format!("direct {}, relay {}: {:.2} × direct", per_second(direct), per_second(relayed), relayed / direct),
        ),
    ]
}

fn time(warm_up: bool) -> Duration {
    if warm_up { WARM_UP } else { ROUND }
}

/// Medians, for each of the ways, of rounds in which each has its turn.
fn rounds<'a, const WAYS: usize>(
    what: &str,
    ways: [Way<'a>; WAYS],
    measure: impl Fn(Way<'a>, bool) -> f64,
) -> [f64; WAYS] {
    let mut values = [(); WAYS].map(|()| Vec::new());
    for way in ways {
        measure(way, true);
    }
    for _ in 0..ROUNDS {
        for (way, values) in ways.iter().zip(&mut values) {
            values.push(measure(*way, false));
        }
    }
    eprintln!("  {what} (direct, relay, socat), every round: {values:.0?}");
    values.map(|values| Samples::new(values).median())
}

fn socat(mut command: Command, ip: Ipv4Addr, target: Ipv4Addr, port: u16) -> Process {
    command.arg(format!("TCP-LISTEN:{port},fork,reuseaddr,bind={ip}")).arg(format!("TCP:{target}:{port}"));
    Process::spawn(command.stdin(Stdio::null()))
}

/// The host end, which relays from [`RELAY`] to the same ports on [`TARGET`].
struct Relay {
    host: Agent,
    build: &'static str,
    /// How many it has without connections.
    threads: u64,
    _dir: TempDir,
}

impl Relay {
    fn start(servers: &Servers) -> Relay {
        let (program, dir) = (Program::hostagent(), TempDir::new());
        let socket = dir.join("host");
        let url = format!("unix://{}", socket.display());
        let args = ["--listen", &url, "--connect-address", &TARGET.to_string()];
        let host = Agent::host_program(&program.path, None, &args);
        let binding = |port: u16| json!([{"HostIp": RELAY.to_string(), "HostPort": port.to_string()}]);
        let ports = json!({
            "1/tcp": binding(servers.drain),
            "2/tcp": binding(servers.echo),
            "3/tcp": binding(servers.once),
            "4/udp": binding(servers.udp),
        });
        let addrs = json!([{"network": "ip+net", "addr": format!("{TARGET}/8")}]);
        let document = json!({"remove": false, "ports": ports, "connectAddrs": addrs});
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(format!("{document}\n").as_bytes()).unwrap();
        eventually("four forwards", || {
            let out = host.out();
            if out.matches("\"opened\"").count() == 4 { Ok(()) } else { Err(out + &host.log()) }
        });
        let threads = status_kb(host.pid(), "Threads:");
        Relay { host, build: program.build, threads, _dir: dir }
    }
}

/// Descriptors and memory before and after many connections that were opened, used once, and closed.
fn short_connections(name: &str, pid: u32, threads: u64, way: Way<'_>) -> [Row; 2] {
    let after = |count: u64| {
        net::connections(way.to(|s| s.once), count);
        // The last ones have a thread each until they are closed.
        eventually("the end of the connections", || match status_kb(pid, "Threads:") {
            n if n <= threads => Ok(()),
            n => Err(n),
        });
        (descriptors(pid), status_kb(pid, "VmRSS:"))
    };
    let (descriptors_before, rss_before) = after(SHORT_CONNECTIONS_WARM_UP);
    let (descriptors_after, rss_after) = after(SHORT_CONNECTIONS);
    let claim = format!(
        "{name}: {} short connections, after {} to warm up",
        thousands(SHORT_CONNECTIONS),
        thousands(SHORT_CONNECTIONS_WARM_UP)
    );
    [
        Row::at_most(
            &format!("{claim}: descriptors more than before"),
            0.0,
            "",
            descriptors_after as f64 - descriptors_before as f64,
            format!("{descriptors_before} before, {descriptors_after} after"),
        ),
        Row::report(&format!("{claim}: RSS"), format!("{rss_before} KiB before, {rss_after} KiB after")),
    ]
}
