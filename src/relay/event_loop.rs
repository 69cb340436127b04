//! The relay's thread: waits for sockets, requests and deadlines, and has `tcp` and `udp` do what there is to do.
//!
//! Owns everything there is, hence there is no lock. Never waits anywhere but in epoll (except for the connections'
//! threads, when it ends), and does no work that grows with the number of listeners or flows on any event.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::sleep;
use std::time::{Duration, Instant};

use log::{error, warn};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;

use super::context::{Context, timeout_until};
use super::folded::Folded;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{Admit, Counters, Limits};
use crate::ordered::Map;
use crate::port::Protocol;
use crate::queue::{Receiver, Sender};

/// Events taken from epoll at once.
const EVENTS_MAX: usize = 64;

/// Names the wake-up descriptor; sockets have the numbers from there on.
const WAKE: u64 = 0;

/// Longest wait for the connections' threads when the relay ends. They were told, and wait for nothing else.
const CONNECTIONS_END: Duration = Duration::from_secs(2);

/// How often it is looked whether they have ended.
const END_LOOK: Duration = Duration::from_millis(1);

/// What [`super::Relay`] asks of its loop. It waits for the reply.
pub(super) enum Request {
    Open { protocol: Protocol, listen: SocketAddr, target: SocketAddr, reply: Sender<io::Result<()>> },
    Close { protocol: Protocol, listen: SocketAddr, reply: Sender<bool> },
}

/// The state of a relay.
pub(super) struct EventLoop {
    cx: Context,
    tcp: Tcp,
    udp: Udp,
    /// What is open, and its number in `tcp` or `udp`.
    listeners: Map<(Protocol, SocketAddr), u64>,
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
}

impl EventLoop {
    /// `wake` is written to after every request, and after the last sender of requests is gone, which ends the loop.
    pub(super) fn new(
        name: &str,
        limits: Limits,
        admit: Admit,
        counters: Arc<Counters>,
        requests: Receiver<Request>,
        wake: Arc<EventFd>,
    ) -> io::Result<EventLoop> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let Limits { connections_max, flows_max, .. } = limits;
        let cx = Context {
            over_connections: Folded::new(format!("{name}: resetting connections over the limit of {connections_max}")),
            over_flows: Folded::new(format!(
                "{name}: dropping datagrams of clients over the limit of {flows_max} flows"
            )),
            exhausted: Folded::new(format!(
                "{name}: the system refuses descriptors, memory or threads for more clients"
            )),
            name: name.into(),
            limits,
            admit,
            counters,
            epoll,
            last_token: WAKE,
        };
        let listeners = Map::new();
        Ok(EventLoop { cx, tcp: Tcp::default(), udp: Udp::default(), listeners, requests, wake })
    }

    /// Runs until nobody can send requests any more and all connections have ended.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            let ready = match self.cx.epoll.wait(&mut events, timeout_until(self.deadline(), Instant::now())) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    error!("{}: epoll: {e}; the relay ends", self.cx.name);
                    break;
                }
            };
            let now = Instant::now();
            for event in events.iter().take(ready) {
                match event.data() {
                    WAKE => drop(self.wake.read()),
                    token => {
                        let _ = self.tcp.ready(&mut self.cx, token, now) || self.udp.ready(&mut self.cx, token, now);
                    }
                }
            }
            self.meet_deadlines(now);
            if self.carry_out_requests().is_err() {
                break;
            }
        }
        self.end();
    }

    fn deadline(&self) -> Option<Instant> {
        let folded = [&self.cx.over_connections, &self.cx.over_flows, &self.cx.exhausted];
        let folded = folded.into_iter().filter_map(Folded::deadline);
        folded.chain(self.tcp.deadline()).chain(self.udp.deadline()).min()
    }

    fn meet_deadlines(&mut self, now: Instant) {
        self.tcp.resume(&self.cx, now);
        self.udp.expire(&self.cx, now);
        for folded in [&mut self.cx.over_connections, &mut self.cx.over_flows, &mut self.cx.exhausted] {
            folded.settle(now);
        }
    }

    /// `Err`: the relay is being dropped. A caller that no longer waits for its reply is no error.
    fn carry_out_requests(&mut self) -> Result<(), ()> {
        loop {
            match self.requests.recv(Some(Duration::ZERO)) {
                Ok(Request::Open { protocol, listen, target, reply }) => {
                    let _ = reply.send(self.open(protocol, listen, target));
                }
                Ok(Request::Close { protocol, listen, reply }) => {
                    let _ = reply.send(self.close(protocol, listen));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(()),
            }
        }
    }

    fn open(&mut self, protocol: Protocol, listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
        match (self.listeners.get(&(protocol, listen)), protocol) {
            (Some(token), Protocol::Tcp) => self.tcp.retarget(*token, target),
            (Some(token), Protocol::Udp) => self.udp.retarget(&self.cx, *token, target),
            (None, _) => {
                let token = match protocol {
                    Protocol::Tcp => self.tcp.open(&mut self.cx, listen, target)?,
                    Protocol::Udp => self.udp.open(&mut self.cx, listen, target)?,
                };
                self.listeners.insert((protocol, listen), token);
            }
        }
        Ok(())
    }

    fn close(&mut self, protocol: Protocol, listen: SocketAddr) -> bool {
        let Some(token) = self.listeners.remove(&(protocol, listen)) else { return false };
        match protocol {
            Protocol::Tcp => self.tcp.close(token),
            Protocol::Udp => self.udp.close(&self.cx, token),
        }
        true
    }

    fn end(self) {
        let EventLoop { cx, tcp, udp, .. } = self;
        // Dropping a listener tells its connections to end.
        drop((tcp, udp));
        let end = Instant::now() + CONNECTIONS_END;
        while cx.counters.connections.load(Ordering::Relaxed) > 0 {
            if Instant::now() >= end {
                warn!("{}: connections have not ended within {} s", cx.name, CONNECTIONS_END.as_secs());
                break;
            }
            sleep(END_LOOK);
        }
    }
}
