//! What is known of containerd's running tasks, and what is to be looked up. A pure state machine: no I/O, no clock.
//!
//! Events say what starts and ends; a listing says what runs, for what happened while nobody listened. A task's ports
//! come from look-ups, which take a while: what an event has said meanwhile counts, and the answer is dropped. The same
//! goes for a listing. What was known of a container stays until something better is known, across sessions too.
//!
//! ```text
//!   start, listed ──▶ Queued ──▶ UnderWay ──▶ Settled ── start, update ─────────────▶ Queued
//!                                    └──────▶ Failed ─── listed as running, start ──▶ Queued
//!   exit, delete, not listed any more: forgotten, whatever the state. A new session: Stale until listed.
//! ```

use std::sync::Arc;

use crate::ordered::{Map, Set};
use crate::parse::containerd::{Container, TaskEvent};
use crate::parse::published::Published;
use crate::port::Bindings;

/// Tasks that are followed. More are left out, and named.
pub const TASKS_MAX: usize = 16_384;

/// How often the look-up of one task may fail in a session before it is given up, until its next event.
pub const FAILURES_MAX: u32 = 3;

/// Names one look-up, so that its answer finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What calls for a look-up. People wait for what has just happened; the rest comes second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// An event.
    Event,
    /// A listing, of a task whose ports are not known.
    Listing,
    /// A listing, of a task whose ports are known from before. Nothing waits for it.
    Refresh,
}

/// What became of a look-up.
#[derive(Debug)]
pub enum Answer {
    /// What the container publishes.
    Ports(Published),
    /// Its record of ports cannot be used, and will not be by trying again.
    Unusable(String),
    /// There was no answer. Perhaps the container has just gone, perhaps containerd is busy.
    Failed(String),
}

/// What is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// An owner's key with all that it publishes now.
    pub claim: Option<(Arc<str>, Bindings)>,
    /// The owner's name, to be told first.
    pub name: Option<Arc<str>>,
    /// What could not be used.
    pub skipped: Vec<String>,
}

