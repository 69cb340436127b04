//! What the reconciler is told of its sinks, once.

use std::time::Duration;

use crate::event::{Owner, SinkId, Source};
use crate::policy::Policy;
use crate::port::{Binding, Protocol};
use crate::wire::port_mapping::DOCUMENT_BINDINGS_MAX;

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

/// A sink, as the reconciler knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkSettings {
    /// What it is for.
    pub role: Role,
    /// Whose claims it is told of.
    pub feeds: &'static [Source],
    /// It can do nothing with IPv6.
    pub ipv4_only: bool,
    /// It is told of a forward only while that sink holds it, as far as that one is told of the owner.
    pub after: Option<SinkId>,
    /// Bindings in one document at most. Few, where each takes the sink time: other owners' documents come in between.
    pub document_bindings_max: usize,
}

impl SinkSettings {
    /// A sink that is told of the claims of every source that watches something, of both families.
    pub fn of_all(role: Role) -> SinkSettings {
        let document_bindings_max = DOCUMENT_BINDINGS_MAX;
        SinkSettings { role, feeds: Source::ALL, ipv4_only: false, after: None, document_bindings_max }
    }

    /// Sinks wait for those of a lower rank alone.
    pub(super) fn rank(&self) -> u8 {
        match (self.role, self.after) {
            (Role::Relay, _) => 0,
            (Role::Peer | Role::Listener, None) => 1,
            (Role::Peer | Role::Listener, Some(_)) => 2,
        }
    }

    pub(super) fn is_told_of(&self, owner: &Owner) -> bool {
        self.feeds.contains(&owner.source) && !(self.role == Role::Listener && owner.listens())
    }

    /// Why a published binding is nothing for such a sink, if that is so.
    pub(super) fn objection(&self, published: Binding) -> Option<&'static str> {
        if self.ipv4_only && published.host_ip.is_ipv6() {
            return Some("only IPv4 is forwarded there, and the port is not published on IPv4");
        }
        match self.role {
            Role::Peer => None,
            Role::Relay => published.host_ip.is_unspecified().then_some("it answers on every address already"),
            Role::Listener if published.protocol == Protocol::Udp => Some("only TCP can be noticed by a listener"),
            Role::Listener if published.host_ip.is_unspecified() || published.is_loopback() => None,
            Role::Listener => Some("it is published on one address of the guest only"),
        }
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
    /// The sources that run: once each has given its view, it is known what of an earlier run is still wanted.
    pub sources: Vec<Source>,
}
