//! Userspace TCP and UDP pipes: from an address that is listened on to one that is connected to.
//!
//! One thread per [`Relay`] (`event_loop`) owns all of its sockets that listen and all UDP flows, and sleeps in epoll
//! when nothing happens, however many listeners there are. An accepted TCP connection gets a small thread of its own
//! (`connection`), which connects to the target and then moves bytes with splice (`pipe`).
//!
//! ```text
//! Relay ──Request──▶ event_loop ─┬─ tcp: listeners ──accept──▶ connection (thread) ── pipe: client ⇄ target
//!   ▲ ◀──reply──────────┘        └─ udp: listeners ◀─▶ flows, one connected socket per client
//!   └── Counters, kept by everyone
//! ```
//!
//! What was not carried to its end in order is reset, never closed as if it were complete. Nothing here knows what a
//! container is, decides who may connect ([`Admit`] does), looks at the bytes, or writes a log line per connection
//! above debug level.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::port::Protocol;
use crate::queue::{self, Sender};
use event_loop::{EventLoop, Request};

mod connection;
mod context;
mod event_loop;
mod folded;
mod pipe;
pub(crate) mod socket;
mod tcp;
mod udp;

/// Requests that may wait for the relay's thread. Every caller waits for its answer, so this bounds callers only.
const REQUESTS_MAX: usize = 16;

/// The event loop's stack; its datagram buffer is on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// Bounds of one relay. All of them are per relay, not per listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TCP connections open at once; one more is reset at once and counted.
    pub connections_max: usize,
    /// UDP flows (client address and listener) open at once; a datagram that would open one more is dropped and counted.
    pub flows_max: usize,
    /// A UDP flow without a datagram either way for this long is closed.
    pub flow_idle: Duration,
    /// Longest wait for a TCP target to accept.
    pub connect_timeout: Duration,
}

/// Decides, from a client's address, whether it may use the relay: asked once per TCP connection and once per UDP flow.
/// Called on the relay's own thread: must be quick.
pub type Admit = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Counts since the relay's start, and what is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// TCP connections open now.
    pub connections: usize,
    /// UDP flows open now.
    pub flows: usize,
    /// Connections and datagrams refused because of a limit, be it one of [`Limits`] or one of the system.
    pub over_limit: u64,
    /// Connections and datagrams refused by [`Admit`].
    pub not_admitted: u64,
}

/// [`Stats`] as they are kept: plain counts that guard nothing, hence relaxed.
#[derive(Default)]
struct Counters {
    connections: AtomicUsize,
    flows: AtomicUsize,
    over_limit: AtomicU64,
    not_admitted: AtomicU64,
}

/// A running relay. Dropping it closes every listener and ends every connection, and waits for their threads (at most
/// 2 s for those of connections, which are told at once).
pub struct Relay {
    /// `None` only while being dropped: the loop ends when nobody can send requests any more.
    requests: Option<Sender<Request>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
}

impl Relay {
    /// Starts the relay's thread, named `name` (at most 15 bytes). Threads of connections have the same name.
    pub fn start(name: &str, limits: Limits, admit: Admit) -> io::Result<Relay> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let counters = Arc::new(Counters::default());
        let (requests, received) = queue::bounded(REQUESTS_MAX);
        let event_loop = EventLoop::new(name, limits, admit, Arc::clone(&counters), received, Arc::clone(&wake))?;
        let run: Box<dyn FnOnce() + Send> = Box::new(move || event_loop.run());
        let thread = Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Relay { requests: Some(requests), wake, thread: Some(thread), counters })
    }

    /// Listens on `listen` and pipes to `target`. Already open with the same target: does nothing. With another: new
    /// connections and all datagrams go to the new target. Errors are those of socket, bind and listen.
    pub fn open(&self, protocol: Protocol, listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
        self.ask(|reply| Request::Open { protocol, listen, target, reply })
            .unwrap_or_else(|| Err(io::Error::other("the relay's thread has ended")))
    }

    /// Stops listening on `listen`, and ends the connections and flows that came in through it.
    /// `false`: there was no such listener.
    pub fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool {
        self.ask(|reply| Request::Close { protocol, listen, reply }).unwrap_or(false)
    }

    /// What is open now, and what was refused so far.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.counters.connections.load(Ordering::Relaxed),
            flows: self.counters.flows.load(Ordering::Relaxed),
            over_limit: self.counters.over_limit.load(Ordering::Relaxed),
            not_admitted: self.counters.not_admitted.load(Ordering::Relaxed),
        }
    }

    /// Has the loop carry out a request. `None`: the loop is gone.
    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = queue::bounded(1);
        self.requests.as_ref()?.send(request(reply)).ok()?;
        self.wake.write(1).ok()?;
        answer.recv(None).ok()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.requests = None;
        // Neither can fail in a way that matters: a full counter wakes the loop as well, and a loop that panicked is gone.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
