//! The relay next to no relay at all and next to socat: throughput, requests, connections, and what it keeps of them.
//!
//! The relay is that of `rancher-desktop-hostagent` in a process of its own, as socat's are. All three ways lead to the
//! same servers in this process, under the same port numbers on three loopback addresses, and take turns, so that
//! whatever else the machine does meets all of them.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::net::{self, Servers, TARGET, on};
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::{Process, TempDir, descriptors, eventually, status_kb};

const RELAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const SOCAT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const ROUND_CONNECTIONS: u64 = 1_000;
/// Before the rounds.
const WARM_UP: Duration = Duration::from_millis(200);
const WARM_UP_CONNECTIONS: u64 = 100;

const SHORT_CONNECTIONS: u64 = 10_000;
const SHORT_CONNECTIONS_WARM_UP: u64 = 1_000;

pub fn measure() -> Vec<Row> {
    let servers = Servers::start();
    let relay = Relay::start(&servers);
    let tcp = [servers.drain, servers.echo, servers.once];
    let _socats = tcp.map(socat);
    for port in tcp {
        eventually("socat listens", || std::net::TcpStream::connect(on(SOCAT, port)).map(drop));
    }
    let three = [TARGET, RELAY, SOCAT];
    let two = [TARGET, RELAY];

    let throughput =
        rounds("throughput", three, |ip, warm| net::throughput(on(ip, servers.drain), time(warm))).map(|b| b / 1e9);
    let requests = rounds("requests", three, |ip, warm| net::requests(on(ip, servers.echo), time(warm)));
    let connections = rounds("connections", three, |ip, warm| {
        net::connections(on(ip, servers.once), if warm { WARM_UP_CONNECTIONS } else { ROUND_CONNECTIONS })
    });
    let datagrams = rounds("datagrams", two, |ip, warm| net::datagrams(on(ip, servers.udp), time(warm)));

    let tcp_row = |claim: &str, [direct, relay, socat]: [f64; 3], show: fn(f64) -> String| {
        let [direct_shown, relay_shown, socat_shown] = [direct, relay, socat].map(show);
        let ratios = format!("{:.2} × direct, {:.2} × socat", relay / direct, relay / socat);
        Row::report(claim, format!("direct {direct_shown}, relay {relay_shown}, socat {socat_shown}: {ratios}"))
    };
    let per_second = |value: f64| format!("{}/s", thousands(value as u64));
    let build = relay.build;
    let [direct, relayed] = datagrams;
    let mut rows = vec![
        tcp_row(
            &format!("Relay ({build}): TCP, one stream, median of {ROUNDS} rounds of {} s", ROUND.as_secs()),
            throughput,
            |value| format!("{value:.2} GB/s"),
        ),
        tcp_row("Relay: TCP, request and response of 64 bytes, one connection", requests, per_second),
        tcp_row("Relay: TCP, a connection for each request", connections, per_second),
        Row::report(
            "Relay: UDP, request and response of 64 bytes",
            format!("direct {}, relay {}: {:.2} × direct", per_second(direct), per_second(relayed), relayed / direct),
        ),
    ];
    rows.extend(relay.short_connections(&servers));
    rows
}

fn time(warm_up: bool) -> Duration {
    if warm_up { WARM_UP } else { ROUND }
}

/// Medians, for each of the ways, of rounds in which each has its turn.
fn rounds<const WAYS: usize>(
    what: &str,
    ways: [Ipv4Addr; WAYS],
    measure: impl Fn(Ipv4Addr, bool) -> f64,
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

fn socat(port: u16) -> Process {
    let mut command = Command::new("socat");
    command.arg(format!("TCP-LISTEN:{port},fork,reuseaddr,bind={SOCAT}")).arg(format!("TCP:{TARGET}:{port}"));
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

    /// Descriptors and memory before and after many connections that were opened, used once, and closed.
    fn short_connections(&self, servers: &Servers) -> [Row; 2] {
        let pid = self.host.pid();
        let after = |count: u64| {
            net::connections(on(RELAY, servers.once), count);
            // The last ones have a thread each until they are closed.
            eventually("the end of the connections", || match status_kb(pid, "Threads:") {
                n if n <= self.threads => Ok(()),
                n => Err(n),
            });
            (descriptors(pid), status_kb(pid, "VmRSS:"))
        };
        let (descriptors_before, rss_before) = after(SHORT_CONNECTIONS_WARM_UP);
        let (descriptors_after, rss_after) = after(SHORT_CONNECTIONS);
        let claim = format!(
            "Relay: {} short connections, after {} to warm up",
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
}
