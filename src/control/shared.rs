//! What all clients are served from: the changes, the present state, and who is there.

use std::time::{Duration, Instant, SystemTime};

use super::Facts;
use super::document::{self, Clock, Context};
use super::request::Filter;
use super::ring::Ring;
use super::state::{self, Clients, Present};
use crate::holder::process_since;
use crate::view::{Change, View};

/// Clients that may watch.
const WATCHING_MAX: usize = 48;

/// How old what is known of processes may be, where a change names one.
const PROCESS_AGE_MAX: Duration = Duration::from_millis(200);

/// The present state as it came.
pub(super) struct Shown {
    pub(super) view: View,
    pub(super) clock: Clock,
}

/// What all clients share.
pub(super) struct Shared {
    pub(super) facts: Facts,
    pub(super) ring: Ring,
    pub(super) present: Present,
    pub(super) clients: Clients,
    pub(super) watching: usize,
}

impl Shared {
    pub(super) fn status(&self, cx: &Context<'_>, view: &View) -> String {
        state::status(cx, &self.facts, view, self.clients)
    }

    /// Whether another client may watch. If so it does.
    pub(super) fn may_watch(&mut self) -> bool {
        let may = self.watching < WATCHING_MAX;
        if may {
            self.watching += 1;
        } else {
            self.clients.refused += 1;
        }
        may
    }

    /// Does something with what it takes to make documents of that time.
    pub(super) fn with(&self, clock: &Clock, make: &mut dyn FnMut(&Context<'_>)) {
        // All that is asked of one time is answered with one look at processes, at most.
        let process = |protocol, addr| process_since(protocol, addr, clock.at);
        make(&Context { sinks: &self.facts.sinks, clock: *clock, process: &process });
    }

    /// The document of a change, where it is wanted.
    pub(super) fn changed(&self, filter: &Filter, change: &Change) -> Option<String> {
        let now = now();
        let clock = Clock { at: now.at.checked_sub(PROCESS_AGE_MAX).unwrap_or(now.at), ..now };
        let mut made = None;
        self.with(&clock, &mut |cx| made = document::change(cx, filter, change));
        self.with(&now, &mut |cx| made = made.take().or_else(|| state::changed(cx, filter, &self.present, change)));
        made
    }
}

/// This moment.
pub(super) fn now() -> Clock {
    Clock { at: Instant::now(), wall: SystemTime::now() }
}
