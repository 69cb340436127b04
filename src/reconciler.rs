//! The heart of the agent: claims in, documents out. A pure state machine.
//!
//! `apply(event, now) -> commands` is all there is. No I/O, no clock, no logging, no locks: the agent thread owns it
//! and nothing else changes port state. It keeps who claims which binding, derives what each sink should hold (a
//! binding stays while any owner claims it), and lets each sink's [`ledger`] work out the difference.

#![deny(clippy::wildcard_enum_match_arm)]

mod anew;
pub mod ledger;
mod remarks;
mod settings;
mod sources;
mod view;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{Answer, Command, Event, Owner, Report, SinkId, Source, Ticket};
use crate::ordered::{Map, Set};
use crate::policy::Policy;
use crate::port::{Binding, Bindings, Protocol, unspecified_like};
use ledger::Ledger;
pub use settings::{Role, Settings, SinkSettings};
use sources::Sources;

/// Bindings that all owners together may claim. What goes over is refused and reported, never silently dropped.
pub const BINDINGS_MAX: usize = 131_072;

/// Whose the forwards of an earlier run are.
const EARLIER_RUN: &str = "earlier-run";

/// One owner's claim on a binding.
#[derive(Debug, Clone)]
struct Claimant {
    owner: Owner,
    container_port: NonZeroU16,
    /// A rule denies it.
    denied: bool,
    /// Since when it claims it, or since when it is denied.
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    policy: Policy,
    grace: Duration,
    sinks: Vec<SinkSettings>,
    relay: Option<usize>,
    ledgers: Vec<Ledger>,
    claims: Map<Owner, Bindings>,
    /// The same claims by binding, oldest claimant first.
    claimants: Map<Binding, Vec<Claimant>>,
    claimed: usize,
    /// The claimed bindings on one address, by port: they need no relay while the port is claimed on every address.
    addressed: Map<(Protocol, NonZeroU16), Set<Binding>>,
    /// Claimed by sockets alone, after a container had them: most likely by what listened for that container, and is just
    /// ending. Not forwarded until the sockets are seen again.
    doubtful: Set<Binding>,
    sources: Sources,
    /// Sources that have not given their view yet.
    awaited: Set<Source>,
    /// Owners of claims that lead nowhere.
    stale: Set<Owner>,
    /// For display: of those who claim something, and of some who did.
    names: Map<Owner, Arc<str>>,
    former_names: Map<Owner, Arc<str>>,
    /// Those who did, in the order in which they went.
    former_owners: VecDeque<Owner>,
    next_ticket: u64,
    /// Everything is being withdrawn, until then at most, to be learned anew.
    starting_over: Option<Instant>,
    stopping: bool,
    now: Instant,
}

impl Reconciler {
    /// A reconciler that knows of nothing yet.
    pub fn new(settings: Settings, now: Instant) -> Reconciler {
        Reconciler {
            policy: settings.policy,
            grace: settings.grace,
            relay: settings.sinks.iter().position(|sink| sink.role == Role::Relay),
            ledgers: (settings.sinks.iter().enumerate())
                .map(|(i, sink)| Ledger::new(SinkId(i), sink.document_bindings_max, now))
                .collect(),
            sinks: settings.sinks,
            claims: Map::new(),
            claimants: Map::new(),
            claimed: 0,
            addressed: Map::new(),
            doubtful: Set::new(),
            awaited: settings.sources.iter().copied().collect(),
            sources: Sources::new(settings.sources, now),
            stale: Set::new(),
            names: Map::new(),
            former_names: Map::new(),
            former_owners: VecDeque::new(),
            next_ticket: 0,
            starting_over: None,
            stopping: false,
            now,
        }
    }

