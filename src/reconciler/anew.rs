//! What changes everything at once: other rules, and starting over.

use std::time::{Duration, Instant};

use super::{Ledger, Reconciler, allowed, remarks};
use crate::event::{Command, Report};
use crate::policy::Rule;
use crate::port::Bindings;

/// How long everything may take to be withdrawn before the sources are asked anew all the same.
const START_OVER_TIMEOUT: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Replaces the rules of the rules file. What they deny is withdrawn, what is no longer denied announced.
    pub fn adopt_rules(&mut self, rules: Vec<Rule>, now: Instant) -> Vec<Command> {
        let mut out = Vec::new();
        self.pass(now);
        self.policy = self.policy.with_file_rules(rules);
        let (mut changed, mut admitted) = (Vec::new(), Vec::new());
        for (binding, claimants) in self.claimants.iter_mut() {
            let was_denied = claimants.iter().all(|claimant| claimant.denied);
            for claimant in claimants.iter_mut() {
                let denial = self.policy.denial(claimant.owner.source, *binding);
                if denial.is_some() != claimant.denied {
                    (claimant.denied, claimant.since) = (denial.is_some(), now);
                    out.extend(denial.map(|rule| remarks::denied(&claimant.owner, *binding, rule)));
                    changed.push(*binding);
                }
            }
            if was_denied && claimants.iter().any(|claimant| !claimant.denied) {
                admitted.push(*binding);
            }
        }
        for binding in changed {
            self.spread(binding);
            if binding.host_ip.is_unspecified() {
                self.note_address(binding, true);
            }
        }
        for binding in admitted {
            if let Some(claimant) = allowed(&self.claimants, binding).next() {
                self.remark(&claimant.owner, binding, &mut out);
            }
        }
        self.pump(now, &mut out);
        out
    }

    /// Withdraws everything. What the sources say is not heard until that is done.
    pub(super) fn start_over(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.stopping || self.starting_over.is_some() {
            return;
        }
        out.push(Command::Report(Report::StartingOver));
        for owner in self.claims.keys().cloned().collect::<Vec<_>>() {
            self.claim(owner, Bindings::new(), out);
        }
        for ledger in &mut self.ledgers {
            ledger.end_found();
            ledger.retry_all(now);
        }
        self.starting_over = Some(now + START_OVER_TIMEOUT);
    }

    pub(super) fn end_start_over(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.starting_over.is_some_and(|until| until <= now || self.is_empty()) {
            self.starting_over = None;
            self.sources.start_over(now);
            self.awaited = self.sources.running().iter().copied().collect();
            let left = self.ledgers.iter().map(Ledger::len).sum();
            out.extend([Command::Report(Report::StartedOver { left }), Command::Restart]);
        }
    }
}
