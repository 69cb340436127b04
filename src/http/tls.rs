//! HTTP over TLS: ureq with rustls, on TCP sockets that notice a peer that has vanished.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::unversioned::transport::{ConnectionDetails, Connector, ShutdownHandle};
use ureq::{Agent, Error, config::Config};

use super::tcp::{Lookup, Socket, connect, remaining};
use super::{Buffered, Stream, option};

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
        self.socket.is_silent()
    }
}
