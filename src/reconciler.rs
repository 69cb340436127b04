//! The heart of the agent: claims in, documents out. A pure state machine.
//!
//! `apply(event, now) -> commands` is all there is. No I/O, no clock, no logging, no locks: the agent thread owns it
//! and nothing else changes port state. It keeps who claims which binding, derives what each sink should hold (a
//! binding stays while any owner claims it), and lets each sink's [`ledger`] work out the difference.

#![deny(clippy::wildcard_enum_match_arm)]

pub mod ledger;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{Command, Event, Owner, Report, SinkId, Source};
use crate::ordered::{Map, Set};
use crate::policy::Policy;
use crate::port::{Binding, Bindings, Protocol};
use ledger::Ledger;

/// Bindings that all owners together may claim. What goes over is refused and reported, never silently dropped.
pub const BINDINGS_MAX: usize = 131_072;

/// What a sink is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Tells a host end: takes every binding, as the policy exposes it.
    Peer,
    /// The agent's own pipe: takes the bindings that name one address, as they were published. A peer is told of
    /// such a binding only while the relay carries it, since the host could not reach it otherwise.
    Relay,
    /// Opens listeners in the guest for others to notice: takes TCP bindings that name no particular address, or a
    /// loopback one, as they were published, but for those of owners that listen themselves.
    Listener,
}

impl Role {
    /// Why a published binding is nothing for such a sink, if that is so.
    fn objection(self, published: Binding) -> Option<&'static str> {
        match self {
            Role::Peer => None,
            Role::Relay => published.host_ip.is_unspecified().then_some("it answers on every address already"),
            Role::Listener if published.protocol == Protocol::Udp => Some("only TCP can be noticed by a listener"),
            Role::Listener if published.host_ip.is_unspecified() || published.is_loopback() => None,
            Role::Listener => Some("it is published on one address of the guest only"),
        }
    }
}

/// A sink, as the reconciler knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkSettings {
    /// What it is for.
    pub role: Role,
    /// Whose claims it is told of.
    pub feeds: &'static [Source],
}

impl SinkSettings {
    fn is_told_of(&self, owner: &Owner) -> bool {
        self.feeds.contains(&owner.source) && !(self.role == Role::Listener && owner.listens())
    }

    /// A sink that is told of the claims of every source.
    pub fn of_all(role: Role) -> SinkSettings {
        SinkSettings { role, feeds: Source::ALL }
    }
}

/// How the reconciler is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What may be exposed.
    pub policy: Policy,
    /// How long the claims of a lost source stay.
    pub grace: Duration,
    /// The sinks, in the order of their [`SinkId`]s; at most one relay.
    pub sinks: Vec<SinkSettings>,
}

/// One owner's claim on a binding.
#[derive(Debug, Clone)]
struct Claimant {
    owner: Owner,
    container_port: NonZeroU16,
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
    /// When the claims of a lost source end.
    lost: Map<Source, Instant>,
    problems: Map<Source, Option<String>>,
    losses: Map<Source, u64>,
    skipped: Map<Source, u64>,
    /// Owners of claims that lead nowhere.
    stale: Set<Owner>,
    next_ticket: u64,
    stopping: bool,
}

impl Reconciler {
    /// A reconciler that knows of nothing yet.
    pub fn new(settings: Settings) -> Reconciler {
        Reconciler {
            policy: settings.policy,
            grace: settings.grace,
            relay: settings.sinks.iter().position(|sink| sink.role == Role::Relay),
            ledgers: (0..settings.sinks.len()).map(|i| Ledger::new(SinkId(i))).collect(),
            sinks: settings.sinks,
            claims: Map::new(),
            claimants: Map::new(),
            claimed: 0,
            lost: Map::new(),
            problems: Map::new(),
            losses: Map::new(),
            skipped: Map::new(),
            stale: Set::new(),
            next_ticket: 0,
            stopping: false,
        }
    }

