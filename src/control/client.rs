//! One client: its request line, the response that it is being sent, and how long that may take.
//!
//! ```text
//!           line                View came            last item
//! Idle ───────────▶ Waiting ───────────▶ Sending ───────────▶ Idle, or Watching
//!   │ watch                                                       (until it closes)
//!   ├──────────────▶ Watching
//!   │ reset
//!   └──────────────▶ Resetting ──▶ Idle
//! ```
//!
//! A response is written out as far as the client takes it, from what all clients share: nobody's slowness costs more than
//! [`OUT_BYTES_MAX`] and one document.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::document;
use super::request::{Filter, Op, Request, RequestError, parse};
use super::ring::Next;
use super::shared::{Shared, Shown};
use crate::event::Report;
use crate::view::Change;

/// The longest request, in bytes, without the end of its line.
const LINE_BYTES_MAX: usize = 4096;

/// What is written ahead for a client; a document more where that has just been reached.
const OUT_BYTES_MAX: usize = 8 << 10;

/// What one that watches may send on, for nothing.
const IGNORED_BYTES_MAX: usize = 64 << 10;

/// To send a request, or to take what is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client is at.
pub(super) enum Phase {
    /// Its next request is awaited.
    Idle,
    /// The present state is.
    Waiting {
        request: Request,
        /// It is covered by what the agent is being asked for.
        asked: bool,
    },
    /// It is sent the present state, from that item on.
    Sending { request: Request, shown: Arc<Shown>, item: usize, place: u64 },
    /// It is sent changes, from that place on.
    Watching { filter: Filter, place: u64 },
    /// It is told how far the reset is.
    Resetting {
        place: u64,
        /// The agent has been told.
        told: bool,
    },
    /// What there is to be sent is the last.
    Closing,
}

pub(super) struct Client {
    stream: UnixStream,
    pub(super) phase: Phase,
    /// When it came, or when something was last written to it, or asked by it.
    pub(super) since: Instant,
    input: Vec<u8>,
    ignored: usize,
    /// It sends nothing any more.
    eof: bool,
    out: Vec<u8>,
    /// There was more for it than was written ahead.
    has_more: bool,
    /// Documents of this response so far.
    count: u64,
    is_gone: bool,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Client {
        let (input, out) = (Vec::new(), Vec::new());
        let since = Instant::now();
        let (eof, has_more, is_gone) = (false, false, false);
        Client { stream, phase: Phase::Idle, since, input, ignored: 0, eof, out, has_more, count: 0, is_gone }
    }

    /// Nobody is there, or everything is said.
    pub(super) fn is_done(&self) -> bool {
        self.is_gone || (matches!(self.phase, Phase::Closing) && self.out.is_empty())
    }

    /// Whether it has, or is about to have, changes told.
    pub(super) fn watches(&self) -> bool {
        match &self.phase {
            Phase::Waiting { request, .. } | Phase::Sending { request, .. } => matches!(request.op, Op::Watch { .. }),
            Phase::Watching { .. } | Phase::Resetting { .. } => true,
            Phase::Idle | Phase::Closing => false,
        }
    }

