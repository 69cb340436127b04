//! The whole of the agent: the `status` document with its health, and what became of a source or a sink. Pure.

use std::sync::Arc;

use super::Facts;
use super::document::{Context, sink, source};
use super::json::Document;
use super::request::{Filter, Subject};
use crate::event::{Report, SinkId};
use crate::view::{Change, SinkState, SinkView, SourceState, SourceView, State, View, sink_kind};

/// Clients of the socket.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clients {
    pub(super) now: usize,
    pub(super) served: u64,
    pub(super) refused: u64,
}

/// Everything but the forwards.
pub(super) fn status(cx: &Context<'_>, facts: &Facts, view: &View, clients: Clients) -> String {
    let (health, problems) = health(view, &facts.sinks);
    let sources: Vec<String> = view.sources.iter().map(|view| source(cx, view)).collect();
    let sinks: Vec<String> = view.sinks.iter().enumerate().map(|(id, view)| sink(cx, SinkId(id), view)).collect();
    let rules_file = facts.rules_file.as_ref().map(|path| path.to_string_lossy());
    let policy = Document::part()
        .raw("admin", &view.policy.admin)
        .texts("rules", &view.policy.rules)
        .text_or_null("rules_file", rules_file.as_deref())
        .text_or_null("problem", view.policy.problem.as_deref());
    let clients =
        Document::part().raw("now", &clients.now).raw("served", &clients.served).raw("refused", &clients.refused);
    let seconds = |time: std::time::Duration| format!("{}.{:06}", time.as_secs(), time.subsec_micros());
    let reconciler = Document::part()
        .raw("events", &view.work.events)
        .raw("seconds", &seconds(view.work.time))
        .raw("seconds_max", &seconds(view.work.time_max));
    Document::new("status")
        .text("health", health)
        .texts("problems", &problems)
        .text("version", env!("CARGO_PKG_VERSION"))
        .raw("pid", &std::process::id())
        .time("started", facts.started)
        .texts("arguments", &facts.arguments)
        .text_or_null("docker_host", facts.docker_host.as_deref())
        .list("sources", &sources)
        .list("sinks", &sinks)
        .tally("forwards", &view.forwards)
        .raw("policy", &policy.end())
        .raw("clients", &clients.end())
        .raw("reconciler", &reconciler.end())
        .end()
}

/// `down`: nothing can be seen, or nobody told. `degraded`: something is not as it should be, and `problems` say what.
fn health(view: &View, sinks: &[String]) -> (&'static str, Vec<String>) {
    let mut problems = Vec::new();
    for view in view.sources.iter().filter(|view| view.state != SourceState::Ready) {
        problems.push(match &view.reason {
            None if view.state == SourceState::Starting => format!("{}: has not given its view yet", view.source),
            reason => format!("{}: {}: {}", view.source, view.state.as_str(), reason.as_deref().unwrap_or("?")),
        });
    }
    let peers = || {
        let named = view.sinks.iter().zip(sinks).map(|(view, name)| (sink_kind(name), view));
        // The relay is the agent's own, and tells nobody.
        named.filter(|(kind, _)| *kind != "relay")
    };
    // A host that never had a wsl-proxy is as it should be.
    let is_none = |kind: &str, view: &SinkView| kind == "wsl-proxy" && view.failures == view.documents;
    let unreachable = peers().filter(|(_, view)| view.state == SinkState::Unreachable);
    for (kind, view) in unreachable.filter(|(kind, view)| !is_none(kind, view)) {
        problems.push(format!("{kind}: unreachable: {}", view.reason.as_deref().unwrap_or("?")));
    }
    for (state, what) in [(State::Conflict, "in conflict"), (State::Failed, "failed")] {
        match view.forwards.of(state) {
            0 => {}
            1 => problems.push(format!("1 forward {what}")),
            count => problems.push(format!("{count} forwards {what}")),
        }
    }
    if let Some(problem) = &view.policy.problem {
        problems.push(format!("rules file: {problem}"));
    }
    // A source that has only just begun is no reason for alarm.
    let is_away = |view: &SourceView| match view.state {
        SourceState::Ready => false,
        SourceState::Starting => view.reason.is_some(),
        SourceState::Troubled | SourceState::Lost => true,
    };
    let is_blind = !view.sources.is_empty() && view.sources.iter().all(is_away);
    let is_mute = peers().next().is_some() && peers().all(|(_, view)| view.state == SinkState::Unreachable);
    let health = match problems.as_slice() {
        _ if is_blind || is_mute => "down",
        [] => "ok",
        _ => "degraded",
    };
    (health, problems)
}

/// What a change of a source or a sink is told with: the counts of the present state.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) sources: Vec<SourceView>,
    pub(super) sinks: Vec<SinkView>,
}

