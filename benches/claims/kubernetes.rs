//! How long it takes from a Service's change until the host end has the document, what thousands of Services cost, and
//! what a watch costs while nothing happens.
//!
//! The server is a stand-in for kube-apiserver, by TLS over loopback, in this process (`tests/support/kube_server.rs` says
//! what it leaves out): its own time is in the figures. A change begins just before the first byte of its watch event is
//! written; a list begins when its request has been read, and is over when the watch that follows is asked for.

use std::process::Command;
use std::time::Duration;

use super::containerd::announcements;
use super::idle::{idle, rollup};
use crate::report::{Program, Row, Samples, megabytes, thousands};
use crate::support::agent::Agent;
use crate::support::certs::{Key, Pki};
use crate::support::kube_server::{KubeServer, Port, SERVICES, Service};
use crate::support::kubeconfig::KubeConfig;
use crate::support::receiver::Receiver;
use crate::support::{TempDir, eventually, run, status_kb};

const EVENTS: u16 = 500;
const WARM_UP: u16 = 5;
const FIRST_NODE_PORT: u16 = 30_000;

const MANY: u16 = 5_000;
/// Of those: one for nearly every port of the range that there is for them, 30000 to 32767.
const MANY_NODE_PORTS: u16 = 2_700;
const LISTS: usize = 5;
/// After the last document, for what is left to be put away.
const CALM: Duration = Duration::from_secs(5);

const BOOKMARKS: Duration = Duration::from_secs(10);

const MEDIAN_MS_MAX: f64 = 5.0;
const P99_MS_MAX: f64 = 20.0;
const LIST_MS_MAX: f64 = 150.0;
const LIST_PEAK_MB_MAX: f64 = 12.0;
const LIST_AFTER_MB_MAX: f64 = 4.0;
const IDLE_RSS_MB_MAX: f64 = 2.2;
const IDLE_CPU_PERCENT_MAX: f64 = 0.05;

pub fn measure() -> Vec<Row> {
    let mut rows = events();
    rows.extend(many());
    rows.extend(nothing_happens());
    rows
}

struct World {
    server: KubeServer,
    receiver: Receiver,
    dir: TempDir,
    pki: Pki,
}

impl World {
    fn new() -> World {
        let (pki, dir) = (Pki::new(), TempDir::new());
        let server = KubeServer::start(&pki, "127.0.0.1:0");
        KubeConfig::new(&pki, &server.url()).write(&dir.join("kubeconfig"));
        World { server, receiver: Receiver::new(), dir, pki }
    }

    fn agent(&self, program: &Program) -> Agent {
        let path = self.dir.join("kubeconfig").display().to_string();
        let url = self.receiver.url();
        let mut args = vec!["-kubernetes", "-iptables=false", "-kubeconfig", &path, "--sink", &url];
        args.extend(["--connect-interface", "lo"]);
        Agent::run_program(&program.path, None, &args, &[])
    }

    fn wait_held(&self, agent: &Agent, expect: usize) {
        eventually(&format!("{expect} forwards"), || match self.receiver.held().len() {
            held if held == expect => Ok(()),
            held => Err((held, agent.log())),
        });
    }
}

fn node_port(n: u16) -> Service {
    Service::node_port("default", &format!("service-{n:04}"), &[Port::tcp(80, FIRST_NODE_PORT + n)])
}

fn events() -> Vec<Row> {
    let (world, program) = (World::new(), Program::agent());
    let agent = world.agent(&program);
    world.server.wait_watches(1);
    let mut written = Vec::new();
    for n in 0..WARM_UP + EVENTS {
        written.push(world.server.apply(node_port(n)).written);
        world.wait_held(&agent, usize::from(n) + 1);
    }
    let documents = announcements(&world.receiver);
    let latency = |n: u16| {
        let document = &documents[&(FIRST_NODE_PORT + n).to_string()];
        document.at.duration_since(written[usize::from(n)]).as_secs_f64() * 1e3
    };
    let latency = Samples::new((WARM_UP..WARM_UP + EVENTS).map(latency).collect());
    let claim = format!("Kubernetes watch event written to the document at the sink ({})", program.build);
    let shown = format!("{:.2} ms (n = {})", latency.median(), latency.n());
    vec![
        Row::at_most(&format!("{claim}, median"), MEDIAN_MS_MAX, "ms", latency.median(), shown),
        Row::at_most(
            &format!("{claim}, 99th percentile / max"),
            P99_MS_MAX,
            "ms",
            latency.p99(),
            format!("{:.2} / {:.2} ms", latency.p99(), latency.max()),
        ),
    ]
}

