//! The loop that takes documents in and keeps the forwards as they say.
//!
//! One thread waits for all sockets, all open connections and the next thing to be tried again. A connection brings one
//! document, which ends at a newline or at the end of the stream, whichever comes first (a hypervisor may not pass on
//! the latter). It is acted on and answered with this process's [`session`], then the connection is closed: the agent
//! takes the close as an acknowledgement.
//!
//! Limits: [`CONNECTIONS_MAX`] connections (more wait in the kernel), [`DOCUMENT_BYTES_MAX`] bytes and
//! [`DOCUMENT_TIMEOUT`] each. A peer that is slow, silent or talks nonsense costs others nothing but its place.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::forwards::{Forwards, Host};
use crate::host::quota::Quota;
use crate::host::report::Reporter;
use crate::host::sockets::{Accepted, DocumentSocket};
use crate::wire::port_mapping::DOCUMENT_BYTES_MAX;
use crate::wire::port_mapping_decode::decode;
use crate::wire::session;

/// Connections that are read from at once.
pub const CONNECTIONS_MAX: usize = 64;
/// The longest that a connection may take to bring its document.
pub const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same, while others wait for its place.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// How long nothing is accepted after the system has refused to (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Warnings about what guests sent, in each period of this length.
const WARNINGS_MAX: u32 = 5;
const WARNINGS_PERIOD: Duration = Duration::from_secs(10);
/// How long the last lines on stdout may take to be written.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that the thread owns.
#[derive(Debug)]
pub struct Documents<H> {
    sockets: Vec<DocumentSocket>,
    forwards: Forwards<H>,
    reporter: Reporter,
    connections: Vec<Connection>,
    accept_from: Option<Instant>,
    warnings: Quota,
    /// Connections that sent nothing at all.
    silent: u64,
    scratch: Vec<u8>,
    /// The answer to every document.
    session: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: File,
    opened: Instant,
    document: Vec<u8>,
}

/// What a read from a connection brought.
enum Progress {
    More,
    /// The document is complete.
    Complete,
    /// It ended, or failed, before it sent anything.
    Silent,
    /// It cannot become a document any more.
    Bad(String),
}

