//! The sockets source: what listens in the guest, whoever it belongs to.
//!
//! Looks once an interval (`sock_diag`) and claims what it has seen twice in a row: containers' tools open sockets for a moment
//! to reserve a port. What is not there any more is withdrawn at once. While nothing changes a look is one comparison.
//!
//! Sockets count that listen on every address, on a loopback one, or on an address where connections of the host come in.
//! What listens on another address, or is bound to one interface, is the guest's own business: bridges and networks of containers,
//! link-local addresses. So are the agent's own sockets, known by their numbers. Which ports are never
//! published whoever listens there is for the policy's rules to say, not for this source.
//!
//! Not seen: which interface a socket is bound to, where the kernel has no SOCK_DIAG.

mod view;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::view::View;
use crate::event::{Event, Owner, Source};
use crate::net::{self, Outward};
use crate::ordered::{Map, Set};
use crate::parse::sockets::Listening;
use crate::port::Bindings;
use crate::sock_diag::{ScanError, SockDiag, own_inodes};
use crate::supervisor::Context;

/// A pause is that many times as long as the look before it, at least, which matters only where that has to read through
/// every connection.
const PAUSE_FACTOR: u32 = 20;

/// But no longer than that: the first look may take long while the kernel loads what answers it.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// After a look that failed.
const TROUBLED_PAUSE: Duration = Duration::from_secs(1);

/// How long the addresses where the host comes in are believed while no socket changes.
const OUTWARD_AGE_MAX: Duration = Duration::from_secs(5);

/// How often the whole view is sent though it has not changed: of a port that a container gave up, the reconciler believes
/// only what it is told later that it is still listened on.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(5);

/// Looks at sockets again and again.
pub struct Sockets {
    interval: Duration,
    outward: Vec<Outward>,
}

impl Sockets {
    /// A source that looks once in `interval`. Of sockets on one address, those on loopback addresses and on `outward` count.
    pub fn new(interval: Duration, outward: Vec<Outward>) -> Sockets {
        Sockets { interval, outward }
    }

    /// One session, for the supervisor. It ends with the agent.
    pub fn session(&mut self, context: &Context) -> (bool, io::Error) {
        let mut session = Session {
            context,
            outward: &self.outward,
            diag: SockDiag::new(),
            now: Vec::new(),
            last: Vec::new(),
            settled: false,
            asked: None,
            view: View::default(),
            looks: 0,
            sent: None,
            snapshot: Instant::now(),
            trouble: None,
        };
        loop {
            let begun = Instant::now();
            let looked = session.look();
            let pause = if looked.is_ok() { Duration::ZERO } else { TROUBLED_PAUSE };
            session.publish(looked);
            let pause = pause.max(self.interval).max(PAUSE_MAX.min(begun.elapsed() * PAUSE_FACTOR));
            if context.stop.wait(pause) {
                return (session.sent.is_some(), io::Error::other("the agent ends"));
            }
        }
    }
}

struct Session<'a> {
    context: &'a Context,
    outward: &'a [Outward],
    diag: SockDiag,
    /// What listens, in the kernel's order: now, and at the last look.
    now: Vec<Listening>,
    last: Vec<Listening>,
    /// The last two looks saw the same, so that another such one changes nothing.
    settled: bool,
    /// When it was asked where the host comes in, if that matters.
    asked: Option<Instant>,
    view: View,
    /// Looks that did not fail; more than two are counted as two.
    looks: u32,
    /// What people were told; `None`: nothing yet.
    sent: Option<Map<Arc<str>, Bindings>>,
    /// When they were told all of it.
    snapshot: Instant,
    /// What they were told is wrong.
    trouble: Option<String>,
}

impl Session<'_> {
    /// `None`: nothing has changed.
    fn look(&mut self) -> Result<Option<Map<Arc<str>, Bindings>>, ScanError> {
        self.diag.listening(&mut self.now)?;
        self.looks = (self.looks + 1).min(2);
        let same = self.now == self.last;
        let is_old = |asked: Instant| asked.elapsed() > OUTWARD_AGE_MAX;
        let told = self.sent.is_some() && self.trouble.is_none();
        if same && self.settled && told && !self.asked.is_some_and(is_old) {
            return Ok(None);
        }
        let now: Set<Listening> = self.now.iter().copied().collect();
        if self.view.has_new(&now) {
            // Later than the list: a socket of ours that is in it is here too, or was closed and will not be seen twice.
            own_inodes(|inode| self.view.learn(inode))?;
        }
        let mut addrs: Option<Vec<IpAddr>> = None;
        let outward = self.outward;
        let claims = self
            .view
            .take(now, |ip| addrs.get_or_insert_with(|| net::outward_addrs(outward).unwrap_or_default()).contains(&ip));
        self.asked = addrs.map(|_| Instant::now());
        self.settled = same;
        std::mem::swap(&mut self.now, &mut self.last);
        Ok(Some(claims))
    }

    fn publish(&mut self, looked: Result<Option<Map<Arc<str>, Bindings>>, ScanError>) {
        let claims = match looked {
            Ok(Some(claims)) => claims,
            Ok(None) => {
                if self.snapshot.elapsed() >= SNAPSHOT_INTERVAL {
                    self.send_snapshot(self.sent.clone().unwrap_or_default());
                }
                return;
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if self.trouble != reason {
                    self.trouble = reason;
                    let reason = error.to_string();
                    self.context.send(Event::SourceTroubled { source: Source::Sockets, reason });
                }
                return;
            }
        };
        match self.sent.take() {
            Some(sent) if self.trouble.is_none() => {
                for (key, bindings) in claims.iter().filter(|(key, bindings)| sent.get(*key) != Some(bindings)) {
                    self.claim(key, bindings.clone());
                }
                for key in sent.keys().filter(|key| !claims.contains_key(*key)) {
                    self.claim(key, Bindings::new());
                }
            }
            // Nothing has been seen twice yet.
            _ if self.looks < 2 => return,
            Some(_) | None => {
                self.send_snapshot(claims.clone());
                self.trouble = None;
            }
        }
        self.sent = Some(claims);
    }

    fn send_snapshot(&mut self, claims: Map<Arc<str>, Bindings>) {
        self.snapshot = Instant::now();
        self.context.send(Event::Snapshot { source: Source::Sockets, claims });
    }

    fn claim(&self, key: &Arc<str>, bindings: Bindings) {
        self.context.send(Event::Claim { owner: Owner { source: Source::Sockets, key: key.clone() }, bindings });
    }
}
