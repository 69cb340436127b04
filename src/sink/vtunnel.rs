//! The vtunnel sink: PortMapping documents to the Privileged Service, through vtunnel's peer or straight over vsock.
//!
//! One document per connection. The protocol has no reply, but the receiver closes when it has read: that close is
//! waited for, for a second at most, since a reset instead of it tells that the document was not read. Source of the
//! protocol: Rancher Desktop 1.9 `src/go/vtunnel` and `src/go/privileged-service`.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vsock::VsockStream;

use super::Sink;
use crate::event::{Answer, Document};
use crate::net;
use crate::wire::port_mapping;

/// The vsock port of the Privileged Service's end of vtunnel on the host.
pub const VSOCK_PORT: u32 = 17381;

/// The longest a connection, or a write, may take. AF_VSOCK has its own limit of 2 s for connecting.
const PEER_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest wait for the receiver's close. A receiver that keeps the connection open has taken the document all
/// the same.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of an answer that nobody should send; more than that, and the rest is not waited for.
const ANSWER_BYTES_MAX: usize = 4096;

/// Where documents go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`, looked up at each connection.
    Tcp(String),
    /// A unix stream socket.
    Unix(PathBuf),
    /// AF_VSOCK.
    Vsock {
        /// The context id; the host is 2.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

/// Sends documents to one address.
pub struct Vtunnel {
    address: Address,
    /// The interface whose addresses the host is told to connect to.
    interface: String,
}

impl Vtunnel {
    /// A sink for that address.
    pub fn new(address: Address, interface: String) -> Vtunnel {
        Vtunnel { address, interface }
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Tcp(address) => {
                let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
                for addr in address.to_socket_addrs()?.take(4) {
                    match TcpStream::connect_timeout(&addr, PEER_TIMEOUT) {
                        Ok(stream) => return Ok(Box::new(stream)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Address::Unix(path) => Ok(Box::new(net::connect_unix(path)?)),
            Address::Vsock { cid, port } => Ok(Box::new(VsockStream::connect_with_cid_port(*cid, *port)?)),
        }
    }
}

impl Sink for Vtunnel {
    fn carry_out(&mut self, document: &Document) -> Answer {
        // Read each time: what the host is told must be what holds now.
        let connect = match net::interface_addrs(&self.interface) {
            Ok(addrs) => addrs,
            Err(error) => return Answer::Unreachable(error.to_string()),
        };
        let bytes = port_mapping::encode(document.operation, &document.bindings, Some(&connect));
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(error) => return Answer::Unreachable(error.to_string()),
        };
        match deliver(stream.as_mut(), &bytes) {
            Ok(()) => Answer::Done { failed: Vec::new() },
            Err(error) => Answer::Uncertain(format!("the peer did not take the document: {error}")),
        }
    }
}

/// Writes the document and waits for the receiver to close.
fn deliver(stream: &mut dyn Stream, document: &[u8]) -> io::Result<()> {
    stream.timeouts(PEER_TIMEOUT, CLOSE_TIMEOUT)?;
    stream.write_all(document)?;
    stream.no_more()?;
    let begun = Instant::now();
    let mut answer = [0; ANSWER_BYTES_MAX];
    let mut read = 0;
    while read < ANSWER_BYTES_MAX && begun.elapsed() < CLOSE_TIMEOUT {
        match stream.read(&mut answer) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            // Over vsock, what reading says after a shutdown that came later than the receiver's close: Linux's shutdown
            // clears the flag by which reading tells an orderly end from no connection.
            Err(error) if error.kind() == ErrorKind::NotConnected => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the three kinds of streams have in common.
trait Stream: Read + Write {
    fn timeouts(&self, write: Duration, read: Duration) -> io::Result<()>;
    fn no_more(&self) -> io::Result<()>;
}

macro_rules! stream {
    ($kind:ty) => {
        impl Stream for $kind {
            fn timeouts(&self, write: Duration, read: Duration) -> io::Result<()> {
                self.set_write_timeout(Some(write))?;
                self.set_read_timeout(Some(read))
            }

            fn no_more(&self) -> io::Result<()> {
                match self.shutdown(Shutdown::Write) {
                    // The receiver has read and closed already: that is what the close is waited for.
                    Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
                    result => result,
                }
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
stream!(VsockStream);
