//! How soon `wait` returns, what a command takes as a whole process, and whether clients that never read delay the agent.
//!
//! The engine is a stub and the sink a receiver of documents: what is between them is the agent's own time.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::containerd::announcements;
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::receiver::Receiver;
use crate::support::{eventually, run};

const WAITS: u32 = 100;
const WAIT_MS_MAX: f64 = 20.0;
const FIRST_PORT: u32 = 10_000;
const PORTS: u32 = 5_000;
const COMMANDS: usize = 20;
/// More than the agent lets in.
const SILENT: usize = 100;

pub fn measure() -> Vec<Row> {
    let (engine, receiver, program) = (EngineStub::new(), Receiver::new(), Program::agent());
    let url = receiver.url();
    let agent = Agent::start_program(&program.path, None, &engine.socket(), &["--sink", &url, "-sockets=false"]);
    engine.wait_subscriptions(1);
    let ask = |words: &[&str]| {
        let mut command = Command::new(&program.path);
        command.args(words).arg("--socket").arg(agent.control());
        command
    };
    let clients = || {
        let status: Value = serde_json::from_str(&run(&mut ask(&["status", "--json"]))).unwrap();
        status["clients"]["now"].as_u64().unwrap()
    };
    let publish = |n: u32| {
        let port = (FIRST_PORT + n).to_string();
        engine.start(&id(n + 1), ports(&[("80/tcp", "0.0.0.0", &port)]));
        port
    };
    let told = |port: &str| {
        let address = format!("127.0.0.1:{port}/tcp");
        eventually(&address, || if receiver.held().contains(&address) { Ok(()) } else { Err(agent.log()) });
        announcements(&receiver)[port].at
    };

    let mut waits = Vec::new();
    for n in 0..WAITS {
        let port = (FIRST_PORT + n).to_string();
        let mut wait = ask(&["wait", "--port", &port]).stdout(Stdio::null()).spawn().unwrap();
        eventually("one that waits", || if clients() == 2 { Ok(()) } else { Err(()) });
        publish(n);
        assert!(wait.wait().unwrap().success());
        let returned = Instant::now();
        waits.push(returned.duration_since(told(&port)).as_secs_f64() * 1e3);
    }
    let waits = Samples::new(waits);

    let delay = |from: u32| {
        let delays = (from..from + WAITS).map(|n| {
            let begun = Instant::now();
            let port = publish(n);
            told(&port).duration_since(begun).as_secs_f64() * 1e3
        });
        Samples::new(delays.collect())
    };
    let alone = delay(WAITS);
    let silent: Vec<UnixStream> = (0..SILENT).map(|_| UnixStream::connect(agent.control()).unwrap()).collect();
    silent.iter().for_each(|mut client| drop(client.write_all(b"{\"op\":\"watch\",\"replay\":true}\n")));
    let beside = delay(2 * WAITS);
    drop(silent);

    let mut entries = Vec::new();
    let numbers: Vec<String> = (0..PORTS).map(|n| (20_000 + n).to_string()).collect();
    numbers.iter().for_each(|port| entries.push(("80/tcp", "0.0.0.0", port.as_str())));
    engine.start(&id(1_000_000), ports(&entries));
    told(numbers.last().unwrap());
    let took = |words: &[&str]| {
        let each = (0..COMMANDS).map(|_| {
            let begun = Instant::now();
            let output = ask(words).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            begun.elapsed().as_secs_f64() * 1e3
        });
        Samples::new(each.collect())
    };
    let (status, all) = (took(&["status"]), took(&["ports", "--json"]));
    assert!(agent.stop() == Some(0));
    rows(program.build, &waits, &status, &all, &alone, &beside)
}

fn rows(build: &str, waits: &Samples, status: &Samples, all: &Samples, alone: &Samples, beside: &Samples) -> Vec<Row> {
    let ports = thousands(u64::from(PORTS + 3 * WAITS));
    vec![
        Row::at_most(
            &format!("A document read at the sink to the return of a `wait` for its port ({build}), median"),
            WAIT_MS_MAX,
            "ms",
            waits.median(),
            format!("{:.2} ms (p99 {:.2}, max {:.2}, n = {})", waits.median(), waits.p99(), waits.max(), waits.n()),
        ),
        Row::report(
            &format!("`status` and `ports --json` of an agent with {ports} forwards, as whole processes, median"),
            format!(
                "{:.1} and {:.1} ms (max {:.1} and {:.1}, n = {COMMANDS} each)",
                status.median(),
                all.median(),
                status.max(),
                all.max()
            ),
        ),
        Row::report(
            &format!(
                "A `start` event of a stub engine to the document at the sink, beside {SILENT} clients of the control socket that never read, median"
            ),
            format!(
                "{:.2} ms (p99 {:.2}); without them {:.2} ms (p99 {:.2})",
                beside.median(),
                beside.p99(),
                alone.median(),
                alone.p99()
            ),
        ),
    ]
}
