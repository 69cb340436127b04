//! The listener sink: LISTEN sockets in the guest for what NAT rules publish, so that WSL notices the ports.
//!
//! WSL forwards a port of the guest to Windows' 127.0.0.1 when it sees a TCP socket that listens on it, on 127.0.0.1 or
//! 0.0.0.0. CNI's plugins write NAT rules alone. The rules take a connection before it gets to a socket, so these never
//! carry anything: what gets here all the same (a rule that is gone, an address that the rule leaves out) is reset.
//!
//! One thread accepts for all listeners, and sleeps in epoll when nothing happens. Nothing is kept of a connection.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{Backlog, SockType, listen, setsockopt, sockopt};

use super::{Sink, cannot_listen};
use crate::event::{Answer, Document, Failure, FailureKind, Operation};
use crate::ordered::Map;
use crate::port::{Binding, Protocol};
use crate::relay::socket;
use crate::stop::Stop;
use crate::supervisor::spawn;

/// Events taken from epoll at once.
const EVENTS_MAX: usize = 64;

/// Connections accepted from one listener before the others get their turn.
const BATCH_MAX: usize = 64;

/// How long nothing is accepted when the system has no descriptor or memory for a connection. They wait in the backlog.
const PAUSE: Duration = Duration::from_millis(100);

/// Names the stop sign; sockets have the numbers from there on.
const STOP: u64 = 0;

/// Listens for each binding that is announced. Dropping it closes them all.
pub struct Listener {
    shared: Arc<Shared>,
    /// What is listened on, and its number in `shared`.
    open: Map<Binding, u64>,
    /// Numbers are never used again: an event of a socket that was closed meanwhile names nothing.
    last_token: u64,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: Epoll,
    stop: Stop,
    sockets: Mutex<Map<u64, TcpListener>>,
}

impl Listener {
    /// Starts the thread that accepts.
    pub fn start() -> io::Result<Listener> {
        let (epoll, stop) = (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, Stop::new()?);
        epoll.add(&stop, EpollEvent::new(EpollFlags::empty(), STOP))?;
        let shared = Arc::new(Shared { epoll, stop, sockets: Mutex::default() });
        let accepting = Arc::clone(&shared);
        let thread = spawn("listener", Box::new(move || accepting.run()))?;
        Ok(Listener { shared, open: Map::new(), last_token: STOP, thread: Some(thread) })
    }

    fn open(&mut self, binding: Binding) -> Result<(), Failure> {
        if binding.protocol != Protocol::Tcp || !(binding.is_loopback() || binding.host_ip.is_unspecified()) {
            let reason = format!("listener: {binding} is neither TCP on the loopback nor TCP on every address");
            return Err(Failure { kind: FailureKind::Denied, reason });
        }
        if self.open.contains_key(&binding) {
            return Ok(());
        }
        let addr = binding.socket_addr();
        let token = self.last_token + 1;
        self.watch(addr, token).map_err(|errno| cannot_listen("listener", Protocol::Tcp, addr, &errno.into()))?;
        self.last_token = token;
        self.open.insert(binding, token);
        Ok(())
    }

    fn watch(&self, addr: SocketAddr, token: u64) -> nix::Result<()> {
        let socket = listen_on(addr)?;
        // Locked before epoll knows of it, or else its first event could find no socket.
        let mut sockets = self.shared.sockets();
        self.shared.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        sockets.insert(token, socket);
        Ok(())
    }

    fn close(&mut self, binding: Binding) {
        if let Some(token) = self.open.remove(&binding) {
            self.shared.sockets().remove(&token);
        }
    }
}

impl Sink for Listener {
    fn carry_out(&mut self, document: &Document) -> Answer {
        let mut failed = Vec::new();
        for binding in document.bindings.keys() {
            match document.operation {
                Operation::Announce => failed.extend(self.open(*binding).err().map(|failure| (*binding, failure))),
                Operation::Withdraw => self.close(*binding),
            }
        }
        Answer::Done { failed }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn sockets(&self) -> MutexGuard<'_, Map<u64, TcpListener>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            let ready = match self.epoll.wait(&mut events, PollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    log::error!("listener: connections are not reset any more error={errno:?}");
                    return;
                }
            };
            for event in events.iter().take(ready) {
                if event.data() == STOP {
                    return;
                }
                if let Err(error) = self.reset_waiting(event.data()) {
                    log::debug!("listener: accept: {error}");
                    // Epoll would report the same socket again at once.
                    if self.stop.wait(PAUSE) {
                        return;
                    }
                    break;
                }
            }
        }
    }

    /// Takes what waits at one listener, and drops it: that resets it. Errors are those that will last for a while.
    fn reset_waiting(&self, token: u64) -> io::Result<()> {
        let sockets = self.sockets();
        let Some(socket) = sockets.get(&token) else { return Ok(()) };
        for _ in 0..BATCH_MAX {
            match socket.accept() {
                Ok(connection) => drop(connection),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => match Errno::try_from(error)? {
                    // That one connection failed before it was accepted; more may wait behind it.
                    Errno::ECONNABORTED | Errno::EPROTO | Errno::EPERM | Errno::EINTR => {}
                    errno => return Err(errno.into()),
                },
            }
        }
        Ok(())
    }
}

