//! The vtunnel sink: PortMapping documents to the Privileged Service, through vtunnel's peer or straight over vsock.
//!
//! One document per connection. The protocol has no reply, but the receiver closes when it has read: that close is
//! waited for, for a second at most, since a reset instead of it tells that the document was not read. Source of the
//! protocol: Rancher Desktop 1.9 `src/go/vtunnel` and `src/go/privileged-service`.
//!
//! Our own host end answers with its [`session`]. Once it has, it is sent a document without ports now and then, so
//! that its restart is noticed even while nothing changes. Nobody else ever sees such a document.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use vsock::VsockStream;

use super::deliver::{CLOSE_TIMEOUT, CLOSE_TIMEOUT_STOPPING, PEER_TIMEOUT, Stream, deliver};
use super::{News, Sink};
use crate::event::{Answer, Document, Operation};
use crate::net;
use crate::port::Bindings;
use crate::wire::{port_mapping, session};

/// How long a host end with a session may be left alone.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The same, while it does not answer.
const HEARTBEAT_LOST: Duration = Duration::from_secs(1);

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
    /// The host end that was told last.
    session: Option<String>,
    /// It is another one than the one before.
    restarted: bool,
    /// It did not answer the last document.
    silent: bool,
    /// It did not answer the last heartbeat.
    lost: bool,
    /// The longest wait for its close.
    patience: Duration,
}

impl Vtunnel {
    /// A sink for that address.
    pub fn new(address: Address, interface: String) -> Vtunnel {
        Vtunnel {
            address,
            interface,
            session: None,
            restarted: false,
            silent: false,
            lost: false,
            patience: CLOSE_TIMEOUT,
        }
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

impl Vtunnel {
    fn send(&mut self, operation: Operation, bindings: &Bindings) -> Answer {
        // Read each time: what the host is told must be what holds now.
        let connect = match net::interface_addrs(&self.interface) {
            Ok(addrs) => addrs,
            Err(error) => return Answer::Unreachable(error.to_string()),
        };
        let bytes = port_mapping::encode(operation, bindings, Some(&connect));
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(error) => return Answer::Unreachable(error.to_string()),
        };
        // A host end with a session closes at once, and its answer is asked for.
        let patience = if self.session.is_some() { CLOSE_TIMEOUT } else { self.patience };
        match deliver(stream.as_mut(), &bytes, patience) {
            Ok(answer) if self.meet(&answer) => Answer::Done { failed: Vec::new() },
            Ok(_) => Answer::Uncertain("the host end closed without taking the document".into()),
            Err(error) => Answer::Uncertain(format!("the peer did not take the document: {error}")),
        }
    }

    /// Takes note of who answered. `false`: a host end that always answers did not. A second silence in a row means
    /// that somebody of another kind listens there now.
    fn meet(&mut self, answer: &[u8]) -> bool {
        let name = session::decode(answer);
        let silent = name.is_none() && self.session.is_some();
        if silent && !std::mem::replace(&mut self.silent, true) {
            return false;
        }
        self.silent = false;
        self.restarted |= self.session.is_some() && self.session != name;
        self.session = name;
        true
    }
}

impl Sink for Vtunnel {
    fn carry_out(&mut self, document: &Document) -> Answer {
        self.send(document.operation, &document.bindings)
    }

    fn heartbeat(&self) -> Option<Duration> {
        self.session.as_ref().map(|_| if self.lost { HEARTBEAT_LOST } else { HEARTBEAT })
    }

    fn beat(&mut self) -> Option<Result<(), String>> {
        let answer = self.send(Operation::Announce, &Bindings::new());
        self.lost = !matches!(answer, Answer::Done { .. });
        match answer {
            Answer::Done { .. } => Some(Ok(())),
            Answer::Unreachable(reason) => Some(Err(reason)),
            Answer::Uncertain(_) => None,
        }
    }

    fn hurry(&mut self) {
        self.patience = CLOSE_TIMEOUT_STOPPING;
    }

    fn take_news(&mut self) -> Option<News> {
        std::mem::take(&mut self.restarted).then(|| News::Reset("the host end has restarted".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_restarted_host_end_from_one_that_stayed() {
        let mut sink = Vtunnel::new(Address::Unix("/nowhere".into()), "lo".into());
        let mut meet = |answer: &[u8]| (sink.meet(answer), sink.take_news().is_some());
        let (a, b) = (session::encode("a"), session::encode("b"));
        assert_eq!(meet(b""), (true, false), "the Privileged Service never answers");
        assert_eq!(meet(&a), (true, false));
        assert_eq!(meet(&a), (true, false));
        assert_eq!(meet(b""), (false, false), "it may have died with the document");
        assert_eq!(meet(&b), (true, true));
        assert_eq!((meet(b""), meet(b"")), ((false, false), (true, true)), "replaced by another kind");
        assert_eq!(meet(b""), (true, false));
    }
}
