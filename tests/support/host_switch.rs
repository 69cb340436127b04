//! A stand-in for host-switch, that is for the port forwarder of gvisor-tap-vsock, which cannot be had here.
//!
//! It keeps to what the real one answers: its paths, statuses, error texts and headers, the order of `/all`, entries
//! that match exactly on `protocol/local`, keep-alive, and connections closed without a word after ten idle seconds.
//! It is to be checked against the real one later. Of the real one's doings, these are left out: `unix` and `npipe`
//! forwards are only held, and nothing is forwarded unless a [`Forwarding`] does it.
//!
//! Besides, it can be made to fail in every way a test asks for ([`Fault`]). One thread for each connection.

// Named, since this file is a module of the runnable stand-in as well.
#[path = "host_switch/forwarder.rs"]
pub mod forwarder;
#[path = "host_switch/go_json.rs"]
mod go_json;
#[path = "host_switch/http.rs"]
mod http;
#[path = "host_switch/relayed.rs"]
pub mod relayed;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forwarder::{Answer, Forwarding, Nothing, Table};
use http::{End, Incoming, Requests, Stream};

/// How long tests wait for forwards, and a restart for its port.
const WAIT: Duration = Duration::from_secs(20);

/// What [`Fault::Endless`] sends of a body.
const ENDLESS_BYTES: usize = 1 << 30;

/// A running stand-in. Dropping it closes its socket and every connection.
pub struct HostSwitch {
    shared: Arc<Shared>,
    address: Address,
    listener: Arc<Listener>,
    thread: Option<JoinHandle<()>>,
}

/// A request as it came, those that were never answered included.
#[derive(Debug, Clone)]
pub struct Request {
    pub at: Instant,
    pub path: String,
    pub body: String,
    pub authorization: Option<String>,
    /// Numbered from 1.
    pub connection: u64,
    /// Of the answer; 0 as long as there is none.
    pub status: u16,
}

/// What goes wrong from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Requests are read and not carried out until the fault is taken away; then they are, even if nobody waits.
    Stall,
    /// Every request is answered with that, and not carried out.
    Status(u16, String),
    /// Every request is answered with a page, and not carried out.
    Html,
    /// A body of 1 GB, with status 200 for `/all` and 500 for everything else. Not carried out.
    Endless,
    /// Carried out, but the connection ends in the middle of the answer's body.
    CutBody,
    /// The connection is reset instead of an answer. Not carried out.
    Reset,
    /// Carried out and answered, then the connection is closed, which the answer does not say.
    CloseIdle,
    /// Carried out and answered that much later.
    Delay(Duration),
    /// The next request to a path that ends so is answered 500; then everything is normal.
    FailOnce {
        path: &'static str,
    },
    /// What `/all` answers. Other requests are carried out.
    Raw(Vec<u8>),
}

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

struct Shared {
    state: Mutex<State>,
    /// The fault has changed, a connection has ended, or all of it is to end.
    changed: Condvar,
}

struct State {
    table: Table,
    requests: Vec<Request>,
    /// How many requests were forgotten: what a request's number is more than its place.
    forgotten: usize,
    fault: Fault,
    token: Option<String>,
    connections: BTreeMap<u64, Stream>,
    connections_so_far: u64,
    connections_max: usize,
    stopped: bool,
}

