//! The nat source: published ports in the NAT rules of CNI's portmap plugin (nerdctl, Kubernetes' hostPort, k3s's
//! servicelb) and of netavark (Podman).
//!
//! Each kind of rules has a reader: a tool that prints them. A tool is run only when its rules may have changed, so on an
//! idle machine none is ever run:
//! - nftables, and iptables kept in it: the kernel tells of every change, with the name of the table. Changes of other
//!   tables start nothing, lost messages count as changes.
//! - iptables of the older kind: the kernel tells nothing. Every interval the list of its tables is read; where `nat` is
//!   not in it the tool is not run, since that would load the table. Where it is, the tool is run after some iptables
//!   has used its lock file, at most once an interval.
//!
//! Not seen before the next look at everything, every five minutes: a change of older rules by a program that does not
//! use that lock file. Not seen at all: rules of a kind whose tool was missing at the start and that do not change after.
//!
//! portmap writes the rule that names the container last: until that is seen, the owner is the chain.
//!
//! What the readers see is sent as a whole. While one of them fails, its last view stays, and what the others see is sent
//! by owner. Rules that lead nowhere any more are found out by `probes`.

mod lock;
pub mod names;
mod netlink;
mod pace;
mod probes;
mod reader;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use self::lock::Lock;
use self::names::Names;
use self::netlink::Changes;
use self::probes::Probes;
use self::reader::{Kind, Reader};
use crate::event::{Event, Owner, Source};
use crate::ordered::{Map, Set};
use crate::parse::nat::View;
use crate::parse::netlink::{link_lost, tables};
use crate::port::Bindings;
use crate::source::child::ToolError;
use crate::supervisor::Context;

/// How often everything in use is read, changed or not.
const SAFETY_INTERVAL: Duration = Duration::from_secs(300);

/// The tools that are not installed, and whether any is. Those of the older iptables are missed only where it is in use.
pub fn missing_tools() -> (Vec<ToolError>, bool) {
    let in_use = |kind: &Kind| kind.names_file().is_none_or(|file| Names::new(file).have_nat().unwrap_or(false));
    let tools = Kind::ALL.into_iter().map(|kind| (kind, kind.tool()));
    let (installed, missing): (Vec<_>, Vec<_>) = tools.partition(|(_, tool)| tool.is_ok());
    let missed = missing.into_iter().filter(|(kind, _)| in_use(kind)).filter_map(|(_, tool)| tool.err());
    (missed.collect(), !installed.is_empty())
}

/// Why a session ended.
#[derive(Debug)]
pub enum NatError {
    /// None of the tools is installed.
    NoTools,
    /// The kernel's word of changes cannot be had.
    Watch {
        /// Of what.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
    /// It is not known which tables are in use.
    List {
        /// The kernel's list of them.
        file: &'static str,
        /// Why it cannot be read.
        error: io::Error,
    },
    /// The agent ends.
    Stopped,
}

impl fmt::Display for NatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NatError::NoTools => f.write_str("there is no program that prints NAT rules: install iptables or nftables"),
            NatError::Watch { what, errno: errno @ (Errno::EPERM | Errno::EACCES) } => {
                write!(f, "cannot watch {what}: {errno} (run as root, or with CAP_NET_ADMIN and CAP_NET_RAW)")
            }
            NatError::Watch { what, errno } => write!(f, "cannot watch {what}: {errno}"),
            NatError::List { file, error } => write!(f, "cannot read {file}: {error} (run as root)"),
            NatError::Stopped => f.write_str("the agent ends"),
        }
    }
}

impl std::error::Error for NatError {}

fn watching(what: &'static str) -> impl Fn(Errno) -> NatError {
    move |errno| NatError::Watch { what, errno }
}

/// What is known across sessions.
pub struct Nat {
    interval: Duration,
    /// Rules left out that people know of.
    told: Set<String>,
}

impl Nat {
    /// Looks that often whether rules that do not tell of their changes may have changed.
    pub fn new(interval: Duration) -> Nat {
        Nat { interval, told: Set::new() }
    }

    /// Watches until that fails, or the agent ends.
    pub fn session(&mut self, context: &Context) -> (bool, NatError) {
        match Session::start(self, context) {
            Ok(mut session) => {
                let error = session.run().err().unwrap_or(NatError::Stopped);
                (session.complete, error)
            }
            Err(error) => (false, error),
        }
    }
}