/// A socket that listens on `addr` and nowhere else. What it accepts inherits its options.
fn listen_on(addr: SocketAddr) -> nix::Result<TcpListener> {
    let fd = socket::new(SockType::Stream, addr)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // 0.0.0.0 and 127.0.0.1 may both be published on one port, and an agent takes over from one that is just ending.
    // Only sockets of the same user that ask for it too can share a port.
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    socket::reset_on_close(&fd)?;
    socket::bind_to(&fd, addr)?;
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Owner, Source, Ticket};
    use std::io::Read as _;
    use std::net::{IpAddr, TcpStream};
    use std::num::NonZeroU16;

    /// `("127.0.0.1", 80)`, to be had by nobody else.
    fn binding(ip: &str, port: u16) -> Binding {
        Binding { protocol: Protocol::Tcp, host_ip: ip.parse().unwrap(), host_port: NonZeroU16::new(port).unwrap() }
    }

    fn free_port(ip: &str) -> u16 {
        TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap().local_addr().unwrap().port()
    }

    fn carry_out(sink: &mut Listener, operation: Operation, bindings: &[Binding]) -> Vec<(Binding, Failure)> {
        let owner = Owner { source: Source::Nat, key: "test".into() };
        let bindings = bindings.iter().map(|b| (*b, b.host_port)).collect();
        match sink.carry_out(&Document { ticket: Ticket(1), operation, owner, bindings }) {
            Answer::Done { failed } => failed,
            other => panic!("{other:?}"),
        }
    }

    fn announce(sink: &mut Listener, bindings: &[Binding]) -> Vec<(Binding, Failure)> {
        carry_out(sink, Operation::Announce, bindings)
    }

    fn withdraw(sink: &mut Listener, bindings: &[Binding]) {
        assert_eq!(carry_out(sink, Operation::Withdraw, bindings), []);
    }

    /// What a client meets.
    fn met(ip: &str, port: u16) -> ErrorKind {
        let connected = TcpStream::connect((ip.parse::<IpAddr>().unwrap(), port));
        let read = connected.and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.read(&mut [0])
        });
        read.expect_err("a reset or a refusal, not an end in order").kind()
    }

    /// The addresses that this network namespace listens on at that port, as the kernel writes them.
    fn listening(port: u16) -> Vec<String> {
        let mut found = Vec::new();
        for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            for line in text.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let local = words.get(1).and_then(|local| local.split_once(':'));
                if let Some((addr, hex)) = local.filter(|_| words.get(3) == Some(&"0A")) {
                    if hex == format!("{port:04X}") {
                        found.push(addr.to_owned());
                    }
                }
            }
        }
        found
    }

    #[test]
    fn listens_on_exactly_that_address_and_resets() {
        let mut sink = Listener::start().unwrap();
        for (ip, kernels) in [("127.0.0.1", "0100007F"), ("127.0.78.9", "094E007F"), ("0.0.0.0", "00000000")] {
            let port = free_port(ip);
            assert_eq!(announce(&mut sink, &[binding(ip, port)]), []);
            assert_eq!(announce(&mut sink, &[binding(ip, port)]), [], "twice is once");
            assert_eq!(listening(port), [kernels]);
            let at = if ip == "0.0.0.0" { "127.0.0.1" } else { ip };
            assert_eq!(met(at, port), ErrorKind::ConnectionReset, "{ip}");
            assert_eq!(met(at, port), ErrorKind::ConnectionReset, "{ip}, again");
            withdraw(&mut sink, &[binding(ip, port)]);
            assert_eq!(listening(port), [""; 0], "closed before the answer");
            assert_eq!(met(at, port), ErrorKind::ConnectionRefused);
            withdraw(&mut sink, &[binding(ip, port)]);
        }
    }

    #[test]
    fn addresses_and_families_share_a_port() {
        let mut sink = Listener::start().unwrap();
        let port = free_port("0.0.0.0");
        let ips = ["0.0.0.0", "127.0.0.1", "::", "::1"];
        let all = ips.map(|ip| binding(ip, port));
        assert_eq!(announce(&mut sink, &all), []);
        assert_eq!(listening(port).len(), all.len());
        for (i, ip) in ips.iter().enumerate() {
            withdraw(&mut sink, &[binding(ip, port)]);
            assert_eq!(listening(port).len(), all.len() - 1 - i);
        }
    }

    #[test]
    fn a_busy_port_is_a_conflict_and_taken_when_it_is_free() {
        let mut sink = Listener::start().unwrap();
        let busy = TcpListener::bind("127.0.78.1:0").unwrap();
        let taken = binding("127.0.78.1", busy.local_addr().unwrap().port());
        let other = binding("127.0.78.2", taken.host_port.get());
        let failed = announce(&mut sink, &[taken, other]);
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!((failed[0].0, failed[0].1.kind), (taken, FailureKind::Conflict));
        assert!(failed[0].1.reason.contains(&taken.socket_addr().to_string()), "{failed:?}");
        assert_eq!(met("127.0.78.2", other.host_port.get()), ErrorKind::ConnectionReset, "the other one is there");
        drop(busy);
        assert_eq!(announce(&mut sink, &[taken, other]), []);
        assert_eq!(met("127.0.78.1", taken.host_port.get()), ErrorKind::ConnectionReset);
    }

    #[test]
    fn what_no_listener_can_stand_for_is_denied() {
        let mut sink = Listener::start().unwrap();
        let udp = Binding { protocol: Protocol::Udp, ..binding("127.0.0.1", 5353) };
        for refused in [udp, binding("192.0.2.1", 8080), binding("2001:db8::1", 8080)] {
            let failed = announce(&mut sink, &[refused]);
            assert_eq!(failed[0].1.kind, FailureKind::Denied, "{failed:?}");
            withdraw(&mut sink, &[refused]);
        }
    }

    #[test]
    fn dropping_it_closes_everything() {
        let mut sink = Listener::start().unwrap();
        let port = free_port("127.0.0.1");
        assert_eq!(announce(&mut sink, &[binding("127.0.0.1", port)]), []);
        drop(sink);
        assert_eq!(listening(port), [""; 0]);
    }
}
