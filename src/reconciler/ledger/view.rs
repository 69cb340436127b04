//! What a ledger shows of itself.

use std::sync::Arc;

use super::state::{Forward, Held, Peer};
use super::{Ledger, SinkId};
use crate::event::ForwardState;
use crate::port::Binding;
use crate::view::{Row, SinkState, SinkView, State, Tally};

impl Ledger {
    /// The sink's state.
    pub fn view(&self) -> SinkView {
        let mut forwards = Tally::default();
        self.forwards.values().for_each(|forward| forwards.add(self.state(forward)));
        let state = match &self.peer {
            Peer::Unreachable { .. } => SinkState::Unreachable,
            Peer::Reachable if self.documents == 0 => SinkState::Idle,
            Peer::Reachable => SinkState::Reachable,
        };
        SinkView {
            state,
            reason: self.away().map(Arc::from),
            since: self.peer_since,
            last_error: self.last_error.clone(),
            documents: self.documents,
            failures: self.failed,
            forwards,
        }
    }

    /// Every forward, with nobody's name.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        self.forwards.iter().map(|(binding, forward)| self.row(*binding, forward))
    }

    fn row(&self, binding: Binding, forward: &Forward) -> Row {
        Row {
            protocol: binding.protocol,
            port: binding.host_port,
            host_ip: Some(binding.host_ip),
            published_ip: forward.published,
            container_port: forward.published.map(|_| forward.container_port),
            sink: Some(SinkId(self.id.0)),
            state: self.state(forward),
            reason: self.reason(forward).map(Arc::from),
            owner: forward.owner.clone(),
            name: None,
            since: forward.since,
            failures: forward.failures,
        }
    }

    fn state(&self, forward: &Forward) -> State {
        match &forward.told {
            Some(ForwardState::Failing(failure)) => failure.kind.into(),
            Some(ForwardState::Forwarding) if forward.held == Held::Yes && !forward.asks.is_empty() => {
                State::Forwarding
            }
            Some(ForwardState::Forwarding | ForwardState::Withdrawn) | None => State::Pending,
        }
    }

    fn reason<'a>(&'a self, forward: &'a Forward) -> Option<&'a str> {
        match &forward.told {
            Some(ForwardState::Failing(failure)) => Some(&failure.reason),
            _ if self.state(forward) == State::Forwarding => None,
            _ if self.away().is_some() => self.away(),
            _ if forward.is_found() => Some("of an earlier run of the agent: goes unless it is wanted again"),
            _ if forward.asks.is_empty() => Some("is being withdrawn"),
            _ => None,
        }
    }

    /// Why the peer is away.
    fn away(&self) -> Option<&str> {
        match &self.peer {
            Peer::Unreachable { reason, .. } => Some(reason),
            Peer::Reachable => None,
        }
    }
}
