//! What the answers of a sink change in its ledger.

use std::time::Instant;

use super::Ledger;
use super::state::{Flight, Held, Peer, Timer, tell};
use crate::backoff::wait_after;
use crate::event::{Answer, Command, Failure, FailureKind, ForwardState, Operation, Report, Ticket};
use crate::ordered::Map;
use crate::port::Binding;

impl Ledger {
    /// Takes the answer to a document. Returns the bindings it was about.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer, now: Instant, out: &mut Vec<Command>) -> Vec<Binding> {
        let Some(flight) = self.in_flight.remove(&ticket) else { return Vec::new() };
        if let Some(lane) = self.lanes.get_mut(&flight.owner) {
            lane.flying = false;
        }
        self.documents += 1;
        let error = match &answer {
            Answer::Done { failed } => failed.first().map(|(_, failure)| failure.reason.as_str()),
            Answer::Uncertain(reason) | Answer::Unreachable(reason) => Some(reason.as_str()),
        };
        if let Some(error) = error {
            self.failed += 1;
            self.last_error = Some(error.into());
        }
        match answer {
            Answer::Done { failed } => self.done(&flight, failed.into_iter().collect(), now, out),
            Answer::Uncertain(reason) => self.uncertain(&flight, &reason, now, out),
            Answer::Unreachable(reason) => self.unreachable(&flight, reason, now, out),
        }
        self.settle_lane(&flight.owner);
        flight.bindings
    }

    fn done(&mut self, flight: &Flight, failed: Map<Binding, Failure>, now: Instant, out: &mut Vec<Command>) {
        self.answers(now, out);
        if std::mem::take(&mut self.doubted) {
            let reason = "a document was not taken: the peer may have restarted".to_owned();
            out.push(Command::Report(Report::Reset { sink: self.id, reason }));
            self.forget();
            self.refresh_all();
        }
        if let Some(lane) = self.lanes.get_mut(&flight.owner) {
            lane.failures = 0;
        }
        for binding in &flight.bindings {
            let Some(forward) = self.forwards.get_mut(binding) else { continue };
            forward.flying = None;
            let lost = forward.held != Held::Yes;
            let state = match (failed.get(binding), flight.operation) {
                (Some(failure), operation) => {
                    forward.held = match operation {
                        Operation::Announce => Held::No,
                        Operation::Withdraw => Held::Maybe,
                    };
                    forward.failures = forward.failures.saturating_add(1);
                    let until = now + wait_after(forward.failures);
                    (forward.wait, forward.waits_to) = (Some(until), operation);
                    self.timers.insert((until, Timer::Forward(*binding)));
                    ForwardState::Failing(failure.clone())
                }
                (None, operation) => {
                    forward.failures = 0;
                    match operation {
                        Operation::Announce => {
                            forward.held = if flight.stale { Held::Maybe } else { Held::Yes };
                            ForwardState::Forwarding
                        }
                        Operation::Withdraw => {
                            forward.held = Held::No;
                            ForwardState::Withdrawn
                        }
                    }
                }
            };
            let again = lost && state == ForwardState::Forwarding;
            tell((self.id, now), forward, *binding, state, again, out);
            self.refresh(*binding);
        }
    }

    fn uncertain(&mut self, flight: &Flight, reason: &str, now: Instant, out: &mut Vec<Command>) {
        self.doubted = true;
        if let Some(lane) = self.lanes.get_mut(&flight.owner) {
            lane.failures = lane.failures.saturating_add(1);
            let until = now + wait_after(lane.failures);
            lane.wait = Some(until);
            self.timers.insert((until, Timer::Lane(flight.owner.clone())));
        }
        for binding in &flight.bindings {
            let Some(forward) = self.forwards.get_mut(binding) else { continue };
            forward.flying = None;
            forward.held = Held::Maybe;
            let failure = Failure { kind: FailureKind::Failed, reason: reason.to_owned() };
            tell((self.id, now), forward, *binding, ForwardState::Failing(failure), false, out);
            self.refresh(*binding);
        }
    }

    /// The peer was found to be there, or to be away, without a document.
    pub fn seen(&mut self, problem: Option<String>, now: Instant, out: &mut Vec<Command>) {
        match problem {
            Some(reason) if self.in_flight.is_empty() => {
                self.last_error = Some(reason.as_str().into());
                self.lose(reason, now, out);
            }
            // The documents on their way tell more.
            Some(_) => {}
            None => self.answers(now, out),
        }
    }

    fn answers(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.peer != Peer::Reachable {
            self.peer = Peer::Reachable;
            self.peer_since = now;
            out.push(Command::Report(Report::Peer { sink: self.id, problem: None }));
            self.retry_all(now);
        }
    }

    fn unreachable(&mut self, flight: &Flight, reason: String, now: Instant, out: &mut Vec<Command>) {
        for binding in &flight.bindings {
            if let Some(forward) = self.forwards.get_mut(binding) {
                forward.flying = None;
            }
        }
        self.lose(reason, now, out);
        for binding in &flight.bindings {
            self.refresh(*binding);
        }
    }

    fn lose(&mut self, reason: String, now: Instant, out: &mut Vec<Command>) {
        let (failures, until, news) = match &self.peer {
            Peer::Reachable => (1, now + wait_after(1), true),
            // One probe failed, not each of the documents that were on their way with it.
            Peer::Unreachable { failures, until, reason: last } if now < *until => (*failures, *until, *last != reason),
            Peer::Unreachable { failures, reason: last, .. } => {
                let failures = failures.saturating_add(1);
                (failures, now + wait_after(failures), *last != reason)
            }
        };
        if news {
            out.push(Command::Report(Report::Peer { sink: self.id, problem: Some(reason.clone()) }));
        }
        // It may come back having lost everything. Said now, not when it answers again: there may be nothing else
        // left to send by then, and without a document nobody would notice that it is back.
        let lost = self.peer == Peer::Reachable;
        if lost {
            self.peer_since = now;
        }
        self.peer = Peer::Unreachable { failures, until, reason };
        if lost {
            self.forget();
            self.refresh_all();
        }
    }
}