/// A source or a sink that changed, where it is wanted: its state is that of the change, its counts are the present ones.
pub(super) fn changed(cx: &Context<'_>, filter: &Filter, present: &Present, change: &Change) -> Option<String> {
    let since = cx.clock.instant(change.at);
    match &change.report {
        Report::Source { source: which, problem, lost, losses } => {
            filter.matches(&Subject { source: Some(*which), ..Subject::default() }).then_some(())?;
            let mut view = present.sources.iter().find(|view| view.source == *which)?.clone();
            view.state = match problem {
                None => SourceState::Ready,
                Some(_) if *lost => SourceState::Lost,
                // It may not have been ready yet.
                Some(_) if view.state == SourceState::Starting => SourceState::Starting,
                Some(_) => SourceState::Troubled,
            };
            view.reason = problem.as_deref().map(Arc::from);
            view.last_error = view.reason.clone().or(view.last_error);
            (view.since, view.losses) = (since, *losses);
            Some(source(cx, &view))
        }
        Report::Peer { sink: id, problem } => {
            let mut view = wanted_sink(cx, filter, present, *id)?;
            view.state = if problem.is_some() { SinkState::Unreachable } else { SinkState::Reachable };
            view.reason = problem.as_deref().map(Arc::from);
            view.last_error = view.reason.clone().or(view.last_error);
            view.since = since;
            Some(sink(cx, *id, &view))
        }
        Report::Reset { sink: id, reason } => {
            let mut view = wanted_sink(cx, filter, present, *id)?;
            view.last_error = Some(Arc::from(reason.as_str()));
            Some(sink(cx, *id, &view))
        }
        _ => None,
    }
}

fn wanted_sink(cx: &Context<'_>, filter: &Filter, present: &Present, id: SinkId) -> Option<SinkView> {
    let name = cx.sinks.get(id.0)?;
    filter.matches(&Subject { sink: Some(name), ..Subject::default() }).then_some(())?;
    present.sinks.get(id.0).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Source;
    use std::time::Instant;

    fn source_view(state: SourceState, reason: Option<&str>) -> SourceView {
        SourceView {
            source: Source::Docker,
            state,
            reason: reason.map(Arc::from),
            since: Instant::now(),
            last_error: None,
            losses: 0,
            skipped: 0,
            events: 0,
            last_event: None,
            owners: 0,
            bindings: 0,
        }
    }

    fn sink_view(state: SinkState) -> SinkView {
        SinkView {
            state,
            reason: Some("refused".into()),
            since: Instant::now(),
            last_error: None,
            documents: 0,
            failures: 0,
            forwards: Default::default(),
        }
    }

    fn view(sources: Vec<SourceView>, sinks: Vec<SinkView>) -> View {
        View {
            at: Instant::now(),
            sources,
            sinks,
            forwards: Default::default(),
            rows: Vec::new(),
            claims: Vec::new(),
            policy: Default::default(),
            work: Default::default(),
        }
    }

    #[test]
    fn health_is_honest() {
        use {SinkState as Peer, SourceState as Seen};
        let names = ["relay:".to_owned(), "host-switch:http://x".to_owned(), "stdout:".to_owned()];
        let ready = || source_view(Seen::Ready, None);
        let unready = |state, reason: &str| source_view(state, Some(reason));
        for (sources, peers, health_expected, problems_expected) in [
            (vec![ready()], [Peer::Idle; 3], "ok", vec![]),
            (vec![], [Peer::Idle; 3], "ok", vec![]),
            (
                vec![source_view(Seen::Starting, None)],
                [Peer::Idle; 3],
                "degraded",
                vec!["docker: has not given its view yet"],
            ),
            (vec![unready(Seen::Starting, "no socket")], [Peer::Idle; 3], "down", vec!["docker: starting: no socket"]),
            (vec![unready(Seen::Troubled, "odd"), ready()], [Peer::Idle; 3], "degraded", vec!["docker: troubled: odd"]),
            (
                vec![unready(Seen::Lost, "gone"), unready(Seen::Troubled, "odd")],
                [Peer::Idle; 3],
                "down",
                vec!["docker: lost: gone", "docker: troubled: odd"],
            ),
            (vec![ready()], [Peer::Unreachable, Peer::Reachable, Peer::Idle], "ok", vec![]),
            (
                vec![ready()],
                [Peer::Idle, Peer::Unreachable, Peer::Idle],
                "degraded",
                vec!["host-switch: unreachable: refused"],
            ),
            (
                vec![ready()],
                [Peer::Idle, Peer::Unreachable, Peer::Unreachable],
                "down",
                vec!["host-switch: unreachable: refused", "stdout: unreachable: refused"],
            ),
        ] {
            let view = view(sources, peers.map(sink_view).into());
            let (health, problems) = health(&view, &names);
            assert_eq!(
                (health, problems),
                (health_expected, problems_expected.iter().map(ToString::to_string).collect())
            );
        }
        let names = ["wsl-proxy:///run/x".to_owned(), "stdout:".to_owned()];
        for (documents, expect) in [(3, "ok"), (4, "degraded")] {
            let absent = SinkView { documents, failures: 3, ..sink_view(Peer::Unreachable) };
            let view = view(vec![ready()], vec![absent, sink_view(Peer::Idle)]);
            assert_eq!(health(&view, &names).0, expect, "a wsl-proxy that was there is missed, another is not");
        }
        let mut view = view(vec![ready()], vec![]);
        [State::Conflict, State::Failed, State::Failed, State::Denied]
            .iter()
            .for_each(|state| view.forwards.add(*state));
        view.policy.problem = Some("line 3: x".into());
        let expect = ["1 forward in conflict", "2 forwards failed", "rules file: line 3: x"].map(str::to_owned).into();
        assert_eq!(health(&view, &names), ("degraded", expect));
    }
}
