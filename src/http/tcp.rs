//! HTTP over plain TCP, on sockets that notice a peer that has vanished; and what TLS and unix sockets share of it.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, ShutdownHandle};
use ureq::{Agent, Error, config::Config, http::Uri};

use super::{Buffered, READ_TIMEOUT, Stream, option};
use crate::queue;
use crate::supervisor::spawn;

/// The longest wait for one of several addresses of a host to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent peer is asked whether it is there after that many seconds, ...
const PROBE_AFTER_S: u32 = 15;

/// ... that often, that many seconds apart; then the connection has failed.
const PROBES: u32 = 3;

/// An HTTP client that connects to the servers that requests name, and to nothing else.
pub fn agent(config: Config) -> Agent {
    Agent::with_parts(config, TcpConnector, Lookup)
}

#[derive(Debug)]
struct TcpConnector;

impl Connector for TcpConnector {
    type Out = Buffered<Arc<Socket>>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let deadline = option(details.timeout).map(|timeout| Instant::now() + timeout);
        let connected = connect(&details.addrs, deadline);
        let socket = Arc::new(Socket(connected.map_err(|error| super::told_apart(error, details.timeout))?));
        (details.register_shutdown)(Arc::downgrade(&socket) as Weak<dyn ShutdownHandle>)?;
        Ok(Some(Buffered::new(socket, details)))
    }
}

/// Looks up names, and takes addresses as they are. ureq's own panics where the system has no thread left, starts one for
/// an address, too, and has no time limit where the request has none.
#[derive(Debug)]
pub(super) struct Lookup;

/// Addresses of a name that are tried; as many as ureq has room for.
const ADDRESSES_MAX: usize = 16;

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut found = self.empty();
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            found.push(SocketAddr::new(ip, port));
            return Ok(found);
        }
        let name = (host.to_owned(), port);
        let (sender, answer) = queue::bounded(1);
        // It cannot be ended: where it takes too long, it is left to itself.
        spawn("lookup", Box::new(move || drop(sender.send(name.to_socket_addrs()))))?;
        let limit = option(timeout).unwrap_or(READ_TIMEOUT);
        let addrs = answer.recv(Some(limit)).map_err(|_| Error::Timeout(timeout.reason))??;
        addrs.take(ADDRESSES_MAX).for_each(|addr| found.push(addr));
        if found.is_empty() { Err(Error::HostNotFound) } else { Ok(found) }
    }
}

/// Connects to the first address that answers.
pub(super) fn connect(addrs: &[SocketAddr], deadline: Option<Instant>) -> io::Result<TcpStream> {
    let mut error = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for addr in addrs {
        let timeout = remaining(deadline)?.map_or(CONNECT_TIMEOUT, |left| left.min(CONNECT_TIMEOUT));
        match TcpStream::connect_timeout(addr, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                setsockopt(&stream, sockopt::TcpKeepIdle, &PROBE_AFTER_S)?;
                setsockopt(&stream, sockopt::TcpKeepInterval, &(PROBE_AFTER_S / PROBES))?;
                setsockopt(&stream, sockopt::TcpKeepCount, &PROBES)?;
                return Ok(stream);
            }
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// The time that is left; `None`: for ever.
pub(super) fn remaining(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A connected stream socket: of TCP, or a unix one, of which nothing is asked here that only TCP has.
#[derive(Debug)]
pub(super) struct Socket(pub(super) TcpStream);

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Socket {
    /// See [`Stream::is_silent`].
    pub(super) fn is_silent(&self) -> bool {
        let probe = || {
            self.0.set_nonblocking(true)?;
            let silent = matches!(self.0.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock);
            self.0.set_nonblocking(false)?;
            Ok::<bool, io::Error>(silent)
        };
        probe().unwrap_or(false)
    }
}

impl Stream for Arc<Socket> {
    const IS_TLS: bool = false;

    fn receive(&mut self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        self.0.set_read_timeout(timeout)?;
        (&self.0).read(buffer)
    }

    fn transmit(&mut self, bytes: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_write_timeout(timeout)?;
        (&self.0).write_all(bytes)
    }

    fn is_silent(&mut self) -> bool {
        Socket::is_silent(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::Timeout;
    use ureq::unversioned::transport::time::Duration as After;

    #[test]
    fn takes_addresses_as_they_are_and_looks_up_names() {
        let look_up = |uri: &str, after| {
            let timeout = NextTimeout { after, reason: Timeout::Resolve, per_read: None, per_write: None };
            let found = Lookup.resolve(&uri.parse().unwrap(), &super::super::config(), timeout);
            found.map(|addrs| addrs.iter().map(ToString::to_string).collect::<Vec<String>>())
        };
        for after in [After::from_secs(10), After::NotHappening] {
            assert_eq!(look_up("https://127.0.0.1:6443/x", after).unwrap(), ["127.0.0.1:6443"]);
            assert_eq!(look_up("https://[::1]/x", after).unwrap(), ["[::1]:443"]);
            assert_eq!(look_up("http://[::1]/x", after).unwrap(), ["[::1]:80"]);
            assert!(look_up("https://localhost:7", after).unwrap().contains(&"127.0.0.1:7".to_owned()));
        }
    }
}
