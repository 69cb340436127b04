//! What is known of the sources themselves: whether they can be believed, and since when.

use std::sync::Arc;
use std::time::Instant;

use crate::event::{Report, Source};
use crate::ordered::Map;
use crate::view::{SourceState, SourceView};

/// One source.
#[derive(Debug)]
struct Watched {
    state: SourceState,
    reason: Option<Arc<str>>,
    since: Instant,
    last_error: Option<Arc<str>>,
    /// Lost: when its claims end.
    until: Option<Instant>,
    losses: u64,
    skipped: u64,
    events: u64,
    last_event: Option<Instant>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Sources {
    /// Those that run.
    running: Vec<Source>,
    watched: Map<Source, Watched>,
}

impl Sources {
    pub(super) fn new(running: Vec<Source>, now: Instant) -> Sources {
        let mut sources = Sources { running, watched: Map::new() };
        sources.start_over(now);
        sources
    }

    fn of(&mut self, source: Source, now: Instant) -> &mut Watched {
        self.watched.entry(source).or_insert_with(|| Watched {
            state: SourceState::Starting,
            reason: None,
            since: now,
            last_error: None,
            until: None,
            losses: 0,
            skipped: 0,
            events: 0,
            last_event: None,
        })
    }

    /// It has sent something.
    pub(super) fn heard(&mut self, source: Source, now: Instant) {
        let watched = self.of(source, now);
        watched.events += 1;
        watched.last_event = Some(now);
    }

    /// It gave its complete view.
    pub(super) fn ready(&mut self, source: Source, now: Instant) -> Option<Report> {
        self.of(source, now).until = None;
        self.becomes(source, SourceState::Ready, None, now)
    }

    /// It lost what it watches; its claims end then, unless it was lost before.
    pub(super) fn lost(&mut self, source: Source, reason: &str, until: Instant, now: Instant) -> Option<Report> {
        let watched = self.of(source, now);
        watched.until.get_or_insert(until);
        watched.losses += 1;
        self.becomes(source, SourceState::Lost, Some(reason), now)
    }

    /// It cannot read what it watches; its claims stay.
    pub(super) fn troubled(&mut self, source: Source, reason: &str, now: Instant) -> Option<Report> {
        self.of(source, now).until = None;
        self.becomes(source, SourceState::Troubled, Some(reason), now)
    }

    fn becomes(&mut self, source: Source, state: SourceState, reason: Option<&str>, now: Instant) -> Option<Report> {
        let watched = self.of(source, now);
        if (watched.state, watched.reason.as_deref()) == (state, reason) {
            return None;
        }
        if watched.state != state {
            watched.state = state;
            watched.since = now;
        }
        watched.reason = reason.map(Arc::from);
        watched.last_error = watched.reason.clone().or(watched.last_error.take());
        let problem = reason.map(str::to_owned);
        Some(Report::Source { source, problem, lost: state == SourceState::Lost, losses: watched.losses })
    }

    /// It could not use something.
    pub(super) fn skipped(&mut self, source: Source, reason: String, now: Instant) -> Report {
        let watched = self.of(source, now);
        watched.skipped += 1;
        Report::Skipped { source, count: watched.skipped, reason }
    }

    /// The next moment at which claims of a lost source end.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.watched.values().filter_map(|watched| watched.until).min()
    }

    /// A source whose claims end now.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Source> {
        let (source, watched) = self.watched.iter_mut().find(|(_, w)| w.until.is_some_and(|until| until <= now))?;
        watched.until = None;
        Some(*source)
    }

    /// The sources that run are about to give their views anew.
    pub(super) fn start_over(&mut self, now: Instant) {
        for source in self.running.clone() {
            let watched = self.of(source, now);
            (watched.state, watched.reason, watched.since) = (SourceState::Starting, None, now);
        }
    }

    pub(super) fn running(&self) -> &[Source] {
        &self.running
    }

    /// The sources that run, with how many owners claim how many bindings through each.
    pub(super) fn view(&self, claimed: impl Fn(Source) -> (usize, usize)) -> Vec<SourceView> {
        let running = self.running.iter().filter_map(|source| Some((*source, self.watched.get(source)?)));
        let view = |(source, watched): (Source, &Watched)| {
            let (owners, bindings) = claimed(source);
            SourceView {
                source,
                state: watched.state,
                reason: watched.reason.clone(),
                since: watched.since,
                last_error: watched.last_error.clone(),
                losses: watched.losses,
                skipped: watched.skipped,
                events: watched.events,
                last_event: watched.last_event,
                owners,
                bindings,
            }
        };
        running.map(view).collect()
    }
}