    /// Takes one event and returns what is to be done about it.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Command> {
        let mut out = Vec::new();
        self.pass(now);
        match event {
            // What was seen before everything was withdrawn is no news.
            Event::Claim { .. } | Event::Snapshot { .. } | Event::Stale { .. } | Event::Named { .. }
                if self.starting_over.is_some() => {}
            Event::Claim { owner, bindings } => {
                self.sources.heard(owner.source, now);
                self.trust(|binding| owner.source == Source::Sockets && bindings.contains_key(binding));
                self.claim(owner, bindings, &mut out);
            }
            Event::Snapshot { source, claims } => self.snapshot(source, claims, &mut out),
            Event::SourceLost { source, reason } => {
                let report = self.sources.lost(source, &reason, now + self.grace, now);
                out.extend(report.map(Command::Report));
            }
            Event::SourceTroubled { source, reason } => {
                out.extend(self.sources.troubled(source, &reason, now).map(Command::Report));
            }
            Event::Stale { source, keys } => self.mark_stale(source, &keys, &mut out),
            Event::Named { source, names } => self.name_owners(source, names),
            Event::Skipped { source, reason } => out.push(Command::Report(self.sources.skipped(source, reason, now))),
            Event::Answered { sink, ticket, answer } => self.answer(sink, ticket, answer, now, &mut out),
            Event::Found { sink, bindings } => self.found(sink, &bindings, now),
            Event::SinkReset { sink, reason } => {
                if let Some(ledger) = self.ledgers.get_mut(sink.0) {
                    ledger.reset(now);
                    out.push(Command::Report(Report::Reset { sink, reason }));
                }
            }
            Event::SinkSeen { sink, problem } => {
                if let Some(ledger) = self.ledgers.get_mut(sink.0) {
                    ledger.seen(problem, now, &mut out);
                }
            }
            Event::StartOver => self.start_over(now, &mut out),
            Event::Show(_) | Event::Reread | Event::Tick => {}
            Event::Shutdown => {
                self.stopping = true;
                self.starting_over = None;
                for ledger in &mut self.ledgers {
                    ledger.stop(now);
                }
            }
        }
        self.end_grace(now);
        self.pump(now, &mut out);
        self.end_start_over(now, &mut out);
        out
    }

    /// What changes from here on, changes now.
    fn pass(&mut self, now: Instant) {
        self.now = now;
        self.ledgers.iter_mut().for_each(|ledger| ledger.now = now);
    }

    fn answer(&mut self, sink: SinkId, ticket: Ticket, answer: Answer, now: Instant, out: &mut Vec<Command>) {
        let Some(ledger) = self.ledgers.get_mut(sink.0) else { return };
        let changed = ledger.answer(ticket, answer, now, out);
        self.spread_what_follows(sink, &changed.into_iter().collect());
    }

    /// A sink that follows the one with forwards of an earlier run may have been told of the same.
    fn found(&mut self, sink: SinkId, bindings: &Set<Binding>, now: Instant) {
        let until = if self.stopping || self.awaited.is_empty() { now } else { now + self.grace };
        let owner = Owner { source: Source::Agent, key: EARLIER_RUN.into() };
        for (i, (settings, ledger)) in self.sinks.iter().zip(&mut self.ledgers).enumerate() {
            if SinkId(i) == sink || settings.after == Some(sink) {
                ledger.found(bindings, &owner, until, SinkId(i) == sink);
            }
        }
        self.spread_what_follows(sink, bindings);
    }

    /// Tells other sinks what they may be told now that these forwards have changed at one they follow.
    fn spread_what_follows(&mut self, sink: SinkId, changed: &Set<Binding>) {
        let is_followed = self.relay == Some(sink.0) || self.sinks.iter().any(|other| other.after == Some(sink));
        if let Some(ledger) = self.ledgers.get(sink.0).filter(|_| is_followed) {
            let published: Set<Binding> = changed.iter().flat_map(|exposed| ledger.asked_by(*exposed)).collect();
            published.iter().for_each(|binding| self.spread(*binding));
        }
    }

    /// Lets every sink send. While the relay works on an owner's bindings, peers are not told of that owner: what is
    /// relayed and what is not then go out together, as one document for one change. The same for a sink that follows
    /// another. Those that others wait for go first: else one could wait for what is just found to be nothing, and nobody
    /// would say so.
    fn pump(&mut self, now: Instant, out: &mut Vec<Command>) {
        let of_rank = |rank: u8| self.sinks.iter().enumerate().filter(move |(_, sink)| sink.rank() == rank);
        for i in (0..=2).flat_map(of_rank).map(|(i, _)| i).collect::<Vec<usize>>() {
            let (before, rest) = self.ledgers.split_at_mut(i);
            let Some((ledger, behind)) = rest.split_first_mut() else { continue };
            let peer = self.sinks.get(i).filter(|sink| sink.role == Role::Peer);
            let after = peer.and_then(|sink| sink.after).map(|sink| sink.0);
            let of = |k: usize| before.get(k).or_else(|| behind.get(k - i - 1));
            let ahead = [self.relay.filter(|_| peer.is_some()), after].map(|k| k.and_then(of));
            let hold = |owner: &Owner| ahead.iter().flatten().any(|ledger| ledger.is_busy(owner));
            ledger.pump(now, &mut self.next_ticket, hold, out);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let others = self.sources.deadline().into_iter().chain(self.starting_over);
        self.ledgers.iter().filter_map(Ledger::deadline).chain(others).min()
    }

    /// Whether every sink is empty: after [`Event::Shutdown`], that the agent may end.
    pub fn is_empty(&self) -> bool {
        self.ledgers.iter().all(Ledger::is_empty)
    }

    fn snapshot(&mut self, source: Source, mut claims: Map<Arc<str>, Bindings>, out: &mut Vec<Command>) {
        self.sources.heard(source, self.now);
        out.extend(self.sources.ready(source, self.now).map(Command::Report));
        let mut changes: Vec<(Owner, Bindings)> = Vec::new();
        for owner in self.owners_of(source) {
            let bindings = claims.remove(&owner.key).unwrap_or_default();
            changes.push((owner, bindings));
        }
        changes.extend(claims.into_iter().map(|(key, bindings)| (Owner { source, key }, bindings)));
        // What shrinks first: a view that fits as a whole must not be refused on the way to it.
        let grows = |(owner, new): &(Owner, Bindings)| self.claims.get(owner).map_or(0, Bindings::len) < new.len();
        let (growing, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(grows);
        for (owner, bindings) in rest.into_iter().chain(growing) {
            self.claim(owner, bindings, out);
        }
        self.trust(|_| source == Source::Sockets);
        self.names.retain(|owner, _| owner.source != source || self.claims.contains_key(owner));
        if self.awaited.remove(&source) && self.awaited.is_empty() {
            self.ledgers.iter_mut().for_each(Ledger::end_found);
        }
    }

    fn end_grace(&mut self, now: Instant) {
        while let Some(source) = self.sources.ended(now) {
            for owner in self.owners_of(source) {
                self.claim(owner, Bindings::new(), &mut Vec::new());
            }
        }
    }

    fn owners_of(&self, source: Source) -> Vec<Owner> {
        self.claims.keys().filter(|owner| owner.source == source).cloned().collect()
    }

    /// Replaces what one owner claims.
    fn claim(&mut self, owner: Owner, mut bindings: Bindings, out: &mut Vec<Command>) {
        if self.stopping {
            return;
        }
        let before = self.claims.remove(&owner).unwrap_or_default();
        self.claimed -= before.len();
        let room = BINDINGS_MAX - self.claimed;
        if bindings.len() > room {
            let reason = format!("{owner} claims {} bindings, room is left for {room}", bindings.len());
            // What is claimed already stays.
            let (kept, new): (Bindings, Bindings) = bindings.into_iter().partition(|(b, _)| before.contains_key(b));
            let free = room - kept.len();
            bindings = kept.into_iter().chain(new.into_iter().take(free)).collect();
            out.push(Command::Report(self.sources.skipped(owner.source, reason, self.now)));
        }
        self.claimed += bindings.len();
        for binding in before.keys().filter(|b| !bindings.contains_key(b)) {
            self.release(&owner, *binding);
        }
        for (binding, container_port) in bindings.iter().filter(|(b, port)| before.get(b) != Some(port)) {
            self.acquire(&owner, *binding, *container_port, out);
        }
        if bindings.is_empty() {
            self.stale.remove(&owner);
            self.forget_name(owner);
        } else {
            self.claims.insert(owner, bindings);
        }
    }

    fn acquire(&mut self, owner: &Owner, binding: Binding, container_port: NonZeroU16, out: &mut Vec<Command>) {
        let claimants = self.claimants.entry(binding).or_insert_with(|| Vec::with_capacity(1));
        let first = claimants.is_empty();
        let mut denied = false;
        match claimants.iter_mut().find(|c| c.owner == *owner) {
            Some(claimant) => claimant.container_port = container_port,
            None => {
                let denial = self.policy.denial(owner.source, binding);
                denied = denial.is_some();
                claimants.push(Claimant { owner: owner.clone(), container_port, denied, since: self.now });
                out.extend(denial.map(|rule| remarks::denied(owner, binding, rule)));
            }
        }
        if first && !denied {
            self.remark(owner, binding, out);
        }
        self.spread(binding);
        if first || binding.host_ip.is_unspecified() {
            self.note_address(binding, true);
        }
    }

    fn release(&mut self, owner: &Owner, binding: Binding) {
        let mut last = false;
        if let Some(claimants) = self.claimants.get_mut(&binding) {
            claimants.retain(|c| c.owner != *owner);
            last = claimants.is_empty();
            if last {
                self.claimants.remove(&binding);
                self.doubtful.remove(&binding);
            } else if !owner.is_socket() && claimants.iter().all(|c| c.owner.is_socket()) {
                self.doubtful.insert(binding);
            }
        }
        self.spread(binding);
        if last || binding.host_ip.is_unspecified() {
            self.note_address(binding, false);
        }
    }

    /// The sockets behind these doubtful bindings are there.
    fn trust(&mut self, seen: impl Fn(&Binding) -> bool) {
        let trusted: Vec<Binding> = self.doubtful.iter().filter(|binding| seen(binding)).copied().collect();
        for binding in trusted {
            self.doubtful.remove(&binding);
            self.spread(binding);
        }
    }

    /// A binding is claimed for the first time, or not at all any more; or one on every address has other claimants: what is
    /// claimed of its port on one address needs the relay no longer, or from now on.
    fn note_address(&mut self, binding: Binding, claimed: bool) {
        if self.relay.is_none() {
            return;
        }
        let port = (binding.protocol, binding.host_port);
        if binding.host_ip.is_unspecified() {
            let others: Vec<Binding> = self.addressed.get(&port).into_iter().flat_map(Set::iter).copied().collect();
            others.into_iter().for_each(|other| self.spread(other));
        } else if claimed {
            self.addressed.entry(port).or_default().insert(binding);
        } else if let Some(others) = self.addressed.get_mut(&port) {
            others.remove(&binding);
            if others.is_empty() {
                self.addressed.remove(&port);
            }
        }
    }

    /// Tells every ledger whether this published binding asks for a forward there: of its claimants, the oldest that
    /// the sink is told of counts.
    fn spread(&mut self, published: Binding) {
        let everywhere = published.host_ip.is_unspecified()
            || (self.relay.is_some()
                && allowed(&self.claimants, published.on(unspecified_like(published.host_ip))).next().is_some());
        let doubtful = self.doubtful.contains(&published);
        let allowed = allowed(&self.claimants, published).filter(|c| !(doubtful && c.owner.is_socket()));
        for (i, sink) in self.sinks.iter().enumerate() {
            let exposed = if sink.role == Role::Peer { self.policy.expose(published) } else { published };
            // Whether the sink ahead has it, as far as it is told of the owner.
            let has = |k: usize, binding: Binding, owner: &Owner| {
                let told = self.sinks.get(k).is_some_and(|ahead| ahead.is_told_of(owner));
                !told || self.ledgers.get(k).is_some_and(|ledger| ledger.holds(binding))
            };
            let is_ready = |owner: &Owner| match sink.role {
                Role::Relay => !everywhere,
                Role::Listener => true,
                Role::Peer => {
                    (everywhere || self.relay.is_none_or(|relay| has(relay, published, owner)))
                        && sink.after.is_none_or(|ahead| has(ahead.0, exposed, owner))
                }
            };
            let claimant = allowed.clone().find(|c| sink.is_told_of(&c.owner));
            let asks = claimant.filter(|c| sink.objection(published).is_none() && is_ready(&c.owner));
            let Some(ledger) = self.ledgers.get_mut(i) else { continue };
            match asks {
                Some(c) => ledger.want(exposed, published, &c.owner, c.container_port),
                None => ledger.unwant(exposed, published),
            }
        }
    }
}

/// The claimants of a binding that no rule denies it. What a container claims is not the socket's that listens for it, also
/// where a rule denies it.
fn allowed(claimants: &Map<Binding, Vec<Claimant>>, published: Binding) -> impl Iterator<Item = &Claimant> + Clone {
    let claimants = claimants.get(&published).map(Vec::as_slice).unwrap_or_default();
    let no_socket = claimants.iter().any(|c| !c.owner.is_socket());
    claimants.iter().filter(move |c| !c.denied && (!no_socket || !c.owner.is_socket()))
}
