//! What the agent shows of itself on the control socket: the present state ([`View`]) and changes of it ([`Change`]).
//!
//! Plain data, made by the reconciler and the agent; `control` turns it into documents. Nothing here does I/O.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::event::{FailureKind, Owner, Report, SinkId, Source};
use crate::port::{Binding, Protocol};

/// The state of a forward at a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The sink is about to be told, or its peer is away.
    Pending,
    /// In place, as far as can be known.
    Forwarding,
    /// Somebody else has the port.
    Conflict,
    /// By a rule, or by the sink.
    Denied,
    /// For another reason.
    Failed,
    /// The sink cannot carry it.
    LeftOut,
    /// It is gone: in changes alone.
    Withdrawn,
}

impl State {
    /// Those that a forward can be in, in the order in which they are counted.
    pub const COUNTED: [State; 6] =
        [State::Pending, State::Forwarding, State::Conflict, State::Denied, State::Failed, State::LeftOut];

    /// The name used in logs, JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Forwarding => "forwarding",
            State::Conflict => "conflict",
            State::Denied => "denied",
            State::Failed => "failed",
            State::LeftOut => "left-out",
            State::Withdrawn => "withdrawn",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<State> {
        State::COUNTED.into_iter().chain([State::Withdrawn]).find(|state| state.as_str() == name)
    }
}

impl From<FailureKind> for State {
    fn from(kind: FailureKind) -> State {
        match kind {
            FailureKind::Conflict => State::Conflict,
            FailureKind::Denied => State::Denied,
            FailureKind::Failed => State::Failed,
        }
    }
}

/// How many forwards there are of each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally([usize; State::COUNTED.len()]);

impl Tally {
    /// Counts one.
    pub fn add(&mut self, state: State) {
        if let Some(count) = State::COUNTED.iter().position(|s| *s == state).and_then(|i| self.0.get_mut(i)) {
            *count += 1;
        }
    }

    /// Each state with its count.
    pub fn iter(&self) -> impl Iterator<Item = (State, usize)> {
        State::COUNTED.into_iter().zip(self.0)
    }

    /// How many there are of that one.
    pub fn of(&self, state: State) -> usize {
        self.iter().find(|(s, _)| *s == state).map_or(0, |(_, count)| count)
    }

    /// Counts what another one has counted.
    pub fn extend(&mut self, other: &Tally) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

/// A forward at a sink, or what is not forwarded and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the host.
    pub port: NonZeroU16,
    /// Where it is bound on the host; `None`: nowhere.
    pub host_ip: Option<IpAddr>,
    /// What was published; `None`: it is of an earlier run.
    pub published_ip: Option<IpAddr>,
    /// The port behind it.
    pub container_port: Option<NonZeroU16>,
    /// `None`: a rule denies it everywhere.
    pub sink: Option<SinkId>,
    /// Its state.
    pub state: State,
    /// Why it is not forwarding.
    pub reason: Option<Arc<str>>,
    /// Whose it is.
    pub owner: Owner,
    /// The owner's name, for display.
    pub name: Option<Arc<str>>,
    /// When it came into that state.
    pub since: Instant,
    /// How often it has failed in a row.
    pub failures: u32,
}

/// What becomes of an owner's claim on a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is forwarded on behalf of this owner.
    Counts,
    /// On behalf of another one.
    Behind,
    /// A rule denies it.
    Denied,
    /// Most likely what is left of a container, until it is seen again.
    Doubted,
}

impl Decision {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Counts => "counts",
            Decision::Behind => "behind",
            Decision::Denied => "denied",
            Decision::Doubted => "doubted",
        }
    }
}

/// One owner's claim on one binding, and what was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// As published.
    pub published: Binding,
    /// The port behind it.
    pub container_port: NonZeroU16,
    /// Who claims it.
    pub owner: Owner,
    /// The owner's name, for display.
    pub name: Option<Arc<str>>,
    /// What became of it.
    pub decision: Decision,
    /// The rule that decided; `None`: none matches.
    pub rule: Option<String>,
    /// Where it may be bound on the host; `None`: it is denied.
    pub host_ip: Option<IpAddr>,
    /// It was published on one address of the guest, and is bound on the host's loopback.
    pub narrowed: bool,
    /// What it leads to is gone.
    pub stale: bool,
}

/// The state of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// Has not given its view yet.
    Starting,
    /// Follows what it watches.
    Ready,
    /// What it watches is there, but cannot be read; its claims stay.
    Troubled,
    /// Lost what it watches; its claims end with the grace time.
    Lost,
}

impl SourceState {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceState::Starting => "starting",
            SourceState::Ready => "ready",
            SourceState::Troubled => "troubled",
            SourceState::Lost => "lost",
        }
    }
}

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    /// Which one.
    pub source: Source,
    /// Its state.
    pub state: SourceState,
    /// Why it is not ready.
    pub reason: Option<Arc<str>>,
    /// When it came into that state.
    pub since: Instant,
    /// The last reason it gave, also where it is ready again.
    pub last_error: Option<Arc<str>>,
    /// How often it was lost.
    pub losses: u64,
    /// Input that it could not use.
    pub skipped: u64,
    /// Events that it has sent.
    pub events: u64,
    /// When it sent the last one.
    pub last_event: Option<Instant>,
    /// Who claims bindings through it.
    pub owners: usize,
    /// How many bindings they claim.
    pub bindings: usize,
}

/// The state of a sink's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkState {
    /// Was not told anything yet.
    Idle,
    /// Answers.
    Reachable,
    /// Does not; it is tried again.
    Unreachable,
}

impl SinkState {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SinkState::Idle => "idle",
            SinkState::Reachable => "reachable",
            SinkState::Unreachable => "unreachable",
        }
    }
}

/// What is known of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkView {
    /// Its state.
    pub state: SinkState,
    /// Why it is unreachable.
    pub reason: Option<Arc<str>>,
    /// When it came into that state.
    pub since: Instant,
    /// The last thing that went wrong there.
    pub last_error: Option<Arc<str>>,
    /// Documents that were answered.
    pub documents: u64,
    /// Those of them that failed, whole or in part.
    pub failures: u64,
    /// Its forwards.
    pub forwards: Tally,
}

/// The kind of the sink of that name.
pub fn sink_kind(name: &str) -> &str {
    name.split_once(':').map_or(name, |(kind, _)| kind)
}

/// What may be exposed, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyView {
    /// Every address of the host may be bound.
    pub admin: bool,
    /// The rules in their order, the agent's own last.
    pub rules: Vec<String>,
    /// Why the rules file was not taken when it was read last.
    pub problem: Option<String>,
}

/// What the agent has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Events that the reconciler has taken.
    pub events: u64,
    /// The time it took for them, in all.
    pub time: Duration,
    /// And at most for one.
    pub time_max: Duration,
}

/// The present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// When it was the present one.
    pub at: Instant,
    /// The sources that run.
    pub sources: Vec<SourceView>,
    /// The sinks, in the order of their [`SinkId`]s.
    pub sinks: Vec<SinkView>,
    /// All forwards, and what is denied or left out.
    pub forwards: Tally,
    /// They themselves, where that was asked for, in the order of protocol, port, address and sink.
    pub rows: Vec<Row>,
    /// The claims on the port that was asked for.
    pub claims: Vec<ClaimView>,
    /// What may be exposed.
    pub policy: PolicyView,
    /// What the agent has done.
    pub work: Work,
}

/// A change, as it is told to those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: SystemTime,
    /// What.
    pub report: Report,
    /// The name of the owner that the report is about, for display.
    pub name: Option<Arc<str>>,
}
