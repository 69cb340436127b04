//! Everything the agent reacts to ([`Event`]) and everything it asks for ([`Command`]).
//!
//! Sources and sinks send events into one bounded channel; the agent thread hands each to the reconciler and
//! carries the commands that come back to the sinks. Both enums are closed: a `match` on them names every variant.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::ordered::{Map, Set};
use crate::port::{Binding, Bindings, PODMAN};

/// Events that may wait in the agent's channel before a sender has to wait too.
pub const EVENTS_MAX: usize = 1024;

/// Where knowledge of a published port comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The Docker Engine API, Podman's compatible one included.
    Docker,
    /// containerd's events, with the ports that nerdctl recorded.
    Containerd,
    /// NAT rules of CNI's portmap plugin and of netavark.
    Nat,
    /// Services, from the Kubernetes API.
    Kubernetes,
    /// Sockets of the guest that listen, whoever they belong to.
    Sockets,
    /// The agent itself: what its own configuration asks for, and what an earlier run left at a sink.
    Agent,
}

impl Source {
    /// All that watch something.
    pub const ALL: &[Source] = &[Source::Docker, Source::Containerd, Source::Nat, Source::Kubernetes, Source::Sockets];

    /// Those and the agent itself.
    pub const WITH_AGENT: &[Source] =
        &[Source::Docker, Source::Containerd, Source::Nat, Source::Kubernetes, Source::Sockets, Source::Agent];

    /// The name used in logs, JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Docker => "docker",
            Source::Containerd => "containerd",
            Source::Nat => "nat",
            Source::Kubernetes => "kubernetes",
            Source::Sockets => "sockets",
            Source::Agent => "agent",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who claims a binding: a source and the key that source knows it by (a container id; what a NAT rule leads to;
/// a Service as `namespace/name`; a socket as `tcp/8080`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The source that saw it.
    pub source: Source,
    /// The source's own key, unique within it.
    pub key: Arc<str>,
}

impl Owner {
    /// Whether it is only seen to listen.
    pub fn is_socket(&self) -> bool {
        self.source == Source::Sockets
    }

    /// Whether it listens on its TCP ports itself: a socket does; Podman does so once its rules are written, and the
    /// container does not start where somebody else was faster.
    pub fn listens(&self) -> bool {
        self.is_socket() || (self.source == Source::Nat && self.key.starts_with(PODMAN))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A container id of 64 digits is known to people by its first 12.
        let is_hash = self.key.len() == 64 && self.key.bytes().all(|b| b.is_ascii_hexdigit());
        let shown = if is_hash { self.key.get(..12) } else { None };
        write!(f, "{}:{}", self.source, shown.unwrap_or(&self.key).escape_debug())
    }
}

/// A sink's place in the agent's list of sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkId(pub usize);

/// Names one document sent to one sink, so that the answer finds it. Never reused within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The owner now publishes exactly these bindings; none means it is gone.
    Claim {
        /// Who.
        owner: Owner,
        /// What, complete.
        bindings: Bindings,
    },
    /// The complete view of a source, just (re)connected or polled: owners not in it are gone.
    Snapshot {
        /// Which source.
        source: Source,
        /// Every owner it sees.
        claims: Map<Arc<str>, Bindings>,
    },
    /// A source lost what it watches. Its claims stay for the grace time, or until its next snapshot.
    SourceLost {
        /// Which source.
        source: Source,
        /// Why, for people.
        reason: String,
    },
    /// What a source watches is there, but cannot be read, or not all of it; it tries again. Its claims stay until its next
    /// snapshot, also where it was lost before.
    SourceTroubled {
        /// Which source.
        source: Source,
        /// Why, for people.
        reason: String,
    },
    /// Owners whose bindings lead nowhere any more; a complete view, like a snapshot. Their claims stay.
    Stale {
        /// Which source.
        source: Source,
        /// The keys of those owners.
        keys: Set<Arc<str>>,
    },
    /// A source met input that it could not use, and went on without it.
    Skipped {
        /// Which source.
        source: Source,
        /// What was wrong with it, for people.
        reason: String,
    },
    /// A sink's answer to a document.
    Answered {
        /// Which sink.
        sink: SinkId,
        /// Which document.
        ticket: Ticket,
        /// What became of it.
        answer: Answer,
    },
    /// What the sink's peer holds is no longer known (it restarted, or the address it is told has changed).
    SinkReset {
        /// Which sink.
        sink: SinkId,
        /// Why, for people.
        reason: String,
    },
    /// A sink has looked, without a document, whether its peer is there.
    SinkSeen {
        /// Which sink.
        sink: SinkId,
        /// `None`: it answers. Otherwise why it does not.
        problem: Option<String>,
    },
    /// What a sink's peer holds from an earlier run of the agent. It stays until the sources have told whether it is still
    /// wanted, for the grace time at most.
    Found {
        /// Which sink.
        sink: SinkId,
        /// As bound on the host.
        bindings: Set<Binding>,
    },
    /// Names of owners, for display alone. They come before the claims they belong to; one that nothing is claimed for is
    /// forgotten.
    Named {
        /// Which source.
        source: Source,
        /// Keys of owners, each with its name.
        names: Map<Arc<str>, Arc<str>>,
    },
    /// The control socket asks for the present state.
    Show(Scope),
    /// Everything is to be withdrawn, and learned anew from the sources.
    StartOver,
    /// The rules file is to be read again.
    Reread,
    /// Time has passed: the moment that the reconciler named as its deadline has come.
    Tick,
    /// The agent is to end: everything is withdrawn.
    Shutdown,
}

