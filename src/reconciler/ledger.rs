//! What one sink has been told, what it should be told, and when. Pure: no I/O, no clock, no locks.
//!
//! A forward is in one of these places, and moves only by what its methods say:
//!
//! ```text
//!            want                     pump                      Done
//!  (absent) ─────▶ ready in a lane ─────────▶ flying in a document ─────▶ held, settled
//!                    ▲       ▲                  │         │
//!                    │       └── Unreachable ───┘         │ refused by the peer: the forward waits
//!                    └──────── timer ◀────────────────────┘ Uncertain: its owner's lane waits
//! ```
//!
//! A lane is one owner's documents at this sink: one in flight at a time, withdrawals before announcements, so that
//! what an owner changes arrives in order. While the peer cannot be reached no lane waits for itself: one document
//! probes, and when it is answered the peer is taken for a restarted one and told everything again.

#![deny(clippy::wildcard_enum_match_arm)]

mod answers;
mod state;
mod view;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use crate::event::{Command, Document, ForwardState, Operation, Owner, SinkId, Ticket};
use crate::ordered::{Map, Set};
use crate::port::{Binding, Bindings};
use state::{Ask, Flight, Forward, Held, Lane, Peer, Timer, tell};

/// Documents that may be with a sink at once. Its queue is this long, so it can never overflow.
pub const IN_FLIGHT_MAX: usize = 32;

/// The state of one sink.
#[derive(Debug)]
pub struct Ledger {
    id: SinkId,
    /// Bindings in one document at most.
    bindings_max: usize,
    forwards: Map<Binding, Forward>,
    lanes: Map<Owner, Lane>,
    /// Lanes with something ready, first come, first served.
    queue: VecDeque<Owner>,
    /// Lanes out of the queue while the relay works on their owners' ports, first come, first released.
    held_back: VecDeque<Owner>,
    in_flight: Map<Ticket, Flight>,
    timers: Set<(Instant, Timer)>,
    peer: Peer,
    /// A document may have been lost since the peer took one: behind a proxy, this is all that its restart shows as.
    doubted: bool,
    stopping: bool,
    /// Of forwards that went without a document, until the next pump.
    reports: Vec<Command>,
    /// Documents that were answered, and those of them that failed, whole or in part.
    documents: u64,
    failed: u64,
    last_error: Option<Arc<str>>,
    /// Since when the peer is reachable, or not.
    peer_since: Instant,
    /// What changes, changes now.
    pub(super) now: Instant,
}

impl Ledger {
    /// The ledger of a sink that holds nothing.
    pub fn new(id: SinkId, bindings_max: usize, now: Instant) -> Ledger {
        Ledger {
            id,
            bindings_max,
            forwards: Map::new(),
            lanes: Map::new(),
            queue: VecDeque::new(),
            held_back: VecDeque::new(),
            in_flight: Map::new(),
            timers: Set::new(),
            peer: Peer::Reachable,
            doubted: false,
            stopping: false,
            reports: Vec::new(),
            documents: 0,
            failed: 0,
            last_error: None,
            peer_since: now,
            now,
        }
    }

    /// `published` asks for the forward `exposed`, on behalf of `owner`.
    pub fn want(&mut self, exposed: Binding, published: Binding, owner: &Owner, container_port: NonZeroU16) {
        let now = self.now;
        let forward = self.forwards.entry(exposed).or_insert_with(|| Forward {
            asks: Vec::with_capacity(1),
            owner: owner.clone(),
            published: Some(published),
            container_port,
            held: Held::No,
            flying: None,
            wait: None,
            waits_to: Operation::Announce,
            failures: 0,
            told: None,
            since: now,
        });
        let ask = Ask { published, owner: owner.clone(), container_port };
        match forward.asks.iter_mut().find(|ask| ask.published == published) {
            Some(known) => *known = ask,
            None => forward.asks.push(ask),
        }
        if let Some(before) = forward.follow_first() {
            self.unready(&before, exposed);
        }
        self.refresh(exposed);
    }

    /// `published` no longer asks for the forward `exposed`.
    pub fn unwant(&mut self, exposed: Binding, published: Binding) {
        if let Some(forward) = self.forwards.get_mut(&exposed) {
            forward.asks.retain(|ask| ask.published != published);
            if let Some(before) = forward.follow_first() {
                self.unready(&before, exposed);
            }
            self.refresh(exposed);
        }
    }

