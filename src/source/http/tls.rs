//! HTTP over TLS: ureq with rustls, on TCP sockets that notice a peer that has vanished.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectionDetails, Connector, ShutdownHandle};
use ureq::{Agent, Error, config::Config};

use super::{Buffered, Stream, option};

/// The longest wait for one of several addresses of a host to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent peer is asked whether it is there after that many seconds, ...
const PROBE_AFTER_S: u32 = 15;

/// ... that often, that many seconds apart; then the connection has failed.
const PROBES: u32 = 3;

/// An HTTPS client that trusts what `tls` says, of servers that prove to be `name`.
pub fn agent(tls: Arc<ClientConfig>, name: ServerName<'static>, config: Config) -> Agent {
    Agent::with_parts(config, TlsConnector { tls, name }, DefaultResolver::default())
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
