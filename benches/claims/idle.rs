//! What the agent costs while nothing happens, and what it keeps of 5,000 ports that have come and gone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use super::host_switch;
use crate::page::ticks;
use crate::report::{Program, Row, megabytes, thousands};
use crate::support::agent::Agent;
use crate::support::cni::{Cni, Port, Variant};
use crate::support::containerd::{Containerd, ports_label};
use crate::support::docker::Engine;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::receiver::Receiver;
use crate::support::vm::{GUEST, Vm};
use crate::support::{TempDir, eventually, status_kb};

const IDLE: Duration = Duration::from_secs(60);
/// Between the last container's start and the beginning of the idle time.
const CALM: Duration = Duration::from_secs(5);

const OWNERS: u32 = 100;
const EACH: u32 = 100;

const RSS_MB_MAX: f64 = 1.5;
const CPU_PERCENT_MAX: f64 = 0.05;
const BOTH_RSS_MB_MAX: f64 = 1.8;
const BOTH_CPU_PERCENT_MAX: f64 = 0.1;
const ALL_RSS_MB_MAX: f64 = 2.2;
const ALL_CPU_PERCENT_MAX: f64 = 0.2;
const FULL_RSS_MB_MAX: f64 = 6.0;

pub fn measure() -> Vec<Row> {
    let mut rows = docker();
    rows.extend(containerd_and_nat());
    if cfg!(feature = "kubernetes") {
        rows.extend(everything());
    }
    rows.push(come_and_gone());
    rows
}

