//! How long it takes from the engine's word that a container has started until the host end has the document.
//!
//! A real dockerd in a network namespace, real containers with a published port, one after another. The beginning is
//! the time-stamp that the engine itself puts on its `start` event; the end is when the last byte of the document has
//! been read from the sink's socket. How soon another reader of the engine's events has the event says how much of the
//! time is the engine's own.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::containerd::announcements;
use crate::report::{Program, Row, Samples};
use crate::support::agent::Agent;
use crate::support::docker::Engine;
use crate::support::eventually;
use crate::support::receiver::Receiver;
use crate::support::vm::Vm;

const STARTS: usize = 200;
const WARM_UP: usize = 5;
/// Containers that run at the same time.
const ALIVE: usize = 3;
const FIRST_PORT: usize = 20_000;

const MEDIAN_MS_MAX: f64 = 5.0;
const P99_MS_MAX: f64 = 25.0;

pub fn measure() -> Vec<Row> {
    let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
    let engine = Engine::docker(&vm.guest);
    let url = receiver.url();
    let agent = Agent::start_program(&program.path, Some(&vm.guest), &engine.socket(), &["--sink", &url]);
    agent.wait_log("source ready");
    let starts = Starts::follow(&engine.socket());

    let mut alive = VecDeque::new();
    // By container: the address that its document names.
    let mut addresses = BTreeMap::new();
    for n in 0..WARM_UP + STARTS {
        if n % 50 == WARM_UP {
            eprintln!("  {} of {STARTS} containers started", n - WARM_UP);
        }
        let port = FIRST_PORT + n;
        let id = create(&engine.socket(), port);
        request(&engine.socket(), "POST", &format!("/containers/{id}/start"), None);
        let address = format!("127.0.0.1:{port}/tcp");
        eventually(&address, || if receiver.held().contains(&address) { Ok(()) } else { Err(agent.log()) });
        if n >= WARM_UP {
            addresses.insert(id.clone(), port);
        }
        alive.push_back(id);
        if alive.len() > ALIVE {
            let oldest = alive.pop_front().unwrap();
            request(&engine.socket(), "DELETE", &format!("/containers/{oldest}?force=1"), None);
        }
    }

    let seen = starts.all();
    let documents = announcements(&receiver);
    let mut latencies = Vec::new();
    let mut engines_own = Vec::new();
    for (id, port) in &addresses {
        let start = seen.iter().find(|start| start.id == *id).expect("an event for every start");
        let document = documents.get(&port.to_string()).expect("a document for every start");
        latencies.push(milliseconds(start.stamped, document.since_epoch));
        engines_own.push(milliseconds(start.stamped, start.read));
    }
    let (latency, own) = (Samples::new(latencies), Samples::new(engines_own));
    let claim = format!("dockerd's `start` event to the document at the sink ({})", program.build);
    rows(&claim, (MEDIAN_MS_MAX, P99_MS_MAX), &latency, &own)
}

/// What is claimed of the time since `start` events: at most that much, in the median and at the 99th percentile. `own` is
/// how long another reader of the events took.
pub fn rows(claim: &str, (median_max, p99_max): (f64, f64), latency: &Samples, own: &Samples) -> Vec<Row> {
    vec![
        Row::at_most(
            &format!("{claim}, median"),
            median_max,
            "ms",
            latency.median(),
            format!(
                "{:.2} ms (n = {}); a reader of the same events has the event after {:.2} ms",
                latency.median(),
                latency.n(),
                own.median()
            ),
        ),
        Row::at_most(
            &format!("{claim}, 99th percentile / max"),
            p99_max,
            "ms",
            latency.p99(),
            format!(
                "{:.2} / {:.2} ms; the reader {:.2} / {:.2} ms",
                latency.p99(),
                latency.max(),
                own.p99(),
                own.max()
            ),
        ),
    ]
}

pub fn milliseconds(from: Duration, to: Duration) -> f64 {
    (to.as_secs_f64() - from.as_secs_f64()) * 1e3
}

pub fn create(engine: &Path, port: usize) -> String {
    let config = json!({
        "Image": "busybox:local",
        "Cmd": ["/busybox", "sleep", "3600"],
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": port.to_string()}]}},
    });
    request(engine, "POST", "/containers/create", Some(&config))["Id"].as_str().expect("an id").to_owned()
}

/// One request of the engine's API. HTTP/1.0: the answer ends with the connection, and is not in chunks.
fn send(engine: &Path, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(engine).unwrap();
    let length = body.len();
    let head = format!(
        "{method} /v1.41{path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}

pub fn request(engine: &Path, method: &str, path: &str, body: Option<&Value>) -> Value {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = send(engine, method, path, &body);
    stream.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default();
    assert!(status.starts_with('2'), "{method} {path}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }
}

/// A container's start as the engine told it.
pub struct Start {
    pub id: String,
    pub stamped: Duration,
    pub read: Duration,
}

/// The engine's `start` events, read by a thread of their own until the engine ends.
pub struct Starts(Arc<Mutex<Vec<Start>>>);

impl Starts {
    pub fn follow(engine: &Path) -> Starts {
        let path = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%5D%7D";
        let mut lines = BufReader::new(send(engine, "GET", path, ""));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.contains(" 200 "), "{head}");
        let starts = Starts(Arc::default());
        let shared = starts.0.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let read = UNIX_EPOCH.elapsed().unwrap();
                let event: Value = serde_json::from_str(&line).unwrap();
                let id = event["Actor"]["ID"].as_str().unwrap().to_owned();
                let stamped = Duration::from_nanos(event["timeNano"].as_u64().unwrap());
                shared.lock().unwrap().push(Start { id, stamped, read });
            }
        });
        starts
    }

    pub fn all(&self) -> std::sync::MutexGuard<'_, Vec<Start>> {
        self.0.lock().unwrap()
    }
}
