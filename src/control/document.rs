//! The documents of docs/control.md, from what the agent shows. Pure: the clock's reading and the names of processes are handed in.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Instant, SystemTime};

use super::json::Document;
use super::request::{Filter, Subject};
use crate::event::{ForwardState, Owner, Report, SinkId};
use crate::port::{Binding, Protocol};
use crate::view::{Change, ClaimView, Row, SinkView, SourceView, State, sink_kind};

/// One moment, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
}

impl Clock {
    /// When that was, for people.
    fn time(&self, then: Instant) -> SystemTime {
        let ago = self.at.checked_duration_since(then);
        let time = match ago {
            Some(ago) => self.wall.checked_sub(ago),
            None => self.wall.checked_add(then.saturating_duration_since(self.at)),
        };
        time.unwrap_or(self.wall)
    }

    /// The other way round.
    pub(super) fn instant(&self, time: SystemTime) -> Instant {
        let ago = self.wall.duration_since(time).unwrap_or_default();
        self.at.checked_sub(ago).unwrap_or(self.at)
    }
}

/// What documents are made with.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// The names of the sinks.
    pub(super) sinks: &'a [String],
    pub(super) clock: Clock,
    /// Names the process that listens there.
    pub(super) process: &'a dyn Fn(Protocol, SocketAddr) -> Option<String>,
}

impl Context<'_> {
    fn sink(&self, id: SinkId) -> &str {
        self.sinks.get(id.0).map_or("?", String::as_str)
    }

    /// The name of an owner. That of a socket is only looked for when it is to be shown.
    fn name(&self, owner: &Owner, name: Option<&str>, protocol: Protocol, at: (Option<IpAddr>, u16)) -> Option<String> {
        let process = || at.0.filter(|_| owner.is_socket()).and_then(|ip| (self.process)(protocol, (ip, at.1).into()));
        name.map(str::to_owned).or_else(process)
    }
}

/// What a `forward` says.
struct Forward<'a> {
    protocol: Protocol,
    port: NonZeroU16,
    host_ip: Option<IpAddr>,
    published_ip: Option<IpAddr>,
    container_port: Option<NonZeroU16>,
    sink: Option<SinkId>,
    state: State,
    reason: Option<&'a str>,
    owner: &'a Owner,
    name: Option<&'a str>,
    since: SystemTime,
    failures: u32,
}

impl Forward<'_> {
    fn document(&self, cx: &Context<'_>, filter: &Filter) -> Option<String> {
        let sink = self.sink.map(|id| cx.sink(id));
        let subject = Subject {
            port: Some(self.port),
            protocol: Some(self.protocol),
            source: Some(self.owner.source),
            sink,
            state: Some(self.state),
            host_ip: self.host_ip,
        };
        if !filter.matches(&subject) {
            return None;
        }
        // What is withdrawn has most likely no process any more.
        let at = self.published_ip.or(self.host_ip).filter(|_| self.state != State::Withdrawn);
        let name = cx.name(self.owner, self.name, self.protocol, (at, self.port.get()));
        let document = Document::new("forward")
            .text("protocol", self.protocol.as_str())
            .raw("port", &self.port)
            .ip_or_null("host_ip", self.host_ip)
            .ip_or_null("published_ip", self.published_ip)
            .number_or_null("container_port", self.container_port.map(NonZeroU16::get))
            .text_or_null("sink", sink)
            .text("state", self.state.as_str())
            .text_or_null("reason", self.reason)
            .owner(self.owner, name.as_deref())
            .time("since", self.since)
            .raw("failures", &self.failures);
        Some(document.end())
    }
}

/// A forward, where it is wanted.
pub(super) fn row(cx: &Context<'_>, filter: &Filter, row: &Row) -> Option<String> {
    let forward = Forward {
        protocol: row.protocol,
        port: row.port,
        host_ip: row.host_ip,
        published_ip: row.published_ip,
        container_port: row.container_port,
        sink: row.sink,
        state: row.state,
        reason: row.reason.as_deref(),
        owner: &row.owner,
        name: row.name.as_deref(),
        since: cx.clock.time(row.since),
        failures: row.failures,
    };
    forward.document(cx, filter)
}

/// A claim, where it is wanted.
pub(super) fn claim(cx: &Context<'_>, filter: &Filter, claim: &ClaimView) -> Option<String> {
    let Binding { protocol, host_ip, host_port } = claim.published;
    let subject = Subject {
        port: Some(host_port),
        protocol: Some(protocol),
        source: Some(claim.owner.source),
        host_ip: claim.host_ip,
        ..Subject::default()
    };
    if !filter.matches(&subject) {
        return None;
    }
    let name = cx.name(&claim.owner, claim.name.as_deref(), protocol, (Some(host_ip), host_port.get()));
    let document = Document::new("claim")
        .text("protocol", protocol.as_str())
        .raw("port", &host_port)
        .ip_or_null("published_ip", Some(host_ip))
        .raw("container_port", &claim.container_port)
        .owner(&claim.owner, name.as_deref())
        .text("decision", claim.decision.as_str())
        .text_or_null("rule", claim.rule.as_deref())
        .ip_or_null("host_ip", claim.host_ip)
        .raw("narrowed", &claim.narrowed)
        .raw("stale", &claim.stale);
    Some(document.end())
}