impl HostSwitch {
    /// On a port of its own.
    pub fn start() -> HostSwitch {
        HostSwitch::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Waits while the address is busy, as it is for a moment in a restart.
    pub fn start_at(addr: SocketAddr) -> HostSwitch {
        HostSwitch::serve(bind(addr), Box::new(Nothing))
    }

    pub fn start_unix(path: &Path) -> HostSwitch {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        HostSwitch::run(Listener::Unix(listener), Address::Unix(path.to_owned()), Box::new(Nothing))
    }

    /// On a socket that is there already, such as one of another network namespace.
    pub fn serve(listener: TcpListener, forwarding: Box<dyn Forwarding>) -> HostSwitch {
        let address = listener.local_addr().unwrap();
        HostSwitch::run(Listener::Tcp(listener), Address::Tcp(address), forwarding)
    }

    fn run(listener: Listener, address: Address, forwarding: Box<dyn Forwarding>) -> HostSwitch {
        let state = State {
            table: Table { forwards: BTreeMap::new(), busy: BTreeMap::new(), forwarding },
            requests: Vec::new(),
            forgotten: 0,
            fault: Fault::None,
            token: None,
            connections: BTreeMap::new(),
            connections_so_far: 0,
            connections_max: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let listener = Arc::new(listener);
        let (inner, socket) = (shared.clone(), listener.clone());
        let thread = std::thread::spawn(move || inner.accept(&socket));
        HostSwitch { shared, address, listener, thread: Some(thread) }
    }

    /// Of a TCP stand-in.
    pub fn addr(&self) -> SocketAddr {
        match &self.address {
            Address::Tcp(address) => *address,
            Address::Unix(path) => panic!("{} has no port", path.display()),
        }
    }

    /// As `--sink` takes it.
    pub fn url(&self) -> String {
        match &self.address {
            Address::Tcp(address) => format!("http://{address}"),
            Address::Unix(path) => format!("http+unix://{}", path.display()),
        }
    }

    /// `tcp 127.0.0.1:8080 192.168.127.2:8080`, in order.
    pub fn forwards(&self) -> Vec<String> {
        let state = self.state();
        let lines = state.table.forwards.iter();
        let mut lines: Vec<_> =
            lines.map(|((local, protocol), remote)| format!("{protocol} {local} {remote}")).collect();
        lines.sort();
        lines
    }

    /// Waits until exactly these are held, in whatever order they are given.
    pub fn wait_forwards(&self, expect: &[&str]) {
        let mut expect: Vec<String> = expect.iter().map(ToString::to_string).collect();
        expect.sort();
        let end = Instant::now() + WAIT;
        while self.forwards() != expect {
            if Instant::now() >= end {
                let requests = self.requests();
                let last = &requests[requests.len().saturating_sub(20)..];
                panic!("not held: {expect:#?}\nbut: {:#?}\nthe last requests: {last:#?}", self.forwards());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A forward that somebody else has asked for, or the agent in an earlier life.
    pub fn insert(&self, protocol: &str, local: &str, remote: &str) {
        self.state().table.forwards.insert((local.to_owned(), protocol.to_owned()), remote.to_owned());
    }

    /// Somebody else has taken a forward away.
    pub fn remove(&self, protocol: &str, local: &str) {
        self.state().table.forwards.remove(&(local.to_owned(), protocol.to_owned()));
    }

    /// As if it had restarted, but connections stay.
    pub fn forget_all(&self) {
        self.state().table.forwards.clear();
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    pub fn forget_requests(&self) {
        let mut state = self.state();
        state.forgotten += state.requests.len();
        state.requests.clear();
    }

    /// The most connections that were open at once so far.
    pub fn connections_max(&self) -> usize {
        self.state().connections_max
    }

    /// Until it is changed.
    pub fn set_fault(&self, fault: Fault) {
        self.state().fault = fault;
        self.shared.changed.notify_all();
    }

    /// An expose of that local address is answered 500 with this reason, as with
    /// `listen tcp 127.0.0.1:80: bind: address already in use`. `None`: the address is free again.
    pub fn busy(&self, local: &str, reason: Option<&str>) {
        let busy = &mut self.state().table.busy;
        match reason {
            Some(reason) => busy.insert(local.to_owned(), reason.to_owned()),
            None => busy.remove(local),
        };
    }

    /// Requests without this bearer token are answered 401.
    pub fn require_token(&self, token: Option<&str>) {
        self.state().token = token.map(ToOwned::to_owned);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for HostSwitch {
    fn drop(&mut self) {
        // Wakes the accept, in whichever namespace the socket is.
        let _ = nix::sys::socket::shutdown(self.listener.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // A thread of a connection that panicked has shown why, and its mutex is of no use any more.
        let Ok(mut state) = self.shared.state.lock() else { return };
        state.stopped = true;
        state.connections.values().for_each(Stream::shutdown);
        self.shared.changed.notify_all();
        let ended = self.shared.changed.wait_timeout_while(state, WAIT, |state| !state.connections.is_empty());
        drop(ended);
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener) => Ok(Stream::Unix(listener.accept()?.0)),
        }
    }
}

/// Listens there, as soon as the address is free.
pub fn bind(addr: SocketAddr) -> TcpListener {
    let end = Instant::now() + WAIT;
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{addr}: {error}"),
        }
    }
}

impl Shared {
    fn accept(self: Arc<Shared>, listener: &Listener) {
        while let Ok(stream) = listener.accept() {
            let Ok(twin) = stream.try_clone() else { continue };
            let number = {
                let mut state = self.state.lock().unwrap();
                state.connections_so_far += 1;
                let number = state.connections_so_far;
                state.connections.insert(number, twin);
                state.connections_max = state.connections_max.max(state.connections.len());
                number
            };
            let shared = self.clone();
            std::thread::spawn(move || {
                // Whatever happens in there, the connection ends here.
                let _open = Open { shared: &shared, number };
                shared.converse(stream, number);
            });
        }
    }

    /// Answers requests until one side has had enough.
    fn converse(&self, mut stream: Stream, number: u64) {
        let Ok(read) = stream.try_clone() else { return };
        let mut requests = Requests::new(read);
        loop {
            match requests.next() {
                Ok(incoming) => {
                    if !self.serve(&mut stream, number, &incoming) || incoming.last {
                        return;
                    }
                }
                Err(End::Bad(words)) => {
                    let _ = stream.write_all(&http::bad_request(words));
                    return;
                }
                Err(End::Silent) => return,
            }
        }
    }

    /// Answers one request, rightly or not. `false`: the connection is to be closed.
    fn serve(&self, stream: &mut Stream, number: u64, incoming: &Incoming) -> bool {
        let mut state = self.state.lock().unwrap();
        state.requests.push(Request {
            at: Instant::now(),
            path: incoming.path.clone(),
            body: String::from_utf8_lossy(&incoming.body).into_owned(),
            authorization: incoming.authorization.clone(),
            connection: number,
            status: 0,
        });
        let place = state.forgotten + state.requests.len() - 1;
        let fault = state.fault.clone();
        state = match &fault {
            Fault::Delay(time) => self.changed.wait_timeout_while(state, *time, |state| !state.stopped).unwrap().0,
            Fault::Stall => {
                self.changed.wait_while(state, |state| state.fault == Fault::Stall && !state.stopped).unwrap()
            }
            _ => state,
        };
        if state.stopped {
            return false;
        }
        let Some((answer, end)) = state.decide(&fault, stream, incoming) else { return false };
        if let Some(at) = place.checked_sub(state.forgotten) {
            state.requests[at].status = answer.status;
        }
        drop(state);
        let sent = match end {
            Ending::Whole | Ending::Closed => stream.write_all(&http::encode(&answer, incoming.last)),
            Ending::Page => stream.write_all(&page(&answer)),
            Ending::Cut => stream.write_all(&cut(&answer)),
            Ending::Endless => endless(stream, answer.status),
        };
        sent.is_ok() && matches!(end, Ending::Whole | Ending::Page)
    }
}

/// A connection as long as it is open.
struct Open<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.connections.remove(&self.number);
        }
        self.shared.changed.notify_all();
    }
}

/// How an answer goes out.
enum Ending {
    Whole,
    Page,
    Closed,
    Cut,
    Endless,
}

impl State {
    /// `None`: no answer at all.
    fn decide(&mut self, fault: &Fault, stream: &Stream, incoming: &Incoming) -> Option<(Answer, Ending)> {
        if let Some(token) = &self.token {
            if incoming.authorization.as_ref() != Some(&format!("Bearer {token}")) {
                return Some((Answer::error(401, "Unauthorized"), Ending::Whole));
            }
        }
        let all = incoming.path == "/services/forwarder/all";
        let body = |text: &str| text.as_bytes().to_vec();
        match fault {
            Fault::Status(status, text) => Some((Answer { status: *status, body: body(text) }, Ending::Whole)),
            Fault::Html => Some((Answer { status: 200, body: body(PAGE) }, Ending::Page)),
            Fault::Endless => Some((Answer { status: if all { 200 } else { 500 }, body: Vec::new() }, Ending::Endless)),
            Fault::Reset => {
                stream.reset_on_close();
                None
            }
            Fault::FailOnce { path } if incoming.path.ends_with(path) => {
                self.fault = Fault::None;
                Some((Answer::error(500, "temporary failure"), Ending::Whole))
            }
            Fault::Raw(bytes) if all => Some((Answer { status: 200, body: bytes.clone() }, Ending::Whole)),
            Fault::CutBody => self.carry_out(stream, incoming).map(|answer| (answer, Ending::Cut)),
            Fault::CloseIdle => self.carry_out(stream, incoming).map(|answer| (answer, Ending::Closed)),
            Fault::None | Fault::Stall | Fault::Delay(_) | Fault::FailOnce { .. } | Fault::Raw(_) => {
                self.carry_out(stream, incoming).map(|answer| (answer, Ending::Whole))
            }
        }
    }

    fn carry_out(&mut self, stream: &Stream, incoming: &Incoming) -> Option<Answer> {
        self.table.answer(&incoming.method, &incoming.path, &incoming.body, &stream.caller())
    }
}

const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in to go on.</body></html>\n";

fn page(answer: &Answer) -> Vec<u8> {
    let head = http::head(answer.status, false);
    let length = answer.body.len();
    let mut out =
        format!("{head}Content-Length: {length}\r\nContent-Type: text/html; charset=utf-8\r\n\r\n").into_bytes();
    out.extend_from_slice(&answer.body);
    out
}

/// Half of a body, of which more is promised.
fn cut(answer: &Answer) -> Vec<u8> {
    let head = http::head(answer.status, answer.status != 200);
    let mut out = format!("{head}Content-Length: {}\r\n\r\n", answer.body.len() + 16).into_bytes();
    out.extend_from_slice(&answer.body[..answer.body.len() / 2]);
    out
}

/// A list that never ends, or a reason.
fn endless(stream: &mut Stream, status: u16) -> io::Result<()> {
    let head = http::head(status, status != 200);
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n").as_bytes())?;
    let entry = r#"{"local":"127.0.0.1:7","remote":"192.168.127.2:7","protocol":"tcp"},"#;
    let piece = entry.repeat(1000);
    let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
    for _ in 0..ENDLESS_BYTES / piece.len() {
        stream.write_all(chunk.as_bytes())?;
    }
    stream.write_all(b"0\r\n\r\n")
}