/// A real dockerd with three containers, and nobody who does anything.
fn docker() -> Vec<Row> {
    let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
    let engine = Engine::docker(&vm.guest);
    let url = receiver.url();
    let agent = Agent::start_program(&program.path, Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    engine.web("everywhere", &["-p", "8080:80"]);
    engine.web("loopback", &["-p", "127.0.0.1:8081:80"]);
    engine.run("udp", &["-p", "8082:53/udp"], &["busybox:local", "/udp_echo", "53"]);
    receiver.wait_held(&[
        "127.0.0.1:8080/tcp",
        "[::1]:8080/tcp",
        "127.0.0.1:8081/tcp",
        "127.0.0.1:8082/udp",
        "[::1]:8082/udp",
    ]);
    let claim = format!("Idle agent ({}), dockerd with 3 containers", program.build);
    idle(&agent, &|| receiver.all().len(), &claim, (RSS_MB_MAX, CPU_PERCENT_MAX))
}

/// A real containerd with three containers, whose ports are in NAT rules of both kinds of iptables.
fn containerd_and_nat() -> Vec<Row> {
    let (vm, receiver, program, tools) = (Vm::new(), Receiver::new(), Program::agent(), CountedTools::new());
    let containerd = Containerd::start(&vm.guest);
    let (nft, legacy) = (Cni::new(&vm.guest, Variant::Nft), Cni::new(&vm.guest, Variant::Legacy));
    let socket = containerd.socket().display().to_string();
    let args = ["-containerd", "-containerdSock", &socket, "-iptables", "--sink", &receiver.url()];
    let agent = Agent::run_program(&program.path, Some(&vm.guest), &args, &[("PATH", &tools.path())]);
    let mut attachments = Vec::new();
    for (id, cni, host_port) in [("a", &nft, 8080), ("b", &nft, 8081), ("c", &legacy, 8082)] {
        let ports = [Port { host_ip: "", host_port, container_port: 80, protocol: "tcp" }];
        let attachment = cni.add(&format!("default-{id}"), &ports);
        let label = ports_label(&[("0.0.0.0", host_port, 80, "tcp")]);
        containerd.web("default", id, &[("nerdctl/ports", &label)], Some(&attachment.netns));
        attachments.push(attachment);
    }
    receiver.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp", "127.0.0.1:8082/tcp"]);
    let claim = format!("Idle agent ({}), containerd with 3 containers and NAT rules", program.build);
    std::thread::sleep(CALM);
    let before = tools.runs();
    let mut rows = idle(&agent, &|| receiver.all().len(), &claim, (BOTH_RSS_MB_MAX, BOTH_CPU_PERCENT_MAX));
    let runs = tools.runs().split_off(before.len());
    rows.push(Row::at_most(
        &format!("{claim}: child processes started in {} s", (CALM + IDLE).as_secs()),
        0.0,
        "",
        runs.len() as f64,
        format!("{} ({} since the start of the agent)", runs.len(), before.len()),
    ));
    rows
}

/// Both engines, NAT rules and sockets, and host-switch to tell. `-kubernetes` is what turns NAT rules on beside both
/// engines, as in Rancher Desktop; its kubeconfig never appears.
fn everything() -> Vec<Row> {
    let (vm, dir, program) = (Vm::new(), TempDir::new(), Program::agent());
    let server = host_switch::start(&vm);
    let (engine, containerd) = (Engine::docker(&vm.guest), Containerd::start(&vm.guest));
    let cni = Cni::new(&vm.guest, Variant::Nft);
    let (socket, kubeconfig) = (containerd.socket().display().to_string(), dir.join("none").display().to_string());
    let args = ["-containerd", "-containerdSock", &socket, "-kubernetes", "-kubeconfig", &kubeconfig];
    let agent = host_switch::agent(&program, &vm, &server, &dir, &engine.socket(), &args);
    engine.web("everywhere", &["-p", "8080:80"]);
    engine.web("loopback", &["-p", "127.0.0.1:8081:80"]);
    let attachment =
        cni.add("default-a", &[Port { host_ip: "", host_port: 8082, container_port: 80, protocol: "tcp" }]);
    let label = ports_label(&[("0.0.0.0", 8082, 80, "tcp")]);
    containerd.web("default", "a", &[("nerdctl/ports", &label)], Some(&attachment.netns));
    let _plain = vm.guest.enter(|| std::net::TcpListener::bind("0.0.0.0:8083").unwrap());
    for port in 8080..=8083 {
        let forward = format!("tcp 127.0.0.1:{port} {GUEST}:{port}");
        eventually(&forward, || match server.forwards() {
            held if held.contains(&forward) => Ok(()),
            held => Err((held, agent.log())),
        });
    }
    let claim =
        format!("Idle agent ({}), everything on: docker, containerd, NAT rules, sockets, host-switch", program.build);
    let said = || server.requests().iter().filter(|request| request.path.ends_with("expose")).count();
    idle(&agent, &said, &claim, (ALL_RSS_MB_MAX, ALL_CPU_PERCENT_MAX))
}

/// Programs that note each time they are run, and then become the real ones.
struct CountedTools(TempDir);

impl CountedTools {
    fn new() -> CountedTools {
        let dir = TempDir::new();
        let log = dir.join("runs");
        fs::write(&log, "").unwrap();
        for (tool, real) in [
            ("ctr", "/usr/bin/ctr"),
            ("nft", "/usr/sbin/nft"),
            ("iptables-nft-save", "/usr/sbin/iptables-nft-save"),
            ("ip6tables-nft-save", "/usr/sbin/ip6tables-nft-save"),
            ("iptables-legacy-save", "/usr/sbin/iptables-legacy-save"),
            ("ip6tables-legacy-save", "/usr/sbin/ip6tables-legacy-save"),
        ] {
            let script = format!("#!/bin/sh\necho {tool} >> {}\nexec {real} \"$@\"\n", log.display());
            fs::write(dir.join(tool), script).unwrap();
            fs::set_permissions(dir.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        CountedTools(dir)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap_or_default())
    }

    fn runs(&self) -> Vec<String> {
        fs::read_to_string(self.0.join("runs")).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Watches an agent to which nothing happens.
///
/// `said` counts what its sink has heard.
pub fn idle(agent: &Agent, said: &dyn Fn() -> usize, claim: &str, (rss_max, cpu_max): (f64, f64)) -> Vec<Row> {
    std::thread::sleep(CALM);
    eprintln!("  idle for {} s", IDLE.as_secs());
    let pid = agent.pid();
    let (before_said, before, begun) = (said(), Usage::of(pid), Instant::now());
    std::thread::sleep(IDLE);
    let (after, seconds) = (Usage::of(pid), begun.elapsed().as_secs_f64());
    assert_eq!(said(), before_said, "it was not idle: {}", agent.log());
    let (vm_rss, rss, pss) = (status_kb(pid, "VmRSS:"), rollup(pid, "Rss:"), rollup(pid, "Pss:"));
    // The first is a sum of counters that lag behind a little, the second a walk through the pages.
    let most = megabytes(vm_rss.max(rss));

    let nanoseconds = after.since(&before, |task| task.nanoseconds);
    let switches = after.since(&before, |task| task.switches);
    let percent = nanoseconds as f64 / 1e9 / seconds * 100.0;
    vec![
        Row::at_most(
            &format!("{claim}: RSS"),
            rss_max,
            "MB",
            most,
            format!("{most:.2} MB (VmRSS {vm_rss} KiB; page by page {rss} KiB, and {pss} KiB of it its own: PSS)"),
        ),
        Row::at_most(
            &format!("{claim}: CPU of a core, over {} s", IDLE.as_secs()),
            cpu_max,
            "%",
            percent,
            format!(
                "{percent:.4} % ({:.2} ms by the scheduler's count; {} ticks of 10 ms by `utime` + `stime`)",
                nanoseconds as f64 / 1e6,
                after.ticks - before.ticks
            ),
        ),
        Row::report(
            &format!("{claim}: wake-ups of all {} threads", after.tasks.len()),
            format!("{:.2}/s ({switches} in {seconds:.0} s)", switches as f64 / seconds),
        ),
    ]
}

/// A field of `/proc/PID/smaps_rollup` in KiB.
pub fn rollup(pid: u32, field: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with(field)).expect(field);
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What a process has used so far.
struct Usage {
    /// See [`ticks`].
    ticks: u64,
    tasks: BTreeMap<u32, Task>,
}

#[derive(Default)]
struct Task {
    /// On a CPU.
    nanoseconds: u64,
    /// Context switches that the thread itself asked for: each is a wait, and ends in a wake-up.
    switches: u64,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tasks = entries.map(|entry| {
            let path = entry.unwrap().path();
            let schedstat = fs::read_to_string(path.join("schedstat")).unwrap();
            let status = fs::read_to_string(path.join("status")).unwrap();
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            let task = Task {
                nanoseconds: schedstat.split(' ').next().unwrap().parse().unwrap(),
                switches: switches.trim().parse().unwrap(),
            };
            (path.file_name().unwrap().to_str().unwrap().parse().unwrap(), task)
        });
        Usage { ticks: ticks(pid), tasks: tasks.collect() }
    }

    /// The growth since then, of all threads. One that ended in between is not counted: the agent's do not.
    fn since(&self, before: &Usage, of: fn(&Task) -> u64) -> u64 {
        let was = |tid| before.tasks.get(tid).map_or(0, of);
        self.tasks.iter().map(|(tid, task)| of(task) - was(tid)).sum()
    }
}

/// The engine is one of paper here: a real one takes a minute to publish as many ports.
fn come_and_gone() -> Row {
    let (engine, receiver, program) = (EngineStub::new(), Receiver::new(), Program::agent());
    let (url, all) = (receiver.url(), (OWNERS * EACH) as usize);
    let args = ["--sink", &url, "-adminInstall", "--connect-interface", "lo"];
    let agent = Agent::start_program(&program.path, None, &engine.socket(), &args);
    engine.wait_subscriptions(1);
    agent.wait_log("source ready");
    let rss = || rollup(agent.pid(), "Rss:");
    let before = rss();
    for owner in 0..OWNERS {
        let numbers: Vec<[String; 2]> =
            (0..EACH).map(|i| [format!("{}/tcp", i + 1), (10_000 + owner * EACH + i).to_string()]).collect();
        let entries: Vec<(&str, &str, &str)> =
            numbers.iter().map(|[key, port]| (key.as_str(), "0.0.0.0", port.as_str())).collect();
        engine.start(&id(owner), ports(&entries));
    }
    let wait_held = |expect: usize| {
        eventually(&format!("{expect} forwards"), || match receiver.held().len() {
            held if held == expect => Ok(()),
            held => Err((held, agent.log())),
        });
    };
    wait_held(all);
    let full = rss();
    (0..OWNERS).for_each(|owner| engine.end(&id(owner)));
    wait_held(0);
    // The kernel's own high-water mark lags behind as well.
    let peak = status_kb(agent.pid(), "VmHWM:").max(full);
    Row::at_most(
        &format!("RSS of the agent ({}) with {} bindings claimed", program.build, thousands(all as u64)),
        FULL_RSS_MB_MAX,
        "MB",
        megabytes(full),
        format!("{:.2} MB ({before} KiB before, {peak} at most, {} after they are gone)", megabytes(full), rss()),
    )
}
