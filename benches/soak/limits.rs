//! Too few descriptors, too little memory, and another address: each on its own, without churn.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::figures::{Row, cpu_seconds};
use crate::support::agent::{self, Agent};
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::receiver::Receiver;
use crate::support::vm::{GUEST, HOST, Vm};
use crate::support::{Process, TempDir, eventually, run, status_kb};

/// Open files of the agent, and ports on loopback, each of which takes the relay a socket.
const FILES: u64 = 64;
const LOOPBACK_PORTS: u16 = 200;
/// What stays when the others go.
const FEW: u16 = 10;
/// What comes in their place.
const NEW: u16 = 5;
const WATCHED: Duration = Duration::from_secs(5);
const CPU_SECONDS_MAX: f64 = 0.5;
/// What may be said again while nothing changes: what could not be carried is tried again.
const LINES_MORE_MAX: usize = 5;

/// RLIMIT_DATA: all memory that is the process' own and can be written, the threads' stacks with it.
const MEMORY_KIB: u64 = 16 * 1024;
const TIGHT_KIB: u64 = 3 * 1024;
const MANY: u32 = 5000;
const MANY_EACH: u32 = 100;

/// The agent behind a limit of the shell's `ulimit`.
struct Limited(TempDir);

impl Limited {
    fn new(limit: &str) -> Limited {
        let dir = TempDir::new();
        let script = format!("#!/bin/sh\nulimit {limit} && exec '{}' \"$@\"\n", agent::program().display());
        fs::write(dir.join("agent"), script).unwrap();
        fs::set_permissions(dir.join("agent"), fs::Permissions::from_mode(0o755)).unwrap();
        Limited(dir)
    }

    fn program(&self) -> PathBuf {
        self.0.join("agent")
    }
}

/// So many ports from that one on.
fn published(ip: &str, first: u16, count: u16) -> Value {
    let numbers: Vec<[String; 2]> = (0..count).map(|n| [format!("{}/tcp", n + 1), (first + n).to_string()]).collect();
    ports(&numbers.iter().map(|[key, port]| (key.as_str(), ip, port.as_str())).collect::<Vec<_>>())
}

fn status(agent: &Agent) -> Result<Value, String> {
    let out = agent.ask(&["status", "--json"]).output().map_err(|error| error.to_string())?;
    serde_json::from_slice(&out.stdout).map_err(|_| String::from_utf8_lossy(&out.stderr).into_owned())
}

fn wait_ok(agent: &Agent) {
    eventually("health ok", || match status(agent) {
        Ok(status) if status["health"] == "ok" => Ok(()),
        other => Err((other, tail(agent))),
    });
}

