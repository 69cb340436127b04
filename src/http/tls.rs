//! HTTP over TLS: ureq with rustls, on TCP sockets that notice a peer that has vanished.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
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

/// An HTTPS client that trusts what `tls` says, of servers that prove to be `name`.
pub fn agent(tls: Arc<ClientConfig>, name: ServerName<'static>, config: Config) -> Agent {
    Agent::with_parts(config, TlsConnector { tls, name }, Lookup)
}

/// Why TLS failed, where an error of a request is about that.
pub fn failure(error: &Error) -> Option<&rustls::Error> {
    let Error::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

#[derive(Debug)]
struct TlsConnector {
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector for TlsConnector {
    type Out = Buffered<TlsStream>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        let timed_out = |error: io::Error| super::told_apart(error, details.timeout);
        let deadline = option(details.timeout).map(|timeout| Instant::now() + timeout);
        let socket = Arc::new(Socket(connect(&details.addrs, deadline).map_err(timed_out)?));
        (details.register_shutdown)(Arc::downgrade(&socket) as Weak<dyn ShutdownHandle>)?;
        let tls = ClientConnection::new(self.tls.clone(), self.name.clone()).map_err(io::Error::other)?;
        let mut stream = TlsStream { tls, socket };
        while stream.tls.is_handshaking() {
            stream.turn(deadline).map_err(timed_out)?;
        }
        stream.flush(deadline).map_err(timed_out)?;
        Ok(Some(Buffered::new(stream, details)))
    }
}

/// Looks up names, and takes addresses as they are. ureq's own panics where the system has no thread left, starts one for
/// an address, too, and has no time limit where the request has none.
#[derive(Debug)]
struct Lookup;

/// Addresses of a name that are tried; as many as ureq has room for.
const ADDRESSES_MAX: usize = 16;

impl Resolver for Lookup {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(443);
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
fn connect(addrs: &[SocketAddr], deadline: Option<Instant>) -> io::Result<TcpStream> {
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
fn remaining(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[derive(Debug)]
struct Socket(TcpStream);

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[derive(Debug)]
struct TlsStream {
    tls: ClientConnection,
    socket: Arc<Socket>,
}

impl TlsStream {
    /// Sends what TLS has to say, waits for one read's worth of bytes, and takes them.
    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.flush(deadline)?;
        self.socket.0.set_read_timeout(remaining(deadline)?)?;
        let n = self.tls.read_tls(&mut &self.socket.0)?;
        if let Err(error) = self.tls.process_new_packets() {
            // The peer is told why, if it still listens.
            let _ = self.flush(deadline);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        if n == 0 && self.tls.is_handshaking() {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed in the middle of the TLS handshake"));
        }
        Ok(())
    }

    fn flush(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        while self.tls.wants_write() {
            self.socket.0.set_write_timeout(remaining(deadline)?)?;
            self.tls.write_tls(&mut &self.socket.0)?;
        }
        Ok(())
    }
}

impl Stream for TlsStream {
    const IS_TLS: bool = true;

    fn receive(&mut self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.turn(deadline)?,
                // Rustls' own words are for programmers, and a server that restarts makes everybody read them.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was cut"));
                }
                result => return result,
            }
        }
    }

    fn transmit(&mut self, mut bytes: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        while !bytes.is_empty() {
            let n = self.tls.writer().write(bytes)?;
            bytes = bytes.get(n..).unwrap_or_default();
            self.flush(deadline)?;
        }
        Ok(())
    }

    fn is_silent(&mut self) -> bool {
        let probe = || {
            self.socket.0.set_nonblocking(true)?;
            let silent = matches!(self.socket.0.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock);
            self.socket.0.set_nonblocking(false)?;
            Ok::<bool, io::Error>(silent)
        };
        probe().unwrap_or(false)
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
            assert!(look_up("https://localhost:7", after).unwrap().contains(&"127.0.0.1:7".to_owned()));
        }
    }
}