    /// The peer has these from an earlier run, or may have them where that is not certain. Those that nobody asks for
    /// until then, or until [`Ledger::end_found`], go. What is asked for already is announced all the same, but sinks that
    /// follow need not wait for that.
    pub fn found(&mut self, bindings: &Set<Binding>, owner: &Owner, until: Instant, certain: bool) {
        for binding in bindings.iter().copied() {
            if let Some(forward) = self.forwards.get_mut(&binding) {
                if forward.held == Held::No {
                    forward.held = Held::Maybe;
                }
                continue;
            }
            let forward = Forward {
                asks: Vec::new(),
                owner: owner.clone(),
                published: None,
                container_port: binding.host_port,
                held: if certain { Held::Yes } else { Held::Maybe },
                flying: None,
                wait: Some(until),
                waits_to: Operation::Withdraw,
                failures: 0,
                told: None,
                since: self.now,
            };
            self.forwards.insert(binding, forward);
            self.timers.insert((until, Timer::Forward(binding)));
        }
    }

    /// Whoever could ask for what was found has spoken.
    pub fn end_found(&mut self) {
        let left: Vec<Binding> = self.forwards.iter().filter(|(_, f)| f.is_found()).map(|(b, _)| *b).collect();
        for binding in left {
            if let Some(until) = self.forwards.get_mut(&binding).and_then(|forward| forward.wait.take()) {
                self.timers.remove(&(until, Timer::Forward(binding)));
            }
            self.refresh(binding);
        }
    }

    /// The published bindings that ask for a forward.
    pub fn asked_by(&self, exposed: Binding) -> impl Iterator<Item = Binding> {
        self.forwards.get(&exposed).into_iter().flat_map(|forward| forward.asks.iter().map(|ask| ask.published))
    }

    /// Whether the peer has the forward, or may have it, and is not just being told to give it up.
    pub fn holds(&self, exposed: Binding) -> bool {
        self.forwards.get(&exposed).is_some_and(|f| f.held != Held::No && f.flying != Some(Operation::Withdraw))
    }

    /// Everything is to be withdrawn, at once and for good.
    pub fn stop(&mut self, now: Instant) {
        self.stopping = true;
        self.retry_all(now);
    }