impl<H: Host> Documents<H> {
    /// Ready to run.
    pub fn new(sockets: Vec<DocumentSocket>, forwards: Forwards<H>, reporter: Reporter) -> Documents<H> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Documents {
            sockets,
            forwards,
            reporter,
            connections: Vec::new(),
            accept_from: None,
            warnings: Quota::new(WARNINGS_MAX, WARNINGS_PERIOD),
            silent: 0,
            scratch: vec![0; READ_BYTES],
            // No other process had this number at this moment.
            session: session::encode(&format!("{}-{}", std::process::id(), since_1970.as_nanos())),
        }
    }

    /// Runs until the other end of `stop` is closed; then closes every forward and removes the sockets.
    pub fn run(mut self, stop: &OwnedFd) {
        while !self.turn(stop) {}
        drop(self.sockets);
        let mut changes = Vec::new();
        self.forwards.close_all(&mut changes);
        let now = Instant::now();
        changes.iter().for_each(|change| self.reporter.report(change, now));
        self.reporter.finish(REPORT_PATIENCE);
        log::info!("stopped: {} forwards closed, {} connections had sent nothing", changes.len(), self.silent);
    }

    /// Waits for something to do, and does it. Returns whether to stop.
    fn turn(&mut self, stop: &OwnedFd) -> bool {
        let now = Instant::now();
        self.on_time(now);
        let accepting = self.connections.len() < CONNECTIONS_MAX && self.accept_from.is_none();
        let listening = if accepting { self.sockets.as_slice() } else { &[] };
        let fds = std::iter::once(stop.as_fd())
            .chain(listening.iter().map(|socket| socket.as_fd()))
            .chain(self.connections.iter().map(|connection| connection.stream.as_fd()));
        let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, self.timeout(now)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("cannot wait for documents: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let stopped = ready.next().unwrap_or(false);
        let ready_sockets: Vec<bool> = ready.by_ref().take(listening.len()).collect();
        let ready_connections: Vec<bool> = ready.collect();
        let now = Instant::now();
        self.read_ready(&ready_connections, now);
        for (index, _) in ready_sockets.iter().enumerate().filter(|(_, ready)| **ready) {
            self.accept(index, now);
        }
        stopped
    }

    /// Does what it is time for.
    fn on_time(&mut self, now: Instant) {
        let mut changes = Vec::new();
        self.forwards.retry(now, &mut changes);
        changes.iter().for_each(|change| self.reporter.report(change, now));
        self.reporter.settle(now);
        let held_back = self.warnings.settle(now);
        if held_back > 0 {
            log::warn!("{held_back} more warnings about documents were left out");
        }
        self.accept_from = self.accept_from.filter(|from| *from > now);
    }

    fn timeout(&self, now: Instant) -> PollTimeout {
        let full = self.connections.len() >= CONNECTIONS_MAX;
        let due = (self.connections.iter().map(|connection| connection.deadline(full)))
            .chain(
                [self.forwards.due(), self.reporter.due(), self.warnings.due(), self.accept_from].into_iter().flatten(),
            )
            .min();
        // Rounded up: a wait that ends too early would only be waited again.
        let wait = due.map(|due| due.saturating_duration_since(now) + Duration::from_millis(1));
        wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX))
    }

    fn accept(&mut self, index: usize, now: Instant) {
        let Some(socket) = self.sockets.get(index) else { return };
        // As many as there may be at once: connections that are refused must not keep the others from their turn.
        for _ in self.connections.len()..CONNECTIONS_MAX {
            match socket.accept() {
                Ok(Accepted::Connection(stream)) => {
                    self.connections.push(Connection { stream, opened: now, document: Vec::new() });
                }
                Ok(Accepted::OtherGuest(cid)) => {
                    let text = format!("{}: a connection of guest {cid} was refused", socket.address());
                    warn(&mut self.warnings, now, &text);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let text = format!("{}: cannot accept a connection: {error}", socket.address());
                    warn(&mut self.warnings, now, &text);
                    self.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Reads where there is something to read, acts on what is complete, and cuts what takes too long.
    fn read_ready(&mut self, ready: &[bool], now: Instant) {
        let full = self.connections.len() >= CONNECTIONS_MAX;
        let mut left = Vec::with_capacity(self.connections.len());
        let connections = std::mem::take(&mut self.connections);
        for (mut connection, ready) in connections.into_iter().zip(ready) {
            let progress = if *ready { connection.read(&mut self.scratch) } else { Progress::More };
            match progress {
                Progress::More if connection.deadline(full) > now => left.push(connection),
                Progress::More if connection.document.is_empty() => self.silent += 1,
                Progress::More => {
                    let bytes = connection.document.len();
                    self.warn(now, &format!("a document was not complete in time, after {bytes} bytes"));
                }
                Progress::Complete => {
                    if self.act(&connection.document, now) {
                        // An agent of somebody else's may have closed already, and never reads it.
                        let _ = connection.stream.write(&self.session);
                    }
                }
                Progress::Silent => self.silent += 1,
                Progress::Bad(reason) => self.warn(now, &reason),
            }
        }
        self.connections = left;
    }

    /// Whether it was a document at all.
    fn act(&mut self, document: &[u8], now: Instant) -> bool {
        let request = match decode(document) {
            Ok(request) => request,
            Err(error) => {
                self.warn(now, &format!("a document was refused: {error}"));
                return false;
            }
        };
        log::debug!("{:?} of {} bindings", request.operation, request.ports.len());
        if request.refused_count > 0 {
            let reasons = request.refused.join("; ");
            self.warn(now, &format!("{} entries of a document were refused: {reasons}", request.refused_count));
        }
        let mut changes = Vec::new();
        self.forwards.apply(&request, now, &mut changes);
        changes.iter().for_each(|change| self.reporter.report(change, now));
        true
    }

    fn warn(&mut self, now: Instant, text: &str) {
        warn(&mut self.warnings, now, text);
    }
}

fn warn(quota: &mut Quota, now: Instant, text: &str) {
    if quota.take(now) {
        log::warn!("{text}");
    }
}

impl Connection {
    /// When it is cut: sooner when there is no room left.
    fn deadline(&self, full: bool) -> Instant {
        let patience = if full { CROWDED_TIMEOUT } else { DOCUMENT_TIMEOUT };
        self.opened + patience
    }

    fn read(&mut self, scratch: &mut [u8]) -> Progress {
        let bytes = match self.stream.read(scratch) {
            Ok(0) if self.document.is_empty() => return Progress::Silent,
            Ok(0) => return Progress::Complete,
            Ok(count) => scratch.get(..count).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Progress::More;
            }
            Err(_) if self.document.is_empty() => return Progress::Silent,
            Err(error) => return Progress::Bad(format!("a document was lost: {error}")),
        };
        match append(&mut self.document, bytes) {
            Ok(true) => Progress::Complete,
            Ok(false) => Progress::More,
            Err(reason) => Progress::Bad(reason),
        }
    }
}

/// Adds what a read has brought to a document, up to the newline that ends it. Returns whether there was one.
///
/// # Errors
/// It has more than [`DOCUMENT_BYTES_MAX`] bytes.
pub fn append(document: &mut Vec<u8>, bytes: &[u8]) -> Result<bool, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    document.extend_from_slice(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default());
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(format!("a document was refused: larger than {DOCUMENT_BYTES_MAX} bytes"));
    }
    Ok(end.is_some())
}