/// How much of the present state is asked for. Sources, sinks and counts are always shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Every forward, too.
    pub rows: bool,
    /// The claims on this port, too.
    pub claims_on: Option<NonZeroU16>,
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was carried out, except for these bindings.
    Done {
        /// Bindings the peer refused, each with its reason.
        failed: Vec<(Binding, Failure)>,
    },
    /// The peer was reached, but whether it took the document is not known.
    Uncertain(String),
    /// The peer was not reached: nothing of the document was delivered.
    Unreachable(String),
}

/// Why one binding is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind, which scripts may act on.
    pub kind: FailureKind,
    /// The peer's own words, for people.
    pub reason: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Somebody else holds the port.
    Conflict,
    /// Not allowed.
    Denied,
    /// Anything else.
    Failed,
}

/// Whether a document opens or closes forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Open them.
    Announce,
    /// Close them.
    Withdraw,
}

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Give this document to that sink.
    Send(SinkId, Document),
    /// Tell people and scripts about a change.
    Report(Report),
    /// Have every source give its complete view again, as at the start.
    Restart,
}

/// One change, of one owner, for one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// To be named in the answer.
    pub ticket: Ticket,
    /// Open or close.
    pub operation: Operation,
    /// Whose change it is.
    pub owner: Owner,
    /// Which bindings, at least one, as the host is to bind them.
    pub bindings: Bindings,
}

/// A change that people and scripts want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A forward changed its state at a sink.
    Forward {
        /// Which sink.
        sink: SinkId,
        /// Whose.
        owner: Owner,
        /// Which binding, as bound on the host.
        binding: Binding,
        /// The address that was published, and the port behind it; `None`: it is of an earlier run.
        published: Option<(IpAddr, NonZeroU16)>,
        /// Its new state.
        state: ForwardState,
        /// How often it has failed in a row.
        failures: u32,
        /// No news for the log: it was in that state before, and was put back after the peer had, or may have, lost it; or it
        /// goes, and nothing was ever said of it.
        again: bool,
    },
    /// A sink's peer went away or came back.
    Peer {
        /// Which sink.
        sink: SinkId,
        /// `None`: reachable. Otherwise why it is not.
        problem: Option<String>,
    },
    /// What a sink's peer holds is no longer known; it is told everything again.
    Reset {
        /// Which sink.
        sink: SinkId,
        /// Why.
        reason: String,
    },
    /// A source's state changed.
    Source {
        /// Which source.
        source: Source,
        /// `None`: it has just given its complete view. Otherwise what is wrong.
        problem: Option<String>,
        /// Whether it is lost: its claims end with the grace time.
        lost: bool,
        /// How often it was lost so far in this run.
        losses: u64,
    },
    /// What an owner's bindings lead to is gone, or is there again.
    Stale {
        /// Whose.
        owner: Owner,
        /// Gone.
        stale: bool,
    },
    /// A binding is not for this sink, and nothing is done about it there.
    LeftOut {
        /// Which sink.
        sink: SinkId,
        /// Whose.
        owner: Owner,
        /// Which binding, as published.
        binding: Binding,
        /// Why.
        reason: &'static str,
    },
    /// A rule denies a binding: nothing is done about it anywhere.
    Denied {
        /// Whose.
        owner: Owner,
        /// Which binding, as published.
        binding: Binding,
        /// The rule, as the command line has it.
        rule: String,
        /// The rule is one of the agent's own.
        built_in: bool,
    },
    /// Input was skipped, or a claim was cut down.
    Skipped {
        /// By which source.
        source: Source,
        /// How often so far in this run.
        count: u64,
        /// What was wrong.
        reason: String,
    },
    /// The rules file was read again.
    Rules {
        /// The rules in it.
        count: usize,
        /// Why it was not taken: the rules before it stay.
        problem: Option<String>,
    },
    /// Everything is being withdrawn, to start over.
    StartingOver,
    /// Everything is withdrawn, and the sources are asked again.
    StartedOver {
        /// Forwards that could not be withdrawn in time.
        left: usize,
    },
    /// A binding to one particular guest address is exposed on the host's loopback instead.
    Narrowed {
        /// Whose.
        owner: Owner,
        /// As published.
        published: Binding,
        /// As exposed.
        exposed: Binding,
    },
}

impl Report {
    /// Whom it is about, if that is an owner.
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Report::Forward { owner, .. }
            | Report::Stale { owner, .. }
            | Report::LeftOut { owner, .. }
            | Report::Denied { owner, .. }
            | Report::Narrowed { owner, .. } => Some(owner),
            Report::Peer { .. }
            | Report::Reset { .. }
            | Report::Source { .. }
            | Report::Skipped { .. }
            | Report::Rules { .. }
            | Report::StartingOver
            | Report::StartedOver { .. } => None,
        }
    }
}

/// The state of a forward at one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardState {
    /// Announced and, as far as can be known, in place.
    Forwarding,
    /// Not in place, for this reason; it is tried again.
    Failing(Failure),
    /// Withdrawn.
    Withdrawn,
}