    /// Nothing is held and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.forwards.is_empty() && self.in_flight.is_empty()
    }

    /// Forwards that the peer has, may have, or should have.
    pub fn len(&self) -> usize {
        self.forwards.len()
    }

    /// What the peer holds is no longer known: everything wanted is announced again.
    pub fn reset(&mut self, now: Instant) {
        for flight in self.in_flight.values_mut() {
            flight.stale = true;
        }
        self.forget();
        self.retry_all(now);
    }

    /// The next moment at which [`Ledger::pump`] has something to do, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        match &self.peer {
            Peer::Unreachable { until, .. } if !self.queue.is_empty() && self.in_flight.is_empty() => {
                Some(timer.map_or(*until, |t| t.min(*until)))
            }
            Peer::Unreachable { .. } | Peer::Reachable => timer,
        }
    }

    /// Whether a document of that owner is with the sink, or about to be.
    pub fn is_busy(&self, owner: &Owner) -> bool {
        let reachable = self.peer == Peer::Reachable;
        self.lanes.get(owner).is_some_and(|lane| lane.flying || (lane.queued && reachable))
    }

    /// Sends what is due, as far as the window allows, but no announcement for an owner that is to be held back.
    pub fn pump(&mut self, now: Instant, next_ticket: &mut u64, hold: impl Fn(&Owner) -> bool, out: &mut Vec<Command>) {
        self.expire_timers(now);
        out.append(&mut self.reports);
        // The relay serves owners in the order in which they are held back here: who is behind one that still waits
        // need not be looked at, which matters when there are thousands.
        while self.held_back.front().is_some_and(|owner| !hold(owner)) {
            let Some(owner) = self.held_back.pop_front() else { break };
            if let Some(lane) = self.lanes.get_mut(&owner) {
                lane.held_back = false;
            }
            self.queue.push_back(owner);
        }
        while self.in_flight.len() < IN_FLIGHT_MAX {
            match &self.peer {
                Peer::Unreachable { until, .. } if now < *until || !self.in_flight.is_empty() => break,
                Peer::Unreachable { .. } | Peer::Reachable => {}
            }
            let Some(owner) = self.queue.pop_front() else { break };
            let held = hold(&owner);
            let Some((operation, bindings)) = self.next_document(&owner, held) else {
                if held {
                    self.held_back.push_back(owner);
                } else {
                    self.settle_lane(&owner);
                }
                continue;
            };
            *next_ticket += 1;
            let ticket = Ticket(*next_ticket);
            let keys = bindings.keys().copied().collect();
            self.in_flight.insert(ticket, Flight { operation, owner: owner.clone(), bindings: keys, stale: false });
            out.push(Command::Send(self.id, Document { ticket, operation, owner, bindings }));
        }
    }

    /// Takes the next document out of a lane: withdrawals first, and nothing else from one that is held.
    fn next_document(&mut self, owner: &Owner, held: bool) -> Option<(Operation, Bindings)> {
        let lane = self.lanes.get_mut(owner)?;
        (lane.queued, lane.held_back) = (held, held);
        let mut document = None;
        let operations: &[Operation] =
            if held { &[Operation::Withdraw] } else { &[Operation::Withdraw, Operation::Announce] };
        for operation in operations {
            let bindings: Bindings = lane
                .ready
                .iter()
                .filter_map(|b| self.forwards.get(b).map(|f| (*b, f)))
                .filter(|(_, f)| f.operation(self.stopping) == Some(*operation))
                .map(|(b, f)| (b, f.container_port))
                .take(self.bindings_max)
                .collect();
            if !bindings.is_empty() {
                document = Some((*operation, bindings));
                break;
            }
        }
        let (operation, bindings) = document?;
        (lane.queued, lane.held_back) = (false, false);
        lane.flying = true;
        for binding in bindings.keys() {
            lane.ready.remove(binding);
            if let Some(forward) = self.forwards.get_mut(binding) {
                forward.flying = Some(operation);
            }
        }
        Some((operation, bindings))
    }

    fn expire_timers(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            match self.timers.pop_first() {
                Some((_, Timer::Forward(binding))) => {
                    if let Some(forward) = self.forwards.get_mut(&binding) {
                        forward.wait = None;
                        self.refresh(binding);
                    }
                }
                Some((_, Timer::Lane(owner))) => {
                    if let Some(lane) = self.lanes.get_mut(&owner) {
                        lane.wait = None;
                        self.settle_lane(&owner);
                    }
                }
                None => break,
            }
        }
    }

    /// Puts a forward where it belongs after a change: into its owner's lane, at rest, or away.
    fn refresh(&mut self, binding: Binding) {
        let Some(forward) = self.forwards.get_mut(&binding) else { return };
        if forward.flying.is_some() {
            return;
        }
        let operation = forward.operation(self.stopping);
        if let Some(until) = forward.wait {
            if Some(forward.waits_to) == operation {
                return;
            }
            forward.wait = None;
            forward.failures = 0;
            self.timers.remove(&(until, Timer::Forward(binding)));
        }
        match operation {
            Some(operation) => {
                let lane = self.lanes.entry(forward.owner.clone()).or_default();
                lane.ready.insert(binding);
                // A withdrawal waits for nobody.
                let released = lane.held_back && operation == Operation::Withdraw;
                if released {
                    lane.held_back = false;
                    self.held_back.retain(|owner| *owner != forward.owner);
                }
                if lane.idle() || released {
                    lane.queued = true;
                    self.queue.push_back(forward.owner.clone());
                }
            }
            None => {
                let owner = forward.owner.clone();
                if forward.held == Held::No {
                    tell((self.id, self.now), forward, binding, ForwardState::Withdrawn, false, &mut self.reports);
                    self.forwards.remove(&binding);
                } else if !forward.asks.is_empty() && forward.told.is_none() {
                    // Found there, and wanted.
                    tell((self.id, self.now), forward, binding, ForwardState::Forwarding, false, &mut self.reports);
                }
                self.unready(&owner, binding);
            }
        }
    }

    fn unready(&mut self, owner: &Owner, binding: Binding) {
        if let Some(lane) = self.lanes.get_mut(owner) {
            lane.ready.remove(&binding);
            self.settle_lane(owner);
        }
    }

    /// Queues a lane that can go on, and drops one that has nothing left.
    fn settle_lane(&mut self, owner: &Owner) {
        let Some(lane) = self.lanes.get_mut(owner) else { return };
        if lane.idle() {
            if lane.ready.is_empty() {
                self.lanes.remove(owner);
            } else {
                lane.queued = true;
                self.queue.push_back(owner.clone());
            }
        }
    }

    /// What was held may be gone.
    fn forget(&mut self) {
        for forward in self.forwards.values_mut() {
            if forward.held == Held::Yes {
                (forward.held, forward.since) = (Held::Maybe, self.now);
            }
        }
    }

    /// Every wait ends now, and the next ones are short again. What was found waits on, but for the end of the agent.
    pub(super) fn retry_all(&mut self, now: Instant) {
        if let Peer::Unreachable { until, failures, .. } = &mut self.peer {
            *until = now;
            *failures = 0;
        }
        self.timers.clear();
        for (binding, forward) in self.forwards.iter_mut() {
            match forward.wait.filter(|_| forward.is_found() && !self.stopping) {
                Some(until) => drop(self.timers.insert((until, Timer::Forward(*binding)))),
                None => (forward.wait, forward.failures) = (None, 0),
            }
        }
        let owners: Vec<Owner> = self.lanes.keys().cloned().collect();
        for owner in owners {
            if let Some(lane) = self.lanes.get_mut(&owner) {
                lane.wait = None;
                lane.failures = 0;
                self.settle_lane(&owner);
            }
        }
        self.refresh_all();
    }

    fn refresh_all(&mut self) {
        let bindings: Vec<Binding> = self.forwards.keys().copied().collect();
        for binding in bindings {
            self.refresh(binding);
        }
    }
}