    /// Which present state it is being sent, by the time, where that has forwards.
    pub(super) fn shown(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Sending { shown, .. } if !shown.view.rows.is_empty() => Some(shown.clock.at),
            _ => None,
        }
    }

    /// What to wait for. That it has gone is always told.
    pub(super) fn interest(&self) -> PollFlags {
        let reads = !self.eof
            && match self.phase {
                // One request after the other: what comes next has to wait.
                Phase::Idle => self.out.is_empty(),
                Phase::Watching { .. } => self.ignored < IGNORED_BYTES_MAX,
                Phase::Waiting { .. } | Phase::Sending { .. } | Phase::Resetting { .. } | Phase::Closing => false,
            };
        let read = if reads { PollFlags::POLLIN } else { PollFlags::empty() };
        if self.out.is_empty() && !self.has_more { read } else { read | PollFlags::POLLOUT }
    }

    /// When it has been waited for long enough. One that watches has time while there is nothing for it to take.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Watching { .. }) && self.out.is_empty();
        if waits { None } else { Some(self.since + PATIENCE) }
    }

    /// Says why it is closed, as far as it takes that now.
    pub(super) fn close(&mut self, code: &str, message: &str) {
        self.put(document::error(code, message));
        self.write();
        self.is_gone = true;
    }

    /// Does what there is to be done, for a while.
    pub(super) fn serve(&mut self, ready: PollFlags, shared: &mut Shared) {
        if ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.is_gone = true;
            return;
        }
        if ready.contains(PollFlags::POLLIN) {
            self.read();
        }
        // Once, so that it is others' turn soon.
        self.fill(shared);
        if !self.out.is_empty() {
            self.write();
        }
        if self.out.is_empty() {
            self.out = Vec::new();
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; LINE_BYTES_MAX + 1];
        let room = bytes.len() - self.input.len().min(LINE_BYTES_MAX);
        match bytes.get_mut(..room).map(|room| (&self.stream).read(room)) {
            Some(Ok(0)) => self.eof = true,
            Some(Ok(count)) if matches!(self.phase, Phase::Watching { .. }) => self.ignored += count,
            Some(Ok(count)) => self.input.extend(bytes.iter().take(count)),
            Some(Err(error)) => self.is_gone = !is_for_later(&error),
            None => {}
        }
    }

    fn write(&mut self) {
        match (&self.stream).write(&self.out) {
            Ok(count) => {
                self.out.drain(..count);
                self.since = Instant::now();
            }
            Err(error) => self.is_gone |= !is_for_later(&error),
        }
    }

    fn put(&mut self, document: String) {
        if self.out.is_empty() {
            self.since = Instant::now();
        }
        self.out.extend(document.into_bytes());
        self.out.push(b'\n');
        self.count += 1;
    }

    /// Writes ahead what there is for it.
    fn fill(&mut self, shared: &mut Shared) {
        while self.out.len() < OUT_BYTES_MAX && !self.is_gone {
            let goes_on = match self.phase {
                Phase::Idle => self.out.is_empty() && self.take_request(shared),
                Phase::Sending { .. } => self.send_item(shared),
                Phase::Watching { .. } | Phase::Resetting { .. } => self.send_change(shared),
                Phase::Waiting { .. } | Phase::Closing => false,
            };
            if !goes_on {
                // What was asked for ahead is looked at when this is taken.
                self.has_more = matches!(self.phase, Phase::Idle) && !self.out.is_empty();
                return;
            }
        }
        self.has_more = true;
    }

    /// Begins with the next request, if there is one.
    fn take_request(&mut self, shared: &mut Shared) -> bool {
        let end = self.input.iter().position(|byte| *byte == b'\n');
        let line = match end {
            Some(end) => self.input.drain(..=end).take(end).collect(),
            // What comes last may lack the end of its line.
            None if self.eof => std::mem::take(&mut self.input),
            None if self.input.len() > LINE_BYTES_MAX => {
                self.put(document::error("too-long", &format!("a request has {LINE_BYTES_MAX} bytes at most")));
                self.phase = Phase::Closing;
                return false;
            }
            None => return false,
        };
        if line.is_empty() && end.is_none() {
            self.phase = Phase::Closing;
            return false;
        }
        self.count = 0;
        self.since = Instant::now();
        match parse(&line) {
            Ok(request) => self.begin(request, shared),
            Err(RequestError { code, message }) => self.put(document::error(code, &message)),
        }
        true
    }

    fn begin(&mut self, request: Request, shared: &mut Shared) {
        let place = shared.ring.end();
        self.phase = match request.op {
            Op::Status | Op::Ports | Op::Explain => Phase::Waiting { request, asked: false },
            Op::Reset => Phase::Resetting { place, told: false },
            Op::Watch { .. } if !shared.may_watch() => {
                self.put(document::error("busy", "too many clients watch"));
                Phase::Closing
            }
            Op::Watch { replay: true } => Phase::Waiting { request, asked: false },
            Op::Watch { replay: false } => Phase::Watching { filter: request.filter, place },
        };
    }

    /// Sends the next item of what is shown.
    fn send_item(&mut self, shared: &Shared) -> bool {
        let Phase::Sending { request, shown, item, place } = &mut self.phase else { return false };
        let Request { op, filter } = request;
        let claims = if *op == Op::Explain { shown.view.claims.as_slice() } else { &[] };
        let rows = if *op == Op::Status { &[] } else { shown.view.rows.as_slice() };
        let mut next = None;
        shared.with(&shown.clock, &mut |cx| {
            if *op == Op::Status && *item == 0 {
                *item = 1;
                next = Some(shared.status(cx, &shown.view));
            }
            while next.is_none() && *item < claims.len() + rows.len() {
                let row = item.checked_sub(claims.len()).and_then(|row| rows.get(row));
                next = match row {
                    Some(row) => document::row(cx, filter, row),
                    None => claims.get(*item).and_then(|claim| document::claim(cx, filter, claim)),
                };
                *item += 1;
            }
        });
        match next {
            Some(document) => self.put(document),
            None if matches!(op, Op::Watch { .. }) => {
                let (filter, place) = (std::mem::take(filter), *place);
                self.put(document::count("replayed", self.count));
                self.phase = Phase::Watching { filter, place };
            }
            None => self.end(),
        }
        true
    }

    /// Sends the next change, if there is one.
    fn send_change(&mut self, shared: &Shared) -> bool {
        let (filter, place) = match &mut self.phase {
            Phase::Watching { filter, place } => (Some(filter), place),
            Phase::Resetting { place, .. } => (None, place),
            _ => return false,
        };
        let next = shared.ring.next(place);
        match (next, filter) {
            (Next::Change(change), Some(filter)) => {
                if let Some(document) = shared.changed(filter, &change) {
                    self.put(document);
                }
            }
            (Next::Lost(count), Some(_)) => self.put(document::count("lost", count)),
            (Next::Change(change), None) => {
                if let Some((document, is_done)) = document::reset(&change) {
                    if is_done && self.count == 0 {
                        // It had begun already when this client asked, and the agent does not begin again.
                        let begun = Change { report: Report::StartingOver, ..(*change).clone() };
                        document::reset(&begun).into_iter().for_each(|(document, _)| self.put(document));
                    }
                    self.put(document);
                    if is_done {
                        self.end();
                    }
                }
            }
            // One that resets finds out by the clock.
            (Next::Lost(_), None) => {}
            (Next::Nothing, _) => {
                if self.eof && matches!(self.phase, Phase::Watching { .. }) {
                    self.phase = Phase::Closing;
                }
                return false;
            }
        }
        true
    }

    fn end(&mut self) {
        self.put(document::count("end", self.count));
        self.phase = Phase::Idle;
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
