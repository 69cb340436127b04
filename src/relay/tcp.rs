//! The TCP listeners: accepts, decides who is let in, and hands each connection to a thread of its own.
//!
//! Never waits, and never reads from or writes to a connection.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use log::debug;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::{Connection, Counted, Endpoint};
use super::context::Context;
use super::socket;
use crate::ordered::Map;

/// Connections accepted from one listener before the others get their turn.
const BATCH_MAX: usize = 64;

/// How long a listener is left alone when the system has no descriptor or memory for another connection. Clients wait
/// in its backlog.
const PAUSE: Duration = Duration::from_millis(100);

/// All TCP listeners of a relay.
#[derive(Default)]
pub(super) struct Tcp {
    listeners: Map<u64, Listener>,
    /// Those left alone, and until when; in order of time, since all pauses are equally long.
    paused: VecDeque<(Instant, u64)>,
}

struct Listener {
    socket: TcpListener,
    target: SocketAddr,
    /// Ends this listener's connections when it becomes readable. Held by them alone: nothing is kept while there are none.
    stop: Weak<EventFd>,
}

impl Tcp {
    pub(super) fn open(&mut self, cx: &mut Context, listen: SocketAddr, target: SocketAddr) -> io::Result<u64> {
        let listener = Listener { socket: socket::tcp_listener(listen)?, target, stop: Weak::new() };
        let token = cx.watch(&listener.socket)?;
        self.listeners.insert(token, listener);
        Ok(token)
    }

    pub(super) fn retarget(&mut self, token: u64, target: SocketAddr) {
        if let Some(listener) = self.listeners.get_mut(&token) {
            listener.target = target;
        }
    }

    pub(super) fn close(&mut self, token: u64) {
        self.listeners.remove(&token);
    }

    /// Accepts from the listener of that token, if it is one. `false`: it is none.
    pub(super) fn ready(&mut self, cx: &mut Context, token: u64, now: Instant) -> bool {
        let Some(listener) = self.listeners.get_mut(&token) else { return false };
        for _ in 0..BATCH_MAX {
            match listener.accept(cx, now) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => break,
                // That one connection failed before it was accepted; more may wait behind it.
                Err(Errno::ECONNABORTED | Errno::EPROTO | Errno::EPERM | Errno::EINTR) => {}
                Err(e) => {
                    debug!("{}: accept: {e}", cx.name);
                    cx.exhausted.hit(now);
                    if set_events(cx, &listener.socket, token, EpollFlags::empty()).is_ok() {
                        self.paused.push_back((now + PAUSE, token));
                    }
                    break;
                }
            }
        }
        true
    }

    /// When to call [`Tcp::resume`], if at all.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.paused.front().map(|(until, _)| *until)
    }

    /// Listens again where it was left alone for long enough.
    pub(super) fn resume(&mut self, cx: &Context, now: Instant) {
        while let Some((_, token)) = self.paused.front().copied().filter(|(until, _)| *until <= now) {
            self.paused.pop_front();
            let Some(listener) = self.listeners.get(&token) else { continue };
            if let Err(e) = set_events(cx, &listener.socket, token, EpollFlags::EPOLLIN) {
                debug!("{}: listening again: {e}", cx.name);
                self.paused.push_back((now + PAUSE, token));
            }
        }
    }
}

impl Listener {
    /// Accepts one connection, and lets it in or resets it. Errors are those of accept only.
    fn accept(&mut self, cx: &mut Context, now: Instant) -> nix::Result<()> {
        let (stream, peer) = self.socket.accept().map_err(|e| Errno::try_from(e).unwrap_or(Errno::EIO))?;
        // From here on, whatever is not handed to a thread is dropped, and so reset.
        let nonblocking = stream.set_nonblocking(true);
        let client = Endpoint::new(stream.into());
        if !(cx.admit)(peer.ip().to_canonical()) {
            cx.counters.not_admitted.fetch_add(1, Ordering::Relaxed);
            debug!("{}: tcp connection from {peer} is not admitted", cx.name);
        } else if cx.counters.connections.load(Ordering::Relaxed) >= cx.limits.connections_max {
            cx.counters.over_limit.fetch_add(1, Ordering::Relaxed);
            cx.over_connections.hit(now);
        } else if let Err(e) = nonblocking.and_then(|()| self.hand_over(cx, client)) {
            debug!("{}: tcp connection from {peer}: {e}", cx.name);
            cx.counters.over_limit.fetch_add(1, Ordering::Relaxed);
            cx.exhausted.hit(now);
        }
        Ok(())
    }

    fn hand_over(&mut self, cx: &Context, client: Endpoint) -> io::Result<()> {
        let stop = match self.stop.upgrade() {
            Some(stop) => stop,
            None => Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?),
        };
        self.stop = Arc::downgrade(&stop);
        let _counted = Counted::new(&cx.counters);
        let connect_timeout = cx.limits.connect_timeout;
        Connection { client, target: self.target, connect_timeout, stop, _counted }.spawn(&cx.name)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.upgrade() {
            // Cannot fail: this is its only write.
            let _ = stop.write(1);
        }
    }
}

fn set_events(cx: &Context, listener: &TcpListener, token: u64, events: EpollFlags) -> nix::Result<()> {
    cx.epoll.modify(listener, &mut EpollEvent::new(events, token))
}