struct Session<'a> {
    nat: &'a mut Nat,
    context: &'a Context,
    readers: Vec<Reader>,
    /// None: the kernel cannot tell, as it has no nftables.
    tables: Option<Changes>,
    links: Changes,
    lock: Lock,
    probes: Probes,
    /// When to look at the lists of tables again, and when to read everything.
    next_look: Instant,
    next_safety: Instant,
    /// What all readers see, and what of it was sent.
    view: View,
    sent: Map<Arc<str>, Bindings>,
    /// Which of its owners were last said to be stale, if that was said in this session.
    stale: Option<Set<Arc<str>>>,
    /// The whole was sent in this session.
    complete: bool,
    /// What people were told is wrong.
    trouble: Option<String>,
}

impl<'a> Session<'a> {
    fn start(nat: &'a mut Nat, context: &'a Context) -> Result<Session<'a>, NatError> {
        let now = Instant::now();
        // Before the first read, so that nothing falls between.
        let tables = match Changes::of_tables() {
            Ok(tables) => Some(tables),
            // The smallest kernels have no netlink of their packet filter at all.
            Err(Errno::EPROTONOSUPPORT) => None,
            Err(errno) => return Err(watching("changes of nftables")(errno)),
        };
        let links = Changes::of_links().map_err(watching("links"))?;
        let probes = Probes::new().map_err(watching("connections"))?;
        let interval = |kind: Kind| if kind.names_file().is_some() { nat.interval } else { Duration::ZERO };
        let mut readers = Vec::from(Kind::ALL.map(|kind| Reader::new(kind, interval(kind))));
        let has_nftables = tables.is_some() && Changes::has_nftables().map_err(watching("nftables"))?;
        if !has_nftables {
            log::info!("this kernel has no nftables; only rules of iptables-legacy are read");
        }
        let mut any = false;
        for reader in &mut readers {
            let installed = reader.kind.tool().is_ok();
            any |= installed;
            if installed && has_nftables && reader.names.is_none() {
                reader.change(now);
            }
        }
        if !any {
            return Err(NatError::NoTools);
        }
        Ok(Session {
            nat,
            context,
            readers,
            tables,
            links,
            lock: Lock::new(),
            probes,
            next_look: now,
            next_safety: now + SAFETY_INTERVAL,
            view: View::default(),
            sent: Map::new(),
            stale: None,
            complete: false,
            trouble: None,
        })
    }

    fn run(&mut self) -> Result<(), NatError> {
        loop {
            let now = Instant::now();
            self.hear(now)?;
            let mut seen = self.look(now)?;
            for reader in &mut self.readers {
                seen |= reader.advance(now);
                reader.start(now);
            }
            if seen {
                self.merge(now);
            }
            let published = self.publish(seen, now);
            if self.probes.advance(now) || published {
                self.tell_stale();
            }
            let deadlines = self.readers.iter().filter_map(|reader| reader.deadline(now)).chain(self.probes.deadline());
            let deadline = deadlines.chain([self.next_look, self.next_safety]).min();
            let mut fds: Vec<BorrowedFd<'_>> = vec![self.links.as_fd(), self.probes.as_fd()];
            fds.extend(self.tables.iter().map(AsFd::as_fd));
            fds.extend(self.lock.fd());
            fds.extend(self.readers.iter().flat_map(Reader::fds));
            if !self.context.stop.wait_readable(&fds, deadline) {
                return Ok(());
            }
        }
    }

    /// Takes what the kernel tells.
    fn hear(&mut self, now: Instant) -> Result<(), NatError> {
        let mut changed: Vec<Kind> = Vec::new();
        let mut all = false;
        let heard = self.tables.iter_mut().try_for_each(|changes| {
            changes.drain(|message| {
                let found = |family, name: &[u8]| {
                    let kind = Kind::of_table(family, name).filter(|kind| !changed.contains(kind));
                    changed.extend(kind);
                };
                all |= message.is_none_or(|message| tables(message, found).is_err());
            })
        });
        heard.map_err(watching("changes of nftables"))?;
        for reader in &mut self.readers {
            // Lost messages are about what can be read; a named table is there even if nothing can read it.
            let lost = all && reader.is_wanted() && reader.names.is_none();
            if lost || changed.contains(&reader.kind) {
                reader.change(now);
            }
        }
        let mut lost = false;
        let heard = self.links.drain(|message| {
            lost |= message.is_none_or(|message| link_lost(message).unwrap_or(true));
        });
        heard.map_err(watching("links"))?;
        if lost {
            self.probes.link_lost(now);
        }
        Ok(())
    }

    /// Looks after what the kernel does not tell of. `true`: some rules are not in use any more.
    fn look(&mut self, now: Instant) -> Result<bool, NatError> {
        let mut used = self.lock.was_used();
        if now >= self.next_safety {
            self.next_safety = now + SAFETY_INTERVAL;
            let in_use = |reader: &&mut Reader| reader.view.as_ref().is_some_and(|view| *view != View::default());
            self.readers.iter_mut().filter(in_use).for_each(|reader| reader.change(now));
            used = true;
        }
        if now >= self.next_look {
            self.next_look = now + self.nat.interval;
            used |= self.lock.follow();
        } else if !used {
            return Ok(false);
        }
        let mut forgotten = false;
        for reader in &mut self.readers {
            let Some(names) = &mut reader.names else { continue };
            let listed = names.have_nat().map_err(|error| NatError::List { file: names.path(), error })?;
            if !listed {
                forgotten |= reader.forget();
            } else if used || !reader.is_wanted() {
                reader.change(now);
            }
        }
        Ok(forgotten)
    }

    /// Puts together what the readers see.
    fn merge(&mut self, now: Instant) {
        self.view = View::default();
        self.readers.iter().filter_map(|reader| reader.view.as_ref()).for_each(|view| self.view.merge(view));
        let addresses = self.view.targets.values().map(|target| target.address).collect();
        self.probes.watch(&addresses, now);
        for reason in self.view.skipped.iter().filter(|reason| !self.nat.told.contains(*reason)) {
            self.context.send(Event::Skipped { source: Source::Nat, reason: reason.clone() });
        }
        self.nat.told = self.view.skipped.clone();
    }

    /// Sends what is new, of what was `seen` or of trouble. `true`: something was.
    fn publish(&mut self, seen: bool, now: Instant) -> bool {
        let troubles: Vec<&str> = self.readers.iter().filter_map(|reader| reader.trouble(now)).collect();
        let trouble = Some(troubles.join("; ")).filter(|_| !troubles.is_empty());
        if !seen && self.complete && trouble == self.trouble {
            return false;
        }
        let whole = self.readers.iter().all(|reader| !reader.is_wanted() || reader.view.is_some());
        if trouble.is_none() && !whole {
            return false;
        }
        let changed = trouble != self.trouble;
        let same = self.sent.len() == self.view.targets.len()
            && self.view.targets.iter().all(|(key, target)| self.sent.get(key) == Some(&target.bindings));
        if !changed && same && (self.complete || trouble.is_some()) {
            return false;
        }
        let targets = self.view.targets.iter();
        let claims: Map<Arc<str>, Bindings> =
            targets.map(|(key, target)| (key.clone(), target.bindings.clone())).collect();
        match &trouble {
            None => {
                self.context.send(Event::Snapshot { source: Source::Nat, claims: claims.clone() });
                self.complete = true;
            }
            Some(reason) => {
                if changed {
                    self.context.send(Event::SourceTroubled { source: Source::Nat, reason: reason.clone() });
                }
                // Not a snapshot: what only a reader that fails would see is to stay. What an owner takes over from
                // another one is claimed before that lets go of it, or else it would be withdrawn in between.
                for (key, bindings) in claims.iter().filter(|(key, bindings)| self.sent.get(*key) != Some(bindings)) {
                    self.claim(key, bindings.clone());
                }
                for key in self.sent.keys().filter(|key| !claims.contains_key(*key)) {
                    self.claim(key, Bindings::new());
                }
            }
        }
        self.sent = claims;
        self.trouble = trouble;
        true
    }

    fn claim(&self, key: &Arc<str>, bindings: Bindings) {
        self.context.send(Event::Claim { owner: Owner { source: Source::Nat, key: key.clone() }, bindings });
    }

    /// Of owners that nobody knows yet, it could not be told.
    fn tell_stale(&mut self) {
        let known = self.view.targets.iter().filter(|(key, _)| self.sent.contains_key(*key));
        let gone = known.filter(|(_, target)| self.probes.is_gone(target.address));
        let keys: Set<Arc<str>> = gone.map(|(key, _)| key.clone()).collect();
        if self.stale.as_ref() != Some(&keys) {
            self.stale = Some(keys.clone());
            self.context.send(Event::Stale { source: Source::Nat, keys });
        }
    }
}