    /// Takes one event and returns what is to be done about it.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Command> {
        let mut out = Vec::new();
        match event {
            Event::Claim { owner, bindings } => self.claim(owner, bindings, &mut out),
            Event::Snapshot { source, claims } => self.snapshot(source, claims, &mut out),
            Event::SourceLost { source, reason } => {
                let until = now + self.grace;
                self.lost.entry(source).or_insert(until);
                *self.losses.entry(source).or_default() += 1;
                self.source_problem(source, Some(reason), &mut out);
            }
            Event::SourceTroubled { source, reason } => {
                self.lost.remove(&source);
                self.source_problem(source, Some(reason), &mut out);
            }
            Event::Stale { source, keys } => self.mark_stale(source, &keys, &mut out),
            Event::Skipped { source, reason } => self.skip(source, reason, &mut out),
            Event::Answered { sink, ticket, answer } => {
                let changed = match self.ledgers.get_mut(sink.0) {
                    Some(ledger) => ledger.answer(ticket, answer, now, &mut out),
                    None => Vec::new(),
                };
                if self.relay == Some(sink.0) {
                    for binding in changed {
                        self.spread(binding);
                    }
                }
            }
            Event::SinkReset { sink, reason } => {
                if let Some(ledger) = self.ledgers.get_mut(sink.0) {
                    ledger.reset(now);
                    out.push(Command::Report(Report::Reset { sink, reason }));
                }
            }
            Event::Tick => {}
            Event::Shutdown => {
                self.stopping = true;
                for ledger in &mut self.ledgers {
                    ledger.stop(now);
                }
            }
        }
        self.end_grace(now);
        self.pump(now, &mut out);
        out
    }

    /// Lets every sink send. While the relay works on an owner's bindings, peers are not told of that owner: what is
    /// relayed and what is not then go out together, as one document for one change.
    fn pump(&mut self, now: Instant, out: &mut Vec<Command>) {
        for i in 0..self.ledgers.len() {
            let (before, rest) = self.ledgers.split_at_mut(i);
            let Some((ledger, after)) = rest.split_first_mut() else { continue };
            let relay = self.relay.filter(|r| *r != i).and_then(|r| before.get(r).or_else(|| after.get(r - i - 1)));
            let hold = |owner: &Owner| relay.is_some_and(|relay| relay.is_busy(owner));
            ledger.pump(now, &mut self.next_ticket, hold, out);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let graces = self.lost.values().copied();
        self.ledgers.iter().filter_map(Ledger::deadline).chain(graces).min()
    }

    /// Whether every sink is empty: after [`Event::Shutdown`], that the agent may end.
    pub fn is_empty(&self) -> bool {
        self.ledgers.iter().all(Ledger::is_empty)
    }

    fn snapshot(&mut self, source: Source, mut claims: Map<Arc<str>, Bindings>, out: &mut Vec<Command>) {
        self.lost.remove(&source);
        self.source_problem(source, None, out);
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
    }

    fn end_grace(&mut self, now: Instant) {
        while let Some(source) = self.lost.iter().find(|(_, until)| **until <= now).map(|(source, _)| *source) {
            self.lost.remove(&source);
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
            self.skip(owner.source, reason, out);
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
        } else {
            self.claims.insert(owner, bindings);
        }
    }

    fn mark_stale(&mut self, source: Source, keys: &Set<Arc<str>>, out: &mut Vec<Command>) {
        for owner in self.owners_of(source) {
            let stale = keys.contains(&owner.key);
            let was = if stale { !self.stale.insert(owner.clone()) } else { self.stale.remove(&owner) };
            if stale != was {
                out.push(Command::Report(Report::Stale { owner, stale }));
            }
        }
    }

    fn acquire(&mut self, owner: &Owner, binding: Binding, container_port: NonZeroU16, out: &mut Vec<Command>) {
        let claimants = self.claimants.entry(binding).or_insert_with(|| Vec::with_capacity(1));
        let first = claimants.is_empty();
        match claimants.iter_mut().find(|c| c.owner == *owner) {
            Some(claimant) => claimant.container_port = container_port,
            None => claimants.push(Claimant { owner: owner.clone(), container_port }),
        }
        if first {
            self.remark(owner, binding, out);
        }
        self.spread(binding);
    }

    /// Says what people should know of a binding that is claimed for the first time.
    fn remark(&self, owner: &Owner, binding: Binding, out: &mut Vec<Command>) {
        let with_role = |role: Role| self.sinks.iter().enumerate().filter(move |(_, sink)| sink.role == role);
        if with_role(Role::Peer).next().is_some() {
            if self.policy.narrows(binding) {
                let exposed = self.policy.expose(binding);
                out.push(Command::Report(Report::Narrowed { owner: owner.clone(), published: binding, exposed }));
            }
            // Forwarded anyhow, so nothing is missing where a listener is.
            return;
        }
        for (i, _) in with_role(Role::Listener).filter(|(_, sink)| sink.is_told_of(owner)) {
            if let Some(reason) = Role::Listener.objection(binding) {
                let left_out = Report::LeftOut { sink: SinkId(i), owner: owner.clone(), binding, reason };
                out.push(Command::Report(left_out));
            }
        }
    }

    fn release(&mut self, owner: &Owner, binding: Binding) {
        if let Some(claimants) = self.claimants.get_mut(&binding) {
            claimants.retain(|c| c.owner != *owner);
            if claimants.is_empty() {
                self.claimants.remove(&binding);
            }
        }
        self.spread(binding);
    }

    /// Tells every ledger whether this published binding asks for a forward there: of its claimants, the oldest that
    /// the sink is told of counts.
    fn spread(&mut self, published: Binding) {
        let relayed = published.host_ip.is_unspecified()
            || self.relay.and_then(|i| self.ledgers.get(i)).is_none_or(|relay| relay.holds(published));
        let claimants = self.claimants.get(&published).map(Vec::as_slice).unwrap_or_default();
        for (sink, ledger) in self.sinks.iter().zip(&mut self.ledgers) {
            let (exposed, possible) = match sink.role {
                Role::Peer => (self.policy.expose(published), relayed),
                Role::Relay | Role::Listener => (published, sink.role.objection(published).is_none()),
            };
            match claimants.iter().find(|c| sink.is_told_of(&c.owner)) {
                Some(c) if possible => ledger.want(exposed, published, &c.owner, c.container_port),
                Some(_) | None => ledger.unwant(exposed, published),
            }
        }
    }

    fn source_problem(&mut self, source: Source, problem: Option<String>, out: &mut Vec<Command>) {
        if self.problems.get(&source) != Some(&problem) {
            self.problems.insert(source, problem.clone());
            let losses = self.losses.get(&source).copied().unwrap_or_default();
            let lost = self.lost.contains_key(&source);
            out.push(Command::Report(Report::Source { source, problem, lost, losses }));
        }
    }

    fn skip(&mut self, source: Source, reason: String, out: &mut Vec<Command>) {
        let count = self.skipped.entry(source).or_default();
        *count += 1;
        out.push(Command::Report(Report::Skipped { source, count: *count, reason }));
    }
}
