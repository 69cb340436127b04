//! What the answers of a sink change in its ledger.

use std::time::Instant;

use super::state::{Flight, Held, Peer, Timer};
use super::{Ledger, tell};
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
        match answer {
            Answer::Done { failed } => self.done(&flight, failed.into_iter().collect(), now, out),
            Answer::Uncertain(reason) => self.uncertain(&flight, &reason, now, out),
            Answer::Unreachable(reason) => self.unreachable(&flight, reason, now, out),
        }
        self.settle_lane(&flight.owner);
        flight.bindings
    }

    fn done(&mut self, flight: &Flight, failed: Map<Binding, Failure>, now: Instant, out: &mut Vec<Command>) {
        if self.peer != Peer::Reachable {
            self.peer = Peer::Reachable;
            out.push(Command::Report(Report::Peer { sink: self.id, problem: None }));
            self.retry_all(now);
        }
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
            let state = match (failed.get(binding), flight.operation) {
                (Some(failure), operation) => {
                    forward.held = match operation {
                        Operation::Announce => Held::No,
                        Operation::Withdraw => Held::Maybe,
                    };
                    forward.failures = forward.failures.saturating_add(1);
                    let until = now + wait_after(forward.failures);
                    forward.wait = Some((operation, until));
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
            tell(self.id, forward, *binding, state, out);
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
            tell(self.id, forward, *binding, ForwardState::Failing(failure), out);
            self.refresh(*binding);
        }
    }

    fn unreachable(&mut self, flight: &Flight, reason: String, now: Instant, out: &mut Vec<Command>) {
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
        self.peer = Peer::Unreachable { failures, until, reason };
        for binding in &flight.bindings {
            if let Some(forward) = self.forwards.get_mut(binding) {
                forward.flying = None;
                self.refresh(*binding);
            }
        }
        if lost {
            self.forget();
            self.refresh_all();
        }
    }
}
