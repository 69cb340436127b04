//! What people should know of claims, beside what becomes of their forwards.

use std::sync::Arc;

use super::{BINDINGS_MAX, Reconciler, Role, SinkSettings};
use crate::event::{Command, Owner, Report, SinkId, Source};
use crate::ordered::{Map, Set};
use crate::policy::Rule;
use crate::port::{Binding, equal_in_ipv4};

/// Names that are kept of owners who have gone.
const FORMER_NAMES_MAX: usize = 1024;

impl Reconciler {
    /// Says what people should know of a binding that is claimed for the first time.
    pub(super) fn remark(&self, owner: &Owner, binding: Binding, out: &mut Vec<Command>) {
        let mut peers = self.first_told(Role::Peer);
        if self.policy.narrows(binding) && peers.any(|(_, sink)| sink.objection(binding).is_none()) {
            let exposed = self.policy.expose(binding);
            out.push(Command::Report(Report::Narrowed { owner: owner.clone(), published: binding, exposed }));
        }
        for (sink, reason) in self.left_out(owner, binding) {
            out.push(Command::Report(Report::LeftOut { sink, owner: owner.clone(), binding, reason }));
        }
    }

    /// The sinks that cannot carry a binding, with the reason; none where another one carries it, or its equal.
    pub(super) fn left_out(&self, owner: &Owner, binding: Binding) -> Vec<(SinkId, &'static str)> {
        let role = if self.first_told(Role::Peer).next().is_some() { Role::Peer } else { Role::Listener };
        // What names one address goes to peers by way of the relay.
        let relay = self.relay.and_then(|relay| self.sinks.get(relay)).filter(|_| !binding.host_ip.is_unspecified());
        let carried = role == Role::Peer
            && relay.is_none_or(|relay| relay.objection(binding).is_none())
            && self.first_told(role).any(|(_, sink)| sink.objection(binding).is_none());
        if carried || equal_in_ipv4(binding).is_some_and(|equal| self.claimants.contains_key(&equal)) {
            return Vec::new();
        }
        let told = self.first_told(role).filter(|(_, sink)| sink.is_told_of(owner));
        told.filter_map(|(sink, settings)| Some((sink, settings.objection(binding)?))).collect()
    }

    /// The sinks of that role that follow no other.
    fn first_told(&self, role: Role) -> impl Iterator<Item = (SinkId, &SinkSettings)> {
        let sinks = self.sinks.iter().enumerate().map(|(i, sink)| (SinkId(i), sink));
        sinks.filter(move |(_, sink)| sink.role == role && sink.after.is_none())
    }

    pub(super) fn name_owners(&mut self, source: Source, names: Map<Arc<str>, Arc<str>>) {
        for (key, name) in names {
            let owner = Owner { source, key };
            if self.names.len() < BINDINGS_MAX || self.names.contains_key(&owner) {
                self.names.insert(owner, name);
            }
        }
    }

    /// Its forwards are still to be withdrawn, and people to be told whose they were.
    pub(super) fn forget_name(&mut self, owner: Owner) {
        let Some(name) = self.names.remove(&owner) else { return };
        if self.former_names.insert(owner.clone(), name).is_none() {
            self.former_owners.push_back(owner);
        }
        // Who has gone first: the first of the map could be who has gone last.
        if self.former_owners.len() > FORMER_NAMES_MAX {
            self.former_owners.pop_front().map(|owner| self.former_names.remove(&owner));
        }
    }

    pub(super) fn mark_stale(&mut self, source: Source, keys: &Set<Arc<str>>, out: &mut Vec<Command>) {
        for owner in self.owners_of(source) {
            let stale = keys.contains(&owner.key);
            let was = if stale { !self.stale.insert(owner.clone()) } else { self.stale.remove(&owner) };
            if stale != was {
                out.push(Command::Report(Report::Stale { owner, stale }));
            }
        }
    }
}

/// Says that a rule denies a binding.
pub(super) fn denied(owner: &Owner, binding: Binding, rule: &Rule) -> Command {
    let (rule, built_in) = (rule.to_string(), rule.built_in);
    Command::Report(Report::Denied { owner: owner.clone(), binding, rule, built_in })
}