/// Agents that start and find thousands of Services, one after another.
fn many() -> Vec<Row> {
    let (mut world, program) = (World::new(), Program::agent());
    for n in 0..MANY {
        world.server.apply(if n < MANY_NODE_PORTS {
            node_port(n)
        } else {
            Service::cluster_ip("default", &format!("service-{n:04}"), &[Port::tcp(80, 0)])
        });
    }
    // The server makes the text of the list only once.
    let bytes = list_bytes(&world);
    let (mut times, mut peaks, mut afters) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..LISTS {
        eprintln!("  {turn} of {LISTS} lists");
        let before = world.server.requests().len();
        let agent = world.agent(&program);
        world.wait_held(&agent, MANY_NODE_PORTS.into());
        let requests = &world.server.requests()[before..];
        let list = requests.iter().find(|request| request.is_list()).expect("a list");
        let watch = requests.iter().find(|request| request.is_watch()).expect("a watch");
        times.push(watch.at.duration_since(list.at).as_secs_f64() * 1e3);
        std::thread::sleep(CALM);
        let rss = status_kb(agent.pid(), "VmRSS:").max(rollup(agent.pid(), "Rss:"));
        peaks.push(megabytes(status_kb(agent.pid(), "VmHWM:").max(rss)));
        afters.push(megabytes(rss));
        drop(agent);
        world.receiver = Receiver::new();
    }
    let (times, peaks, afters) = (Samples::new(times), Samples::new(peaks), Samples::new(afters));
    let claim = format!(
        "{} Services in a list of {:.1} MB, {} of them with a NodePort ({})",
        thousands(MANY.into()),
        bytes as f64 / 1e6,
        thousands(MANY_NODE_PORTS.into()),
        program.build
    );
    let median = times.median();
    let all_read = format!("{median:.0} ms (max {:.0}, n = {LISTS})", times.max());
    vec![
        Row::at_most(&format!("{claim}: until all of it is read, median"), LIST_MS_MAX, "ms", median, all_read),
        Row::at_most(
            &format!("{claim}: peak RSS of the agent, until every document is delivered"),
            LIST_PEAK_MB_MAX,
            "MB",
            peaks.max(),
            format!("{:.2} MB (the largest of {LISTS})", peaks.max()),
        ),
        Row::at_most(
            &format!("{claim}: RSS {} s later", CALM.as_secs()),
            LIST_AFTER_MB_MAX,
            "MB",
            afters.max(),
            format!("{:.2} MB (the largest of {LISTS})", afters.max()),
        ),
    ]
}

fn list_bytes(world: &World) -> usize {
    let client = world.pki.client(Key::EcSec1);
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--cacert"]).arg(world.pki.ca());
    command.arg("--cert").arg(client.certificate).arg("--key").arg(client.key);
    run(command.arg(format!("{}{SERVICES}", world.server.url()))).len()
}

fn nothing_happens() -> Vec<Row> {
    let (world, program) = (World::new(), Program::agent());
    world.server.bookmark_every(BOOKMARKS);
    for n in 0..3 {
        world.server.apply(node_port(n));
    }
    let agent = world.agent(&program);
    world.wait_held(&agent, 3);
    world.server.wait_watches(1);
    let claim = format!(
        "Idle agent ({}), a watch of 3 NodePort Services with a bookmark every {} s",
        program.build,
        BOOKMARKS.as_secs()
    );
    idle(&agent, &|| world.receiver.all().len(), &claim, (IDLE_RSS_MB_MAX, IDLE_CPU_PERCENT_MAX))
}
