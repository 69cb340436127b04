//! One TCP connection: its thread connects to the target and then carries bytes until the connection ends.
//!
//! Nothing outlives the relay: the listener's stop descriptor is watched wherever the thread waits. Nothing ends a stream
//! as if it were complete when it is not: an [`Endpoint`] is reset unless it was carried to its end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Builder;
use std::time::{Duration, Instant};

use log::debug;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{getsockopt, sockopt};

use super::context::timeout_until;
use super::{Counters, pipe, socket};

/// A thread that only waits and splices needs little; what it does need is log formatting.
const STACK_BYTES: usize = 64 * 1024;

/// An accepted connection. The order of the fields is that of their end: it is counted until its sockets are closed.
pub(super) struct Connection {
    pub(super) client: Endpoint,
    pub(super) target: SocketAddr,
    pub(super) connect_timeout: Duration,
    /// Readable once the connection has to end.
    pub(super) stop: Arc<EventFd>,
    pub(super) _counted: Counted,
}

impl Connection {
    /// Gives it a thread. If there is none to be had, the client is reset.
    pub(super) fn spawn(self, name: &str) -> io::Result<()> {
        let run: Box<dyn FnOnce() + Send> = Box::new(move || self.run());
        Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run).map(drop)
    }

    fn run(mut self) {
        if let Err(e) = self.relay() {
            debug!("tcp connection to {}: {e}", self.target);
        }
    }

    fn relay(&mut self) -> nix::Result<()> {
        let mut target = Endpoint::new(self.connect()?);
        pipe::carry(self.client.fd.as_fd(), target.fd.as_fd(), self.stop.as_fd())?;
        self.client.complete = true;
        target.complete = true;
        Ok(())
    }

    fn connect(&self) -> nix::Result<OwnedFd> {
        let deadline = Instant::now() + self.connect_timeout;
        let target = socket::tcp_to(self.target)?;
        match socket::connect_to(&target, self.target) {
            Ok(()) => return Ok(target),
            Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        loop {
            let mut fds = [
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                // Asked for nothing: reports only that the client has reset the connection.
                PollFd::new(self.client.fd.as_fd(), PollFlags::empty()),
                PollFd::new(target.as_fd(), PollFlags::POLLOUT),
            ];
            match poll(&mut fds, timeout_until(Some(deadline), Instant::now())) {
                Ok(0) => return Err(Errno::ETIMEDOUT),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e),
            }
            let [stopped, client_gone, _] = fds.map(|fd| fd.any().unwrap_or(true));
            return match getsockopt(&target, sockopt::SocketError)? {
                _ if stopped => Err(Errno::ECANCELED),
                _ if client_gone => Err(Errno::ECONNRESET),
                0 => Ok(target),
                error => Err(Errno::from_raw(error)),
            };
        }
    }
}

/// One side's socket. Dropped before it is complete, its peer sees a reset.
pub(super) struct Endpoint {
    fd: OwnedFd,
    complete: bool,
}

impl Endpoint {
    pub(super) fn new(fd: OwnedFd) -> Endpoint {
        Endpoint { fd, complete: false }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !self.complete {
            // If this fails the peer sees an end of data: nothing better is left to do.
            let _ = socket::reset_on_close(&self.fd);
        }
    }
}

/// Keeps a connection in the counters, for which the relay's end waits.
pub(super) struct Counted(Arc<Counters>);

impl Counted {
    pub(super) fn new(counters: &Arc<Counters>) -> Counted {
        counters.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(counters))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