/// The end of its log, which is long.
fn tail(agent: &Agent) -> String {
    let log = agent.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// More ports than the relay has descriptors for.
pub fn descriptors() -> Vec<Row> {
    let (vm, engine, receiver) = (Vm::new(), EngineStub::new(), Receiver::new());
    let limited = Limited::new(&format!("-n {FILES}"));
    engine.add(&id(1), published("127.0.0.1", 20_000, FEW));
    let url = receiver.url();
    let mut agent = Agent::start_program(&limited.program(), Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    let held = |expect: usize| {
        eventually(&format!("{expect} forwards"), || match receiver.held().len() {
            held if held == expect => Ok(()),
            held => Err((held, tail(&agent))),
        });
    };
    held(usize::from(FEW));
    engine.start(&id(2), published("127.0.0.1", 21_000, LOOPBACK_PORTS));
    let limit = format!("the limit is {FILES}");
    agent.wait_log(&limit);
    // Those that there are descriptors for have arrived once nothing changes any more.
    let mut before = usize::MAX;
    eventually("as many forwards as there are descriptors for", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = receiver.held().len();
        if now == std::mem::replace(&mut before, now) { Ok(()) } else { Err(now) }
    });
    let (cpu, lines) = (cpu_seconds(agent.pid()), agent.log().lines().count());
    std::thread::sleep(WATCHED);
    let (cpu, more) = (cpu_seconds(agent.pid()) - cpu, agent.log().lines().count() - lines);
    let carried = receiver.held().len();
    let said = agent.log().lines().filter(|line| line.contains(&limit)).count();
    let answers = status(&agent);
    let runs = agent.process.is_running();
    engine.end(&id(2));
    eventually("the ports that stay", || match receiver.held().len() {
        held if held == usize::from(FEW) => Ok(()),
        held => Err((held, tail(&agent))),
    });
    wait_ok(&agent);
    engine.start(&id(3), published("127.0.0.1", 22_000, NEW));
    eventually("others in their place", || match receiver.held().len() {
        held if held == usize::from(FEW + NEW) => Ok(()),
        held => Err((held, tail(&agent))),
    });
    let all = LOOPBACK_PORTS + FEW;
    let what = format!("{FILES} descriptors (`ulimit -n`), and {all} ports that take one each");
    vec![
        Row::must(
            &format!("{what}: the agent"),
            "goes on, and answers",
            format!("{carried} ports carried; `status`: {}", answers.map_or_else(|e| e, |s| s["health"].to_string())),
            runs,
        ),
        Row::must(
            &format!("{what}: CPU over {} s", WATCHED.as_secs()),
            &format!("≤ {CPU_SECONDS_MAX} s"),
            format!("{cpu:.2} s"),
            cpu <= CPU_SECONDS_MAX,
        ),
        Row::must(
            &format!("{what}: lines of the log that say so"),
            "one for each port that has none, once",
            format!("{said}, and {more} lines of any kind in the next {} s", WATCHED.as_secs()),
            said <= usize::from(all) && more <= LINES_MORE_MAX,
        ),
        Row::must(
            &format!("{what}: when {LOOPBACK_PORTS} of them go"),
            "all that stay, and new ones",
            format!("{FEW} and {NEW} carried, `status` ok"),
            true,
        ),
    ]
}

/// Thousands of ports with little memory, and with too little.
pub fn memory() -> Vec<Row> {
    let rows = [MEMORY_KIB, TIGHT_KIB].map(|kib| {
        let (engine, receiver) = (EngineStub::new(), Receiver::new());
        let limited = Limited::new(&format!("-d {kib}"));
        let args = ["--sink", &receiver.url(), "-adminInstall", "--connect-interface", "lo", "-sockets=false"];
        for owner in 0..MANY / MANY_EACH {
            engine.add(&id(owner), published("0.0.0.0", (10_000 + owner * MANY_EACH) as u16, MANY_EACH as u16));
        }
        let dir = TempDir::new();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(limited.program());
        command.args(["-docker", "--control-socket", ""]).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display())).stderr(log);
        let mut process = Process::spawn(&mut command);
        let text = || fs::read_to_string(dir.join("log")).unwrap();
        let works = eventually("all ports, or the end", || {
            if receiver.held().len() == MANY as usize {
                return Ok(true);
            }
            if process.is_running() { Err((receiver.held().len(), text())) } else { Ok(false) }
        });
        let (measured, holds) = if works {
            (format!("all of them told; peak RSS {} KiB", status_kb(process.pid(), "VmHWM:")), true)
        } else {
            let code = process.wait().map_or("a signal".to_owned(), |code| format!("exit code {code}"));
            let text = text();
            match text.lines().find(|line| line.contains("memory")) {
                Some(why) => (format!("ended with {code}: `{}`", why.trim()), true),
                None => (format!("ended with {code}: {text}"), false),
            }
        };
        let what = format!("{MANY} ports with {} MiB of memory (`ulimit -d`)", kib / 1024);
        let limit = if kib == MEMORY_KIB { "works" } else { "works, or ends and says why" };
        Row::must(&what, limit, measured, holds && (works || kib != MEMORY_KIB))
    });
    rows.into()
}

/// The guest's interface goes down and comes back with another address, from which the relay has to be reachable.
pub fn address() -> Vec<Row> {
    const OTHERS: [&str; 3] = ["192.168.143.7", "192.168.143.8", GUEST];
    let (vm, engine, dir) = (Vm::new(), EngineStub::new(), TempDir::new());
    let url = format!("unix://{}", dir.join("host").display());
    let host = Agent::host(Some(&vm.host), &["--listen", &url]);
    let mut web = vm.guest.command("/bin/busybox");
    let _web = Process::spawn(web.args(["httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/bin"]));
    engine.add(&id(1), ports(&[("80/tcp", "127.0.0.1", "8080")]));
    let agent = Agent::start(Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    vm.wait_200("127.0.0.1:8080", &agent);
    let ip = |args: &[&str]| run(Command::new("ip").arg("-n").arg(vm.guest.name()).args(args));
    let mut slowest = Duration::ZERO;
    let mut current = GUEST;
    for next in OTHERS {
        ip(&["link", "set", "eth0", "down"]);
        let opened = host.out().lines().count();
        ip(&["addr", "del", &format!("{current}/24"), "dev", "eth0"]);
        ip(&["addr", "add", &format!("{next}/24"), "dev", "eth0"]);
        ip(&["link", "set", "eth0", "up"]);
        ip(&["route", "replace", "default", "via", HOST]);
        let begun = Instant::now();
        let connect = format!("\"connect\":\"{next}:8080\"");
        eventually("the new address at hostagent", || {
            let out: String = host.out().lines().skip(opened).collect();
            if out.contains(&connect) { Ok(()) } else { Err((out, agent.log())) }
        });
        vm.wait_200("127.0.0.1:8080", &agent);
        slowest = slowest.max(begun.elapsed());
        current = next;
    }
    vec![Row::must(
        "the guest's interface down, and up with another address: a port on loopback, through the relay",
        "answers",
        format!("{} times, after {:.1} s at most", OTHERS.len(), slowest.as_secs_f64()),
        true,
    )]
}
