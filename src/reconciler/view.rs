//! What the reconciler shows of itself.

use std::sync::Arc;
use std::time::Instant;

use super::{Claimant, Reconciler, allowed};
use crate::event::{Owner, Scope, Source};
use crate::port::Binding;
use crate::view::{ClaimView, Decision, PolicyView, Row, State, Tally, View, Work};

impl Reconciler {
    /// The present state.
    pub fn view(&self, scope: Scope, now: Instant) -> View {
        let sinks: Vec<_> = self.ledgers.iter().map(|ledger| ledger.view()).collect();
        let mut forwards = Tally::default();
        sinks.iter().for_each(|sink| forwards.extend(&sink.forwards));
        let mut rows = self.unforwarded();
        rows.iter().for_each(|row| forwards.add(row.state));
        if scope.rows {
            rows.extend(self.ledgers.iter().flat_map(|ledger| ledger.rows()));
            rows.iter_mut().for_each(|row| row.name = self.name(&row.owner));
            let key = |row: &Row| (row.protocol, row.port, row.host_ip, row.published_ip, row.sink);
            rows.sort_by_key(key);
        } else {
            rows.clear();
        }
        let rules = self.policy.rules.iter().map(ToString::to_string).collect();
        View {
            at: now,
            sources: self.sources.view(|source| self.claimed_by(source)),
            sinks,
            forwards,
            rows,
            claims: self.claims_on(scope),
            policy: PolicyView { admin: self.policy.admin, rules, problem: None },
            work: Work::default(),
        }
    }

    /// The name of an owner, for display.
    pub fn name(&self, owner: &Owner) -> Option<Arc<str>> {
        self.names.get(owner).or_else(|| self.former_names.get(owner)).cloned()
    }

    fn claimed_by(&self, source: Source) -> (usize, usize) {
        let claims = self.claims.iter().filter(|(owner, _)| owner.source == source);
        claims.fold((0, 0), |(owners, all), (_, bindings)| (owners + 1, all + bindings.len()))
    }

    /// What is claimed, and told to no sink: what a rule of the user's denies, and what sinks cannot carry.
    fn unforwarded(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (binding, claimants) in &self.claimants {
            for claimant in claimants.iter().filter(|c| c.denied) {
                let rule = self.policy.denial(claimant.owner.source, *binding).filter(|rule| !rule.built_in);
                rows.extend(rule.map(|rule| row(*binding, claimant, State::Denied, &rule.to_string())));
            }
            if let Some(claimant) = allowed(&self.claimants, *binding).next() {
                for (sink, reason) in self.left_out(&claimant.owner, *binding) {
                    rows.push(Row { sink: Some(sink), ..row(*binding, claimant, State::LeftOut, reason) });
                }
            }
        }
        rows
    }

    fn claims_on(&self, scope: Scope) -> Vec<ClaimView> {
        let Some(port) = scope.claims_on else { return Vec::new() };
        let mut views = Vec::new();
        for (binding, claimants) in self.claimants.iter().filter(|(binding, _)| binding.host_port == port) {
            let counts = allowed(&self.claimants, *binding).next().map(|claimant| &claimant.owner);
            for claimant in claimants {
                let owner = &claimant.owner;
                let decision = if claimant.denied {
                    Decision::Denied
                } else if self.doubtful.contains(binding) && owner.is_socket() {
                    Decision::Doubted
                } else if counts == Some(owner) {
                    Decision::Counts
                } else {
                    Decision::Behind
                };
                views.push(ClaimView {
                    published: *binding,
                    container_port: claimant.container_port,
                    owner: owner.clone(),
                    name: self.name(owner),
                    decision,
                    rule: self.policy.deciding(owner.source, *binding).map(ToString::to_string),
                    host_ip: (!claimant.denied).then(|| self.policy.expose(*binding).host_ip),
                    narrowed: self.policy.narrows(*binding),
                    stale: self.stale.contains(owner),
                });
            }
        }
        views
    }
}

/// What is forwarded nowhere.
fn row(published: Binding, claimant: &Claimant, state: State, reason: &str) -> Row {
    Row {
        protocol: published.protocol,
        port: published.host_port,
        host_ip: None,
        published_ip: Some(published.host_ip),
        container_port: Some(claimant.container_port),
        sink: None,
        state,
        reason: Some(reason.into()),
        owner: claimant.owner.clone(),
        name: None,
        since: claimant.since,
        failures: 0,
    }
}