impl News {
    fn skipped(reason: String) -> News {
        News { skipped: vec![reason], ..News::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Of an earlier session: to be looked up when it is listed.
    Stale,
    /// Waits for its look-up.
    Queued(Urgency, Ticket),
    /// Being looked up, and once more after that if something has changed since.
    UnderWay { ticket: Ticket, again: bool },
    /// Its look-up failed. When it is listed as running, it is tried again.
    Failed,
    /// Known, or given up.
    Settled,
}

#[derive(Debug)]
struct Task {
    pid: u32,
    /// As last told; `None`: not known yet.
    bindings: Option<Bindings>,
    state: State,
    failures: u32,
    /// The listing under way, or an event since it began, has seen it running.
    seen: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tasks {
    tasks: Map<Container, Task>,
    /// Those in [`State::Queued`], in the order in which they are to be looked up.
    queue: Map<(Urgency, Ticket), Container>,
    /// The look-ups given out: for whom and why.
    under_way: Map<Ticket, (Container, Urgency)>,
    /// What has ended since the listing under way began: it may still be listed. At most [`TASKS_MAX`].
    ended: Option<Set<Container>>,
    tickets: u64,
    missed: bool,
    full: bool,
}

impl Tasks {
    /// A new session: what happened since the last one is not known, and no answer of it will come.
    pub fn begin_session(&mut self) {
        self.queue.clear();
        self.under_way.clear();
        self.ended = None;
        self.missed = false;
        for task in self.tasks.values_mut() {
            task.state = State::Stale;
            task.failures = 0;
        }
    }

    /// Takes one event.
    pub fn follow(&mut self, event: TaskEvent) -> News {
        match event {
            TaskEvent::Started(container, pid) => self.runs(container, pid, Urgency::Event),
            TaskEvent::Ended(container, pid) => self.ends(&container, pid),
            TaskEvent::Updated(container) => {
                match self.tasks.get_mut(&container).map(|task| &mut task.state) {
                    // Its start is still to come, or it does not run.
                    None => {}
                    Some(State::UnderWay { again, .. }) => *again = true,
                    Some(_) => self.enqueue(container, Urgency::Event),
                }
                News::default()
            }
        }
    }

    /// A listing begins.
    pub fn begin_listing(&mut self) {
        self.ended = Some(Set::new());
        self.missed = false;
        self.tasks.values_mut().for_each(|task| task.seen = false);
    }

    /// A task that the listing has found running. `recorded`: its container may have ports.
    pub fn listed(&mut self, container: Container, pid: u32, recorded: bool) -> News {
        let ended = self.ended.get_or_insert_default();
        match self.tasks.get_mut(&container) {
            // An event knows better.
            Some(task) if task.seen => return News::default(),
            Some(task) if task.pid == pid && !matches!(task.state, State::Stale | State::Failed) => {
                task.seen = true;
                return News::default();
            }
            Some(_) => {}
            None if ended.contains(&container) => return News::default(),
            None if ended.len() >= TASKS_MAX => {
                self.missed = true;
                return News::default();
            }
            None => {}
        }
        if recorded {
            let known = self.tasks.get(&container).is_some_and(|task| task.pid == pid && task.bindings.is_some());
            return self.runs(container, pid, if known { Urgency::Refresh } else { Urgency::Listing });
        }
        self.dequeue(&container);
        self.put(container, |task| {
            *task = Task { pid, bindings: Some(Bindings::new()), state: State::Settled, failures: 0, seen: true };
        })
    }

    /// The listing has named all there is: what it has not seen is gone.
    pub fn end_listing(&mut self) {
        let gone: Vec<Container> = self.tasks.iter().filter(|(_, t)| !t.seen).map(|(c, _)| c.clone()).collect();
        for container in gone {
            self.dequeue(&container);
            self.tasks.remove(&container);
            self.full = false;
        }
        self.ended = None;
    }

    /// Whether the ports of all that was listed are known, as far as can be. What is known from before counts: one
    /// container that cannot be asked about must not cost the others their ports, once the time of grace is over.
    pub fn is_listing_looked_up(&self) -> bool {
        let waiting = self.queue.keys().any(|(urgency, _)| *urgency == Urgency::Listing);
        !waiting && !self.under_way.values().any(|(_, urgency)| *urgency == Urgency::Listing)
    }

    /// Everything that is published, as far as known.
    pub fn claims(&self) -> Map<Arc<str>, Bindings> {
        let known = self.tasks.iter().filter_map(|(container, task)| Some((container, task.bindings.as_ref()?)));
        known.filter(|(_, b)| !b.is_empty()).map(|(c, bindings)| (c.key().clone(), bindings.clone())).collect()
    }

    /// The next look-up of that urgency, if there is one. [`Tasks::answer`] is to follow.
    pub fn next_look_up(&mut self, urgency: Urgency) -> Option<(Ticket, Container)> {
        let (&(found, ticket), _) = self.queue.range_from(&(urgency, Ticket(0))).next()?;
        if found != urgency {
            return None;
        }
        let container = self.queue.remove(&(found, ticket))?;
        if let Some(task) = self.tasks.get_mut(&container) {
            task.state = State::UnderWay { ticket, again: false };
        }
        self.under_way.insert(ticket, (container.clone(), urgency));
        Some((ticket, container))
    }

    /// Takes the answer to a look-up. One that something else has overtaken is dropped.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) -> News {
        let Some((container, _)) = self.under_way.remove(&ticket) else { return News::default() };
        let Some(task) = self.tasks.get_mut(&container) else { return News::default() };
        let State::UnderWay { ticket: awaited, again } = task.state else { return News::default() };
        if awaited != ticket {
            return News::default();
        }
        task.state = State::Settled;
        let news = match answer {
            Answer::Ports(Published { bindings, skipped, name }) => {
                task.failures = 0;
                let before = task.bindings.replace(bindings.clone()).unwrap_or_default();
                let told = !before.is_empty() || !bindings.is_empty();
                let skipped = skipped.into_iter().map(|what| format!("{container}: {what}")).collect();
                let name = name.filter(|_| !bindings.is_empty());
                News { claim: told.then(|| (container.key().clone(), bindings)), name, skipped }
            }
            Answer::Unusable(reason) => News::skipped(format!("{container}: {reason}")),
            // It is looked up again at once.
            Answer::Failed(_) if again => News::default(),
            Answer::Failed(reason) => {
                task.failures += 1;
                if task.failures >= FAILURES_MAX {
                    News::skipped(format!("{container}: given up after {FAILURES_MAX} failures: {reason}"))
                } else {
                    task.state = State::Failed;
                    self.missed = true;
                    News::default()
                }
            }
        };
        if again {
            self.enqueue(container, Urgency::Event);
        }
        news
    }

    /// Whether something was missed since the last listing began, so that another one is called for.
    pub fn has_missed(&self) -> bool {
        self.missed
    }

    fn runs(&mut self, container: Container, pid: u32, urgency: Urgency) -> News {
        let news = self.put(container.clone(), |task| {
            // Another process is another run, with its own failures.
            if task.pid != pid {
                (task.pid, task.failures) = (pid, 0);
            }
            task.seen = true;
        });
        self.enqueue(container, urgency);
        news
    }

    fn ends(&mut self, container: &Container, pid: Option<u32>) -> News {
        let known = self.tasks.get(container).map(|task| task.pid);
        if let (Some(pid), Some(known)) = (pid, known) {
            if pid != known {
                // Of an earlier run, most likely: what was deleted is told of late, after the next start.
                self.missed = true;
                return News::default();
            }
        }
        match &mut self.ended {
            Some(ended) if ended.len() < TASKS_MAX => {
                ended.insert(container.clone());
            }
            Some(_) | None => {}
        }
        self.dequeue(container);
        let bindings = self.tasks.remove(container).and_then(|task| task.bindings).unwrap_or_default();
        self.full = false;
        let claim = (!bindings.is_empty()).then(|| (container.key().clone(), Bindings::new()));
        News { claim, ..News::default() }
    }

    /// Changes a task, which may be new, unless there are too many.
    fn put(&mut self, container: Container, change: impl FnOnce(&mut Task)) -> News {
        if !self.tasks.contains_key(&container) && self.tasks.len() >= TASKS_MAX {
            let first = !std::mem::replace(&mut self.full, true);
            let reason = format!("{container}: more than {TASKS_MAX} containers run; those over that are left out");
            return if first { News::skipped(reason) } else { News::default() };
        }
        let new = Task { pid: 0, bindings: None, state: State::Stale, failures: 0, seen: true };
        change(self.tasks.entry(container).or_insert(new));
        News::default()
    }

    /// Has a task looked up. One under way for it is not waited for: its answer will be dropped.
    fn enqueue(&mut self, container: Container, urgency: Urgency) {
        self.dequeue(&container);
        if let Some(task) = self.tasks.get_mut(&container) {
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            task.state = State::Queued(urgency, ticket);
            self.queue.insert((urgency, ticket), container);
        }
    }

    fn dequeue(&mut self, container: &Container) {
        if let Some(Task { state: State::Queued(urgency, ticket), .. }) = self.tasks.get(container) {
            self.queue.remove(&(*urgency, *ticket));
        }
    }
}

#[cfg(test)]
mod tests;
