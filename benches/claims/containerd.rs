//! How long it takes from containerd's word that a task has started until the host end has the document.
//!
//! A real containerd in a network namespace, real containers with nerdctl's label, one after another. The beginning is
//! the time-stamp of containerd's own `/tasks/start` event; the end is when the last byte of the document has been read
//! from the sink's socket. Most of it is the look-up with `ctr`, which is timed by itself too.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report::{Program, Row, Samples};
use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, ports_label};
use crate::support::receiver::{Received, Receiver};
use crate::support::vm::Vm;
use crate::support::{Process, eventually, run};

const STARTS: u16 = 100;
const WARM_UP: u16 = 5;
/// Containers that run at the same time.
const ALIVE: usize = 3;
const FIRST_PORT: u16 = 20_000;

const MEDIAN_MS_MAX: f64 = 40.0;

pub fn measure() -> Vec<Row> {
    let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
    let containerd = Containerd::start(&vm.guest);
    let socket = containerd.socket().display().to_string();
    let args = ["-containerd", "-containerdSock", &socket, "--sink", &receiver.url()];
    let agent = Agent::run_program(&program.path, Some(&vm.guest), &args, &[]);
    agent.wait_log("source ready");
    let starts = Starts::follow(&containerd);

    let mut alive = VecDeque::new();
    let mut lookups = Vec::new();
    for n in 0..WARM_UP + STARTS {
        let (id, port) = (format!("c{n}"), FIRST_PORT + n);
        let label = ports_label(&[("0.0.0.0", port, 80, "tcp")]);
        containerd.run("default", &id, &[("nerdctl/ports", &label)], None, &["/busybox", "sleep", "3600"]);
        let address = format!("127.0.0.1:{port}/tcp");
        eventually(&address, || if receiver.held().contains(&address) { Ok(()) } else { Err(agent.log()) });
        let begun = Instant::now();
        run(containerd.ctr("default").args(["containers", "info", &id]));
        lookups.push(begun.elapsed().as_secs_f64() * 1e3);
        alive.push_back(id);
        if alive.len() > ALIVE {
            containerd.remove("default", &alive.pop_front().unwrap());
        }
    }

    let documents = announcements(&receiver);
    let latency = |n: u16| {
        let stamped = eventually("its start event", || starts.of(&format!("c{n}")).ok_or("not seen"));
        (documents[&(FIRST_PORT + n).to_string()].since_epoch.as_secs_f64() - stamped.as_secs_f64()) * 1e3
    };
    let (latency, lookup) = (Samples::new((WARM_UP..WARM_UP + STARTS).map(latency).collect()), Samples::new(lookups));
    vec![Row::at_most(
        &format!("containerd's `/tasks/start` event to the document at the sink ({}), median", program.build),
        MEDIAN_MS_MAX,
        "ms",
        latency.median(),
        format!(
            "{:.1} ms (p99 {:.1}, max {:.1}, n = {}); one `ctr containers info` by itself takes {:.1} ms",
            latency.median(),
            latency.p99(),
            latency.max(),
            latency.n(),
            lookup.median()
        ),
    )]
}

/// The first announcement of each port. A change of the guest's addresses has everything announced again.
pub fn announcements(receiver: &Receiver) -> BTreeMap<String, Received> {
    let mut first = BTreeMap::new();
    for received in receiver.all() {
        let document: Value = serde_json::from_str(&received.text).unwrap();
        if document["remove"] == false {
            for binding in document["ports"].as_object().unwrap().values().flat_map(|b| b.as_array().unwrap()) {
                let port = binding["HostPort"].as_str().unwrap().to_owned();
                first.entry(port).or_insert_with(|| received.clone());
            }
        }
    }
    first
}

/// containerd's `/tasks/start` events, read by a thread of their own until it ends.
struct Starts {
    seen: Arc<Mutex<BTreeMap<String, Duration>>>,
    _ctr: Process,
}

impl Starts {
    fn follow(containerd: &Containerd) -> Starts {
        let mut ctr = Process::spawn(containerd.ctr("default").arg("events").stdout(Stdio::piped()));
        let lines = BufReader::new(ctr.0.stdout.take().unwrap()).lines();
        let seen: Arc<Mutex<BTreeMap<String, Duration>>> = Arc::default();
        let shared = seen.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // 2026-11-21 00:29:10.456220417 +0000 UTC default /tasks/start {"container_id":"c1","pid":6004}
                let words: Vec<&str> = line.splitn(7, ' ').collect();
                let [date, time, "+0000", "UTC", _, "/tasks/start", event] = words[..] else { continue };
                let stamped: jiff::Timestamp = format!("{date}T{time}Z").parse().unwrap();
                let event: Value = serde_json::from_str(event).unwrap();
                let since_epoch = Duration::from_nanos(stamped.as_nanosecond().try_into().unwrap());
                shared.lock().unwrap().insert(event["container_id"].as_str().unwrap().to_owned(), since_epoch);
            }
        });
        Starts { seen, _ctr: ctr }
    }

    fn of(&self, id: &str) -> Option<Duration> {
        self.seen.lock().unwrap().get(id).copied()
    }
}
