//! A container engine made of paper, for what the real one cannot be brought to do: 10,000 events in a second, lines
//! cut in the middle, an inspect that answers 404, IPv4 and IPv6 with different ports. Its answers have the form of
//! Docker 20.10's (API 1.41), read off the real one by `tests/docker.rs`'s engines.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{TempDir, eventually};

#[derive(Default)]
struct State {
    version: String,
    /// Running containers: id to the `Ports` object of an inspect.
    containers: BTreeMap<String, Value>,
    /// Of those that were renamed. Others are called as [`name`] has it.
    names: BTreeMap<String, String>,
    subscriptions: usize,
    requests: Vec<String>,
    down: bool,
}

/// Those who follow the events. Not part of the state: a reader that is slow to take events must get its answers, or both
/// wait for each other.
type Streams = Mutex<Vec<UnixStream>>;

pub struct EngineStub {
    dir: TempDir,
    state: Arc<Mutex<State>>,
    streams: Arc<Streams>,
}

/// A container id as Docker's are.
pub fn id(number: u32) -> String {
    format!("{number:064x}")
}

/// What a container is called from its start.
pub fn name(id: &str) -> String {
    format!("web-{}", id.trim_start_matches('0'))
}

/// One entry of `Ports`: `("80/tcp", "0.0.0.0", "8080")`.
pub fn ports(entries: &[(&str, &str, &str)]) -> Value {
    let mut all = serde_json::Map::new();
    for (key, ip, port) in entries {
        let list = all.entry((*key).to_owned()).or_insert_with(|| json!([]));
        list.as_array_mut().unwrap().push(json!({"HostIp": ip, "HostPort": port}));
    }
    Value::Object(all)
}

impl State {
    fn name(&self, id: &str) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| name(id))
    }
}

impl EngineStub {
    pub fn new() -> EngineStub {
        EngineStub::with_version(r#"{"ApiVersion":"1.41","MinAPIVersion":"1.12"}"#)
    }

    pub fn with_version(version: &str) -> EngineStub {
        let dir = TempDir::new();
        let state = Arc::new(Mutex::new(State { version: version.to_owned(), ..State::default() }));
        let listener = UnixListener::bind(dir.join("engine.sock")).unwrap();
        let streams: Arc<Streams> = Arc::default();
        let shared = (state.clone(), streams.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (state, streams) = shared.clone();
                std::thread::spawn(move || serve(stream, &state, &streams));
            }
        });
        EngineStub { dir, state, streams }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("engine.sock")
    }

    /// How often the event stream was asked for.
    pub fn subscriptions(&self) -> usize {
        self.state.lock().unwrap().subscriptions
    }

    pub fn wait_subscriptions(&self, expect: usize) {
        eventually("a subscription", || match self.subscriptions() {
            n if n >= expect => Ok(()),
            n => Err(n),
        });
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Answers 500 to everything, or no longer.
    pub fn down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    /// The container runs, without an event.
    pub fn add(&self, id: &str, ports: Value) {
        self.state.lock().unwrap().containers.insert(id.to_owned(), ports);
    }

    /// The container is gone, without an event.
    pub fn forget(&self, id: &str) {
        self.state.lock().unwrap().containers.remove(id);
    }

    pub fn start(&self, id: &str, ports: Value) {
        self.add(id, ports);
        self.event("container", "start", id);
    }

    pub fn end(&self, id: &str) {
        self.forget(id);
        self.event("container", "die", id);
        self.event("container", "destroy", id);
    }

    pub fn rename(&self, id: &str, name: &str) {
        self.state.lock().unwrap().names.insert(id.to_owned(), name.to_owned());
        self.event("container", "rename", id);
    }

    pub fn event(&self, kind: &str, action: &str, id: &str) {
        let name = self.state.lock().unwrap().name(id);
        let event = json!({"status": action, "id": id, "from": "busybox:local", "Type": kind, "Action": action,
            "Actor": {"ID": id, "Attributes": {"image": "busybox:local", "container": id, "name": name}}, "scope": "local",
            "time": 1_795_000_000, "timeNano": 1_795_000_000_000_000_000_u64});
        self.raw(format!("{event}\n").as_bytes());
    }

    /// Bytes into the event stream, as one chunk.
    pub fn raw(&self, bytes: &[u8]) {
        for stream in self.streams.lock().unwrap().iter_mut() {
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            let _ = stream.write_all(&chunk);
        }
    }

    /// Ends the event streams, as a dying engine does.
    pub fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>, streams: &Streams) {
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut path = String::new();
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim() {
                "" => break,
                line if path.is_empty() => path = line.split(' ').nth(1).unwrap().to_owned(),
                _ => {}
            }
        }
        let mut state = state.lock().unwrap();
        state.requests.push(path.clone());
        let mut out = &stream;
        let (status, body) = answer(&mut state, &path);
        if path.contains("/events") && status == "200 OK" {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            out.write_all(head.as_bytes()).unwrap();
            streams.lock().unwrap().push(stream.try_clone().unwrap());
            state.subscriptions += 1;
            return;
        }
        drop(state);
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        if out.write_all(head.as_bytes()).and_then(|()| out.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

fn answer(state: &mut State, path: &str) -> (&'static str, String) {
    if state.down {
        return ("500 Internal Server Error", json!({"message": "down ".repeat(200)}).to_string());
    }
    if path == "/version" {
        return ("200 OK", state.version.clone());
    }
    if path.contains("/events?") {
        return ("200 OK", String::new());
    }
    if path.contains("/containers/json?") {
        let list: Vec<Value> = state.containers.iter().map(|(id, ports)| listed(id, &state.name(id), ports)).collect();
        return ("200 OK", Value::Array(list).to_string());
    }
    let id = path.split('/').rev().nth(1).unwrap_or_default();
    match state.containers.get(id) {
        Some(ports) => {
            let settings = json!({"Ports": ports, "Networks": {"bridge": {"GlobalIPv6Address": ""}}});
            let name = format!("/{}", state.name(id));
            (
                "200 OK",
                json!({"Id": id, "Name": name, "State": {"Running": true}, "NetworkSettings": settings}).to_string(),
            )
        }
        None => ("404 Not Found", json!({"message": format!("No such container: {id}")}).to_string()),
    }
}

fn listed(id: &str, name: &str, ports: &Value) -> Value {
    let mut list = Vec::new();
    for (key, hosts) in ports.as_object().unwrap() {
        let (port, protocol) = key.split_once('/').unwrap();
        for host in hosts.as_array().into_iter().flatten() {
            list.push(json!({"IP": host["HostIp"], "PrivatePort": port.parse::<u64>().unwrap_or(0),
                "PublicPort": host["HostPort"].as_str().unwrap().parse::<u64>().unwrap_or(0), "Type": protocol}));
        }
    }
    json!({"Id": id, "Names": [format!("/{name}")], "Ports": list, "State": "running", "NetworkSettings": {"Networks": {}}})
}
