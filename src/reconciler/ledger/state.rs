//! What a ledger knows of each forward, of each owner's lane, of each document on its way, and of the peer.

use std::num::NonZeroU16;
use std::time::Instant;

use crate::event::{Command, ForwardState, Operation, Owner, Report, SinkId};
use crate::ordered::Set;
use crate::port::Binding;

/// Whether the peer has the forward, as far as can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    No,
    Yes,
    /// It may have restarted, or a document may have been lost on the way.
    Maybe,
}

/// A published binding that asks for a forward.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) published: Binding,
    pub(super) owner: Owner,
    pub(super) container_port: NonZeroU16,
}

#[derive(Debug)]
pub(super) struct Forward {
    /// Oldest first; none: the forward is to go.
    pub(super) asks: Vec<Ask>,
    /// Whose documents carry it: the owner of the first ask, the last one known if there is none.
    pub(super) owner: Owner,
    /// What was published: the first ask, or the last one known; `None`: it is of an earlier run.
    pub(super) published: Option<Binding>,
    pub(super) container_port: NonZeroU16,
    pub(super) held: Held,
    /// What the document on its way does to it.
    pub(super) flying: Option<Operation>,
    /// Refused by the peer: what it was not to be tried again before then. Beside each other, since as a pair they would take
    /// 8 bytes more, and with them 32 forwards do not fit into what an allocator has for them.
    pub(super) wait: Option<Instant>,
    pub(super) waits_to: Operation,
    pub(super) failures: u32,
    pub(super) told: Option<ForwardState>,
    /// When it came into the state that it is in.
    pub(super) since: Instant,
}

impl Forward {
    /// After its asks have changed: the owner that it leaves for that of the first ask.
    pub(super) fn follow_first(&mut self) -> Option<Owner> {
        let first = self.asks.first()?;
        self.published = Some(first.published);
        self.container_port = first.container_port;
        (self.owner != first.owner).then(|| std::mem::replace(&mut self.owner, first.owner.clone()))
    }

    /// Whether it is of an earlier run, and nobody has asked for it yet.
    pub(super) fn is_found(&self) -> bool {
        self.asks.is_empty() && self.told.is_none() && self.flying.is_none()
    }

    /// What has to be sent for it, if anything.
    pub(super) fn operation(&self, stopping: bool) -> Option<Operation> {
        let wanted = !self.asks.is_empty() && !stopping;
        match (wanted, self.held) {
            (true, Held::Yes) | (false, Held::No) => None,
            (true, Held::No | Held::Maybe) => Some(Operation::Announce),
            (false, Held::Yes | Held::Maybe) => Some(Operation::Withdraw),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) ready: Set<Binding>,
    pub(super) flying: bool,
    pub(super) wait: Option<Instant>,
    pub(super) failures: u32,
    pub(super) queued: bool,
    /// Queued, but in the list of those that wait for the relay.
    pub(super) held_back: bool,
}

impl Lane {
    pub(super) fn idle(&self) -> bool {
        !self.flying && self.wait.is_none() && !self.queued
    }
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) operation: Operation,
    pub(super) owner: Owner,
    pub(super) bindings: Vec<Binding>,
    /// The sink was reset since: what this document achieved is not known.
    pub(super) stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    Reachable,
    Unreachable { failures: u32, until: Instant, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Forward(Binding),
    Lane(Owner),
}

/// Reports a forward's state where it differs from what was reported last, or is so `again`. That one has gone of which
/// nothing was said is no news for the log, but for those who wait for it.
pub(super) fn tell(
    (sink, now): (SinkId, Instant),
    forward: &mut Forward,
    binding: Binding,
    state: ForwardState,
    again: bool,
    out: &mut Vec<Command>,
) {
    let same = forward.told.as_ref() == Some(&state);
    if same && !again {
        return;
    }
    let unheard = forward.told.is_none() && state == ForwardState::Withdrawn;
    let kind = |state: &ForwardState| std::mem::discriminant(state);
    if again || forward.told.as_ref().map(kind) != Some(kind(&state)) {
        forward.since = now;
    }
    forward.told = Some(state.clone());
    out.push(Command::Report(Report::Forward {
        sink,
        owner: forward.owner.clone(),
        binding,
        published: forward.published.map(|published| (published.host_ip, forward.container_port)),
        state,
        failures: forward.failures,
        again: same || unheard,
    }));
}
