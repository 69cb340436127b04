//! A stand-in for kube-apiserver, as far as a client goes that lists and watches Services, since the real one cannot be
//! had where these tests run. What it says is to be what a real one would say.
//!
//! It follows the Kubernetes API reference ("Service v1 core", ServiceList, WatchEvent, Status) and the page "Kubernetes
//! API Concepts": "Efficient detection of changes", "Watch bookmarks", "410 Gone responses", "Retrieving large results
//! sets in chunks" and "Resource versions". Fields come in the order of the real server's types. Bodies of up to 2,048
//! bytes have a Content-Length and longer ones are chunked, as Go's `net/http` has it. Like k3s's it knows no anonymous
//! clients: one without a certificate of the right authority or a known token gets 401, and so does one with a
//! certificate from elsewhere (the real server asks for a certificate without verifying it in the handshake; see
//! [`KubeServer::alert_foreign_certificates`] for proxies that do).
//!
//! Left out: HTTP/2, gzip, TLS 1.2, other resources than all Services (`/api/v1/services`) and `/version`, writing,
//! selectors, `resourceVersionMatch`, `sendInitialEvents`, tables and protobuf, pretty-printing for curl, authorization,
//! the three seconds before a resourceVersion from the future gets its 504.
//!
//! Threads: one accepts, and each connection has one; a change is written to all watches by the thread that applies it.
//! A client that does not read for ten seconds is cut. Everything ends, and is waited for, when the server is dropped.

mod connection;
mod http;
mod peer;
mod service;
mod state;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::certs::Pki;
use super::eventually;
use super::vm::{Namespace, enter_named};
#[allow(unused_imports)] // Not every test that has this module names clients and ports.
pub use http::{Client, Request};
use peer::Tls;
#[allow(unused_imports)]
pub use service::{Port, Service};
use state::State;

pub const SERVICES: &str = "/api/v1/services";

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 128;

/// Which requests a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Any,
    List,
    Watch,
}

/// What goes wrong with a request, or with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is accepted and the handshake never answered. Whichever requests it is said to be for.
    HandshakeStall,
    /// The request is read and never answered.
    Mute,
    /// Answered with this code and its Status. `retry_after` (seconds) is for 429 and 503.
    Status { code: u16, retry_after: Option<u64> },
    /// As `Status`, but with a line of text, as priority and fairness answers 429, and proxies anything.
    Text { code: u16, retry_after: Option<u64> },
    /// Head, and then the connection is cut.
    DropAfterHead,
    /// Half of the body of a list, and then nothing. A watch gets its head and nothing.
    Stall,
}

/// How watches are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// In the middle of a line, with the connection.
    MidLine,
    /// The connection ends, with neither last chunk nor TLS close_notify.
    BetweenLines,
    /// With the last chunk, as after `timeoutSeconds`: the connection stays.
    InOrder,
}

/// A change that was made.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    pub version: u64,
    /// Just before the first byte was written to the first watch.
    pub written: Instant,
}

/// A running server. What it knows outlives [`KubeServer::stop`].
pub struct KubeServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Where the listener is made; `None`: here.
    namespace: Option<String>,
    tls: Mutex<Tls>,
    alert: Arc<AtomicBool>,
    listening: Mutex<Option<Listening>>,
}

struct Listening {
    listener: Arc<TcpListener>,
    thread: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    connections: Mutex<Vec<(Arc<TcpStream>, JoinHandle<()>)>>,
}

impl KubeServer {
    /// Listens there; port 0: on any that is free, and after a restart on the same.
    pub fn start(pki: &Pki, address: &str) -> KubeServer {
        KubeServer::start_at(None, pki, address)
    }

    /// Listens in a network namespace.
    pub fn start_in(namespace: &Namespace, pki: &Pki, address: &str) -> KubeServer {
        KubeServer::start_at(Some(namespace.name().to_owned()), pki, address)
    }