/// A source.
pub(super) fn source(cx: &Context<'_>, view: &SourceView) -> String {
    let document = Document::new("source")
        .text("source", view.source.as_str())
        .text("state", view.state.as_str())
        .text_or_null("reason", view.reason.as_deref())
        .time("since", cx.clock.time(view.since))
        .text_or_null("last_error", view.last_error.as_deref())
        .raw("losses", &view.losses)
        .raw("skipped", &view.skipped)
        .raw("events", &view.events);
    match view.last_event {
        Some(at) => document.time("last_event", cx.clock.time(at)),
        None => document.text_or_null("last_event", None),
    }
    .raw("owners", &view.owners)
    .raw("bindings", &view.bindings)
    .end()
}

/// A sink.
pub(super) fn sink(cx: &Context<'_>, id: SinkId, view: &SinkView) -> String {
    Document::new("sink")
        .text("sink", cx.sink(id))
        .text("kind", sink_kind(cx.sink(id)))
        .text("state", view.state.as_str())
        .text_or_null("reason", view.reason.as_deref())
        .time("since", cx.clock.time(view.since))
        .text_or_null("last_error", view.last_error.as_deref())
        .raw("documents", &view.documents)
        .raw("failures", &view.failures)
        .tally("forwards", &view.forwards)
        .end()
}

/// `end` and the like.
pub(super) fn count(kind: &str, count: u64) -> String {
    Document::new(kind).raw("count", &count).end()
}

/// What went wrong.
pub(super) fn error(code: &str, message: &str) -> String {
    Document::new("error").text("code", code).text("message", message).end()
}

/// A change, where it is wanted. Those of a source or a sink are `None`: they need the present state, with which
/// [`super::state::changed`] makes them.
pub(super) fn change(cx: &Context<'_>, filter: &Filter, change: &Change) -> Option<String> {
    let name = change.name.as_deref();
    let dated = |kind: &str| Document::new(kind).time("time", change.at);
    let wanted = |subject: Subject<'_>| filter.matches(&subject).then_some(());
    match &change.report {
        Report::Forward { .. } | Report::LeftOut { .. } | Report::Denied { .. } => {
            forward_of(change)?.document(cx, filter)
        }
        Report::Peer { .. } | Report::Reset { .. } | Report::Source { .. } => None,
        Report::Stale { owner, stale } => {
            wanted(Subject { source: Some(owner.source), ..Subject::default() })?;
            Some(dated("stale").owner(owner, name).raw("stale", stale).end())
        }
        Report::Skipped { source, count, reason } => {
            wanted(Subject { source: Some(*source), ..Subject::default() })?;
            Some(dated("skipped").text("source", source.as_str()).raw("count", count).text("reason", reason).end())
        }
        Report::Rules { count, problem } => {
            wanted(Subject::default())?;
            Some(dated("rules").raw("count", count).text_or_null("problem", problem.as_deref()).end())
        }
        Report::StartingOver | Report::StartedOver { .. } => {
            wanted(Subject::default())?;
            reset(change).map(|(document, _)| document)
        }
        Report::Narrowed { owner, published, exposed } => {
            let Binding { protocol, host_port, host_ip } = *published;
            let (port, protocol, host) = (Some(host_port), Some(protocol), Some(exposed.host_ip));
            let source = Some(owner.source);
            wanted(Subject { port, protocol, source, host_ip: host, ..Subject::default() })?;
            let document = dated("narrowed")
                .text("protocol", published.protocol.as_str())
                .raw("port", &host_port)
                .ip_or_null("published_ip", Some(host_ip))
                .ip_or_null("host_ip", host);
            Some(document.owner(owner, name).end())
        }
    }
}

/// How far a reset is, and whether it is done.
pub(super) fn reset(change: &Change) -> Option<(String, bool)> {
    let (state, left) = match change.report {
        Report::StartingOver => ("begun", 0),
        Report::StartedOver { left } => ("done", left),
        _ => return None,
    };
    let document = Document::new("reset").time("time", change.at).text("state", state).raw("left", &left);
    Some((document.end(), state == "done"))
}

fn forward_of(change: &Change) -> Option<Forward<'_>> {
    // What is refused is bound nowhere.
    let refused = |owner, binding: Binding, state, reason, sink| Forward {
        protocol: binding.protocol,
        port: binding.host_port,
        host_ip: None,
        published_ip: Some(binding.host_ip),
        container_port: None,
        sink,
        state,
        reason: Some(reason),
        owner,
        name: change.name.as_deref(),
        since: change.at,
        failures: 0,
    };
    match &change.report {
        Report::Forward { sink, owner, binding, published, state, failures, again: _ } => {
            let (state, reason) = match state {
                ForwardState::Forwarding => (State::Forwarding, None),
                ForwardState::Failing(failure) => (failure.kind.into(), Some(failure.reason.as_str())),
                ForwardState::Withdrawn => (State::Withdrawn, None),
            };
            Some(Forward {
                host_ip: Some(binding.host_ip),
                published_ip: published.map(|(ip, _)| ip),
                container_port: published.map(|(_, port)| port),
                reason,
                failures: *failures,
                ..refused(owner, *binding, state, "", Some(*sink))
            })
        }
        Report::LeftOut { sink, owner, binding, reason } => {
            Some(refused(owner, *binding, State::LeftOut, reason, Some(*sink)))
        }
        // What the agent's own rules deny nobody asked for: it is no forward, in a view neither.
        Report::Denied { owner, binding, rule, built_in: false } => {
            Some(refused(owner, *binding, State::Denied, rule, None))
        }
        _ => None,
    }
}
