//! Userspace TCP and UDP pipes: from an address that is listened on to one that is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::port::Protocol;

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

/// Decides, from a client's address, whether it may use the relay. Called on the relay's own thread: must be quick.
pub type Admit = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Counts since the relay's start, and what is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// TCP connections open now.
    pub connections: usize,
    /// UDP flows open now.
    pub flows: usize,
    /// Connections and datagrams refused because of a limit.
    pub over_limit: u64,
    /// Connections and datagrams refused by [`Admit`].
    pub not_admitted: u64,
}

/// A running relay. Dropping it closes every listener, ends every connection and joins every thread.
pub struct Relay {}

impl Relay {
    /// Starts the relay's thread, named `name` (at most 15 bytes).
    pub fn start(_name: &str, _limits: Limits, _admit: Admit) -> io::Result<Relay> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Listens on `listen` and pipes to `target`. Already open with the same target: does nothing. With another:
    /// new connections and flows go to the new target. Errors are those of socket, bind and listen.
    pub fn open(&self, _protocol: Protocol, _listen: SocketAddr, _target: SocketAddr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Stops listening on `listen`, and ends the connections and flows that came in through it.
    /// `false`: there was no such listener.
    pub fn close(&self, _protocol: Protocol, _listen: SocketAddr) -> bool {
        false
    }

    /// What is open now, and what was refused so far.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