    fn start_at(namespace: Option<String>, pki: &Pki, address: &str) -> KubeServer {
        let alert = Arc::new(AtomicBool::new(false));
        let mut server = KubeServer {
            shared: Arc::new(Shared { state: Mutex::new(State::new()), connections: Mutex::default() }),
            address: address.parse().unwrap(),
            namespace,
            tls: Mutex::new(Tls::new(pki, alert.clone())),
            alert,
            listening: Mutex::default(),
        };
        server.address = server.listen();
        server
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// All connections are cut, and new ones are refused.
    pub fn stop(&self) {
        self.refuse();
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        for (socket, _) in &connections {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for (_, thread) in connections {
            // What it panicked with has been printed, and the test fails of it or not.
            let _ = thread.join();
        }
    }

    /// New connections are refused; those that are there go on.
    pub fn refuse(&self) {
        if let Some(Listening { listener, thread }) = self.listening.lock().unwrap().take() {
            let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            let _ = thread.join();
        }
    }

    /// Listens again after [`KubeServer::refuse`] or [`KubeServer::stop`].
    pub fn resume(&self) {
        self.listen();
    }

    /// Stops and starts on the same port, with what it knows.
    pub fn restart(&self) {
        self.stop();
        self.resume();
    }

    /// As [`KubeServer::restart`], with new certificates and authorities.
    pub fn restart_with(&self, pki: &Pki) {
        self.stop();
        *self.tls.lock().unwrap() = Tls::new(pki, self.alert.clone());
        self.resume();
    }

    fn listen(&self) -> SocketAddr {
        let mut listening = self.listening.lock().unwrap();
        assert!(listening.is_none(), "the server listens already");
        let address = self.address;
        let bind = || TcpListener::bind(address);
        let listener = match &self.namespace {
            Some(name) => enter_named(name, bind),
            None => bind(),
        };
        let listener = Arc::new(listener.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}")));
        let own = listener.local_addr().unwrap();
        let (accepting, shared, tls) = (listener.clone(), self.shared.clone(), self.tls.lock().unwrap().clone());
        let thread = named("kube-accept", move || accept(&accepting, &shared, &tls));
        *listening = Some(Listening { listener, thread });
        own
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// ADDED where there is none of that name, else MODIFIED.
    pub fn apply(&self, service: Service) -> Applied {
        let (version, written) = self.state().apply(service);
        Applied { version, written }
    }

    /// Panics where there is none of that name.
    pub fn delete(&self, namespace: &str, name: &str) -> Applied {
        let (version, written) = self.state().delete(namespace, name);
        Applied { version, written }
    }

    /// All there are now, by namespace and name.
    pub fn services(&self) -> Vec<Service> {
        self.state().services()
    }

    /// The latest resourceVersion.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Other resources change, as they do all the time: the version goes up, and no watch of Services hears of it.
    pub fn advance(&self, by: u64) {
        self.state().version += by;
    }

    /// Watches cannot be started from before now any more, nor lists in chunks be gone on with.
    pub fn compact(&self) {
        self.state().compact();
    }

    /// Sends a bookmark now to all watches that asked for them.
    pub fn bookmark(&self) {
        self.state().bookmark(None);
    }

    /// How often bookmarks come on watches opened from now on; at first every minute.
    pub fn bookmark_every(&self, interval: Duration) {
        self.state().bookmark_every = interval;
    }

    /// One chunk of any bytes to all open watches. It is not for later ones; no newline is added.
    pub fn raw_event(&self, bytes: &[u8]) {
        self.state().raw_event(bytes);
    }

    /// Lists are answered with these bytes, or no longer.
    pub fn raw_list(&self, bytes: Option<Vec<u8>>) {
        self.state().raw_list = bytes.map(|bytes| http::framed(&bytes).into());
    }

    /// A client with this token needs no certificate.
    pub fn add_token(&self, token: &str) {
        self.state().tokens.push(token.to_owned());
    }

    /// No token is known any more.
    pub fn forget_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Ends the handshake of a client that shows a certificate of another authority with a TLS alert, as proxies do. A
    /// real apiserver answers it 401. For connections from now on.
    pub fn alert_foreign_certificates(&self, alert: bool) {
        self.alert.store(alert, Ordering::Relaxed);
    }

    /// The next so many requests go wrong, or all until [`KubeServer::clear_faults`]. The first that fits is taken.
    pub fn fault(&self, on: On, fault: Fault, times: Option<usize>) {
        assert!(times != Some(0), "a fault that never is");
        self.state().faults.push((on, fault, times));
    }

    /// Connections and requests from now on are served. Those that were stalled stay so until they are closed.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// While stalled, watches stay open and get nothing but raw events; afterwards they get what they have missed.
    pub fn stall_watches(&self, stalled: bool) {
        self.state().stall(stalled);
    }

    pub fn cut_watches(&self, how: Cut) {
        self.state().cut_watches(how);
    }

    /// An ERROR event with a Status 410 to all open watches, which end in order.
    pub fn expire_watches(&self) {
        self.state().expire_watches();
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.state().watches()
    }

    /// How many watches were ever opened.
    pub fn watches_opened(&self) -> u64 {
        self.state().watches_opened
    }

    /// Waits until exactly so many watches are open.
    pub fn wait_watches(&self, expect: usize) {
        self.eventually(&format!("{expect} watches"), || (self.watches() == expect).then_some(()));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// Waits until at least so many requests came that fit, and returns these.
    pub fn wait_requests(&self, expect: usize, fits: impl Fn(&Request) -> bool) -> Vec<Request> {
        self.eventually(&format!("{expect} requests"), || {
            let found: Vec<Request> = self.requests().into_iter().filter(&fits).collect();
            (found.len() >= expect).then_some(found)
        })
    }

    fn eventually<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        eventually(what, || probe().ok_or_else(|| (self.watches(), self.requests())))
    }
}

impl Drop for KubeServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn named(name: &str, f: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(f).unwrap()
}

/// Until the listener is shut down.
fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: &Tls) {
    while let Ok((socket, _)) = listener.accept() {
        let mut connections = shared.connections.lock().unwrap();
        connections.retain(|(_, thread)| !thread.is_finished());
        if connections.len() < CONNECTIONS_MAX {
            let socket = Arc::new(socket);
            let (own, shared, tls) = (socket.clone(), shared.clone(), tls.clone());
            let thread = named("kube-connection", move || {
                // An error ends the connection, and that is all there is to say of it.
                let _ = shared.connection(&own, &tls);
                let _ = own.shutdown(Shutdown::Both);
            });
            connections.push((socket, thread));
        }
    }
}
