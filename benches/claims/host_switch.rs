//! How long it takes from the engine's word that a container has started until host-switch has the request for its
//! port, and how long thousands of ports take with a host-switch that is slow.
//!
//! host-switch is a stand-in, in this process (`tests/support/host_switch.rs` says what it keeps to). For the first, it is
//! on the far side of a link, dockerd is the real one, the beginning is its own time-stamp, and the end is when the
//! request has been read; sockets are not watched, which would often be sooner. For the second, the engine is of paper,
//! and everything goes over loopback; the beginning is just before the event is written, the end when the last request
//! has been carried out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::docker::{self, Starts, create, milliseconds, request};
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::docker::Engine;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::host_switch::{Fault, HostSwitch, Request};
use crate::support::vm::{GUEST, HOST, Vm};
use crate::support::{DEADLINE, TempDir, eventually};

const STARTS: usize = 200;
const WARM_UP: usize = 5;
/// Containers that run at the same time.
const ALIVE: usize = 3;
const FIRST_PORT: usize = 20_000;

const MANY: usize = 5_000;
const EACH_TAKES: Duration = Duration::from_millis(5);

const MEDIAN_MS_MAX: f64 = 6.0;
const P99_MS_MAX: f64 = 30.0;
const MANY_S_MAX: f64 = 5.0;

pub fn measure() -> Vec<Row> {
    let mut rows = starts();
    rows.extend(many_ports());
    rows
}

/// An agent that tells that host-switch, and keeps its state in that directory.
pub fn agent(program: &Program, vm: &Vm, server: &HostSwitch, dir: &TempDir, docker: &Path, args: &[&str]) -> Agent {
    let (url, state) = (server.url(), dir.join("state.json").display().to_string());
    let common = ["--sink", &url, "--state-file", &state, "-tap-interface-ip", GUEST];
    Agent::start_program(&program.path, Some(&vm.guest), docker, &[&common, args].concat())
}

/// Where host-switch is, seen from the guest.
pub fn start(vm: &Vm) -> HostSwitch {
    HostSwitch::start_in(&vm.host, SocketAddr::new(HOST.parse().unwrap(), 80))
}

fn is_expose(request: &Request) -> bool {
    request.path.ends_with("/expose")
}

fn starts() -> Vec<Row> {
    let (vm, dir, program) = (Vm::new(), TempDir::new(), Program::agent());
    let server = start(&vm);
    let engine = Engine::docker(&vm.guest);
    // With sockets, dockerd's proxy is often seen and its port exposed before the engine says that the container runs.
    let agent = agent(&program, &vm, &server, &dir, &engine.socket(), &["-sockets=false"]);
    agent.wait_log("source ready");
    let starts = Starts::follow(&engine.socket());

    let mut alive = VecDeque::new();
    // By container: when the request for its port was read.
    let mut exposed = BTreeMap::new();
    for n in 0..WARM_UP + STARTS {
        if n % 50 == WARM_UP {
            eprintln!("  {} of {STARTS} containers started", n - WARM_UP);
        }
        let port = FIRST_PORT + n;
        let id = create(&engine.socket(), port);
        server.forget_requests();
        request(&engine.socket(), "POST", &format!("/containers/{id}/start"), None);
        let local = format!("\"127.0.0.1:{port}\"");
        let at = eventually(&format!("a request for {local}"), || {
            let requests = server.requests();
            let first = requests.iter().find(|request| is_expose(request) && request.body.contains(&local));
            first.map(|request| request.at).ok_or_else(|| agent.log())
        });
        if n >= WARM_UP {
            exposed.insert(id.clone(), UNIX_EPOCH.elapsed().unwrap() - at.elapsed());
        }
        alive.push_back(id);
        if alive.len() > ALIVE {
            let oldest = alive.pop_front().unwrap();
            request(&engine.socket(), "DELETE", &format!("/containers/{oldest}?force=1"), None);
        }
    }

    let seen = starts.all();
    let started = |id: &String| seen.iter().find(|start| start.id == *id).expect("an event for every start");
    let latency = exposed.iter().map(|(id, at)| milliseconds(started(id).stamped, *at)).collect();
    let own = exposed.keys().map(|id| milliseconds(started(id).stamped, started(id).read)).collect();
    let (latency, own) = (Samples::new(latency), Samples::new(own));
    let claim = format!("dockerd's `start` event to the expose request at host-switch ({})", program.build);
    docker::rows(&claim, (MEDIAN_MS_MAX, P99_MS_MAX), &latency, &own)
}

/// One container, all of whose ports come at once and go at once.
fn many_ports() -> Vec<Row> {
    let (dir, server, engine, program) = (TempDir::new(), HostSwitch::start(), EngineStub::new(), Program::agent());
    let (url, state) = (server.url(), dir.join("state.json").display().to_string());
    // Without sockets: those of this machine are nobody's business.
    let args = ["--sink", &url, "--state-file", &state, "-tap-interface-ip", "127.0.0.1", "-sockets=false"];
    let agent = Agent::start_program(&program.path, None, &engine.socket(), &args);
    engine.wait_subscriptions(1);
    agent.wait_log("source ready");
    server.set_fault(Fault::Delay(EACH_TAKES));
    let wait = |expect: usize, begun: Instant| {
        // Not so often that it is in the way.
        while server.forwards().len() != expect {
            assert!(begun.elapsed() < DEADLINE, "{} held, not {expect}: {}", server.forwards().len(), agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        begun.elapsed().as_secs_f64()
    };
    let numbers: Vec<[String; 2]> =
        (0..MANY).map(|n| [format!("{}/tcp", n + 1), (FIRST_PORT + n).to_string()]).collect();
    let entries: Vec<(&str, &str, &str)> =
        numbers.iter().map(|[key, port]| (key.as_str(), "0.0.0.0", port.as_str())).collect();
    let begun = Instant::now();
    engine.start(&id(1), ports(&entries));
    let exposed = wait(MANY, begun);
    let begun = Instant::now();
    engine.end(&id(1));
    let withdrawn = wait(0, begun);

    let (count, connections) = (thousands(MANY as u64), server.connections_max());
    let takes = EACH_TAKES.as_millis();
    let row = |done: &str, seconds: f64| {
        let claim = format!(
            "{count} ports of one container, with a host-switch that takes {takes} ms for each ({}): all {done}",
            program.build
        );
        let measured = format!("{seconds:.2} s, over {connections} connections");
        Row::at_most(&claim, MANY_S_MAX, "s", seconds, measured)
    };
    vec![row("exposed", exposed), row("withdrawn", withdrawn)]
}
