//! A world around the reconciler: simulated sinks, a virtual clock, and what must hold after every single event.
//!
//! The hand-written scenarios of `tests/reconciler` live in it, and so does the simulation. What the sinks ought to hold,
//! the [`Oracle`] says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::{Command, Document, Event, ForwardState, Operation, Report, SinkId, Source};
use rancher_desktop_agent::policy::{Policy, parse_rules};
use rancher_desktop_agent::port::{Binding, Bindings};
use rancher_desktop_agent::reconciler::ledger::IN_FLIGHT_MAX;
use rancher_desktop_agent::reconciler::{Reconciler, Role, Settings, SinkSettings};

use super::oracle::{GRACE, Oracle, Rule};
use super::sim::{Outcome, Sim, bindings, format_document, owner, show};

/// Longer than any single wait of the reconciler (5 s), and than two in a row (relay, then peer).
pub const QUIET: Duration = Duration::from_secs(12);

/// Documents and answers in a row, without any time passing, that are taken for a storm.
const ROUNDS_MAX: usize = 10_000;

pub struct World {
    pub now: Instant,
    pub reconciler: Reconciler,
    pub sinks: Vec<Sim>,
    pub oracle: Oracle,
    pub reports: Vec<Report>,
    /// Documents sent so far, to all sinks.
    pub documents: usize,
    /// Events so far.
    pub events: usize,
    /// Whether to keep `sent` and `reports`.
    pub keep_log: bool,
    /// The sources are to give their views anew.
    pub restart_due: bool,
    settings: Settings,
    last_ticket: u64,
}

impl World {
    pub fn new(admin: bool, roles: &[Role]) -> World {
        let sinks: Vec<SinkSettings> = roles.iter().copied().map(SinkSettings::of_all).collect();
        World::of(admin, &sinks, &[Source::Docker])
    }

    pub fn of(admin: bool, sinks: &[SinkSettings], sources: &[Source]) -> World {
        let policy = Policy::new(admin, Vec::new());
        let settings = Settings { policy, grace: GRACE, sinks: sinks.to_vec(), sources: sources.to_vec() };
        let now = Instant::now();
        World {
            now,
            reconciler: Reconciler::new(settings.clone(), now),
            sinks: sinks.iter().copied().map(Sim::new).collect(),
            oracle: Oracle::new(admin, sinks),
            reports: Vec::new(),
            documents: 0,
            events: 0,
            keep_log: true,
            restart_due: false,
            settings,
            last_ticket: 0,
        }
    }

    /// The agent is killed, and another one starts: it knows of nothing, and nothing is on its way.
    pub fn begin_again(&mut self, rules: &[Rule]) {
        self.reconciler = Reconciler::new(self.settings.clone(), self.now);
        self.oracle.begin_again();
        self.sinks.iter_mut().for_each(Sim::begin_again);
        (self.last_ticket, self.restart_due) = (0, false);
        self.adopt(rules);
    }

    // What happens, in a word each.

    pub fn claim(&mut self, key: &str, text: &str) {
        self.claim_all(key, bindings(text));
    }

    pub fn claim_all(&mut self, key: &str, bindings: Bindings) {
        self.apply(Event::Claim { owner: owner(key), bindings });
    }

    pub fn snapshot(&mut self, claims: &[(&str, &str)]) {
        let claims = claims.iter().map(|(key, text)| (Arc::from(*key), bindings(text))).collect();
        self.apply(Event::Snapshot { source: Source::Docker, claims });
    }

    pub fn lose_source(&mut self) {
        self.apply(Event::SourceLost { source: Source::Docker, reason: "end of stream".into() });
    }

    /// The sink's peer holds these from an earlier run. One that follows it may, and counts as if it did.
    pub fn find(&mut self, sink: usize, bindings: &[Binding]) {
        let told = |(i, sim): &(usize, &mut Sim)| *i == sink || sim.settings.after == Some(SinkId(sink));
        for (i, sim) in self.sinks.iter_mut().enumerate().filter(told) {
            sim.carries.extend(bindings);
            if i == sink {
                sim.held.extend(bindings);
            }
        }
        self.oracle.found(bindings);
        self.apply(Event::Found { sink: SinkId(sink), bindings: bindings.iter().copied().collect() });
    }

    pub fn reset(&mut self, sink: usize) {
        self.apply(Event::SinkReset { sink: SinkId(sink), reason: "handshake".into() });
    }

    /// The sink carries out the next document. `false`: there is none.
    pub fn carry_out(&mut self, sink: usize, outcome: Outcome) -> bool {
        let sim = &mut self.sinks[sink];
        let Some(document) = sim.queue.pop_front() else { return false };
        let answer = sim.carry_out(&document, outcome);
        sim.answers.push_back((document.ticket, answer));
        let wide = |at: &&Binding| sim.settings.role == Role::Peer && !self.oracle.is_exposed(at);
        let wide = document.bindings.keys().filter(|at| sim.held.contains(at)).find(wide);
        assert!(wide.is_none(), "sink {sink} has {}, which nobody has published lately", wide.unwrap());
        true
    }

    /// The next answer of the sink arrives. `false`: there is none.
    pub fn answer(&mut self, sink: usize) -> bool {
        let Some((ticket, answer)) = self.sinks[sink].answers.pop_front() else { return false };
        self.sinks[sink].note(ticket, &answer);
        self.apply(Event::Answered { sink: SinkId(sink), ticket, answer });
        true
    }

    /// Everything on its way arrives, while no time passes.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "documents without end");
            let mut moved = false;
            for sink in 0..self.sinks.len() {
                moved |= !self.sinks[sink].stalled && self.carry_out(sink, self.sinks[sink].mode);
                moved |= self.answer(sink);
            }
            if !moved {
                return;
            }
        }
    }

    /// Time passes: everything on its way arrives at once, and each deadline is met.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        for round in 0.. {
            assert!(round < 2_000, "deadlines without end");
            match self.reconciler.deadline() {
                Some(deadline) if deadline <= end => {
                    self.now = deadline;
                    self.apply(Event::Tick);
                    self.settle();
                }
                Some(_) | None => break,
            }
        }
        self.now = end;
    }

    /// All faults end; after a while every sink must hold what it should.
    pub fn quiet(&mut self) {
        self.end_faults();
        self.pass(QUIET);
        self.check_quiet(None);
    }

    /// No sink fails from now on.
    pub fn end_faults(&mut self) {
        for sink in 0..self.sinks.len() {
            let sim = &mut self.sinks[sink];
            (sim.mode, sim.stalled) = (Outcome::Done, false);
            if std::mem::take(&mut sim.reset_due) {
                self.reset(sink);
            }
        }
    }

    /// What a sink holds, as text.
    pub fn held(&self, sink: usize) -> String {
        show(self.sinks[sink].held.iter())
    }

    /// The documents sent to a sink since the last look.
    pub fn sent(&mut self, sink: usize) -> Vec<String> {
        std::mem::take(&mut self.sinks[sink].sent)
    }

    /// Applies one event, and checks all that must hold whatever happens.
    pub fn apply(&mut self, event: Event) {
        self.oracle.note(&event, self.now);
        self.events += 1;
        let commands = self.reconciler.apply(event, self.now);
        self.carry(commands);
    }

    /// The rules file is another one.
    pub fn adopt(&mut self, rules: &[Rule]) {
        let text: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
        self.oracle.adopt(rules);
        let commands = self.reconciler.adopt_rules(parse_rules(&text).unwrap(), self.now);
        self.carry(commands);
    }

    fn carry(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Send(sink, document) => self.take(sink.0, document),
                Command::Report(report) => {
                    if let Report::Forward { sink, binding, state, .. } = &report {
                        let told = &mut self.sinks[sink.0].told;
                        match state {
                            ForwardState::Withdrawn => told.remove(binding),
                            ForwardState::Forwarding | ForwardState::Failing(_) => told.insert(*binding, state.clone()),
                        };
                    }
                    if self.keep_log {
                        self.reports.push(report);
                    }
                }
                Command::Restart => {
                    self.oracle.started_over();
                    self.restart_due = true;
                }
            }
        }
        if let Some(deadline) = self.reconciler.deadline() {
            assert!(deadline > self.now, "a deadline that has passed: a busy loop");
        }
    }

    /// A sink is given a document.
    fn take(&mut self, sink: usize, document: Document) {
        let shown = || format_document(&document);
        assert!(document.ticket.0 > self.last_ticket, "a ticket used again: {}", shown());
        self.last_ticket = document.ticket.0;
        let (count, most) = (document.bindings.len(), self.sinks[sink].settings.document_bindings_max);
        assert!((1..=most).contains(&count), "{count} bindings in one document: {}", shown());
        let sinks = &self.sinks;
        let carries = |sink: usize, at: &Binding| sinks[sink].carries.contains(at);
        for at in document.bindings.keys() {
            match document.operation {
                Operation::Announce => {
                    assert!(!self.oracle.is_stopping(), "announced while stopping: {}", shown());
                    let published = self.oracle.published_as(sink, at).iter();
                    let mut askers = published.flat_map(|p| self.oracle.askers(sink, p, &carries)).peekable();
                    assert!(askers.peek().is_some(), "sink {sink} is told of {at}, which nobody may have: {}", shown());
                    assert!(askers.any(|owner| *owner == document.owner), "{at} is not its owner's: {}", shown());
                }
                Operation::Withdraw => {
                    let wanted = self.oracle.is_wanted(sink, at, &carries);
                    assert!(!wanted, "sink {sink}: {at} is wanted and withdrawn: {}", shown());
                }
            }
        }
        let sim = &mut self.sinks[sink];
        for other in sim.flying.values() {
            assert!(other.owner != document.owner, "two documents of one owner on their way: {}", shown());
            let shared = other.bindings.keys().any(|b| document.bindings.contains_key(b));
            assert!(!shared, "a binding in two documents on their way: {}", shown());
        }
        assert!(sim.flying.len() < IN_FLIGHT_MAX, "the window is exceeded: {}", shown());
        if document.operation == Operation::Withdraw {
            sim.carries.retain(|b| !document.bindings.contains_key(b));
        }
        if self.keep_log {
            sim.sent.push(shown());
        }
        sim.documents += 1;
        sim.flying.insert(document.ticket, document.clone());
        sim.queue.push_back(document);
        self.documents += 1;
    }

    /// Nothing is on its way, and no fault is left but busy ports, and one sink that is `dead`.
    pub fn check_quiet(&mut self, dead: Option<usize>) {
        let mut conflicts = false;
        // What a sink carries is what it holds; with a dead one, which others may wait for, what the last answers say.
        let carries = |sink: usize, at: &Binding| {
            let sim = &self.sinks[sink];
            if dead.is_some() { sim.carries.contains(at) } else { sim.held.contains(at) }
        };
        for (id, sim) in self.sinks.iter().enumerate().filter(|(id, _)| dead != Some(*id)) {
            assert!(sim.flying.is_empty(), "sink {id}: documents on their way");
            let wanted = self.oracle.wanted(id, &carries);
            let (failing, possible): (BTreeSet<Binding>, BTreeSet<Binding>) =
                wanted.iter().partition(|at| sim.busy.contains(at));
            if self.is_held_up(id, dead) {
                let extra = sim.held.iter().find(|at| !wanted.contains(at));
                assert!(extra.is_none(), "sink {id} holds {} while it waits for another", extra.unwrap());
                continue;
            }
            conflicts |= !failing.is_empty();
            let same = sim.held == possible;
            assert!(same, "sink {id} holds [{}], should hold [{}]", show(&sim.held), show(&possible));
            let told = |forwarding: bool| -> BTreeSet<Binding> {
                let of = sim.told.iter().filter(move |(_, state)| (**state == ForwardState::Forwarding) == forwarding);
                of.map(|(b, _)| *b).collect()
            };
            let (up, down) = (told(true), told(false));
            assert!(up == possible, "sink {id}: said to be forwarding [{}], is [{}]", show(&up), show(&possible));
            assert!(down == failing, "sink {id}: said to be failing [{}], is [{}]", show(&down), show(&failing));
        }
        if dead.is_some() {
            return;
        }
        if !conflicts {
            assert_eq!(self.reconciler.deadline(), self.oracle.next_end(), "a deadline with nothing left to do");
        }
        self.oracle.all_is_well();
        let before = self.documents;
        let again: Vec<_> =
            self.oracle.claims().iter().map(|(key, bindings)| (key.clone(), bindings.clone())).collect();
        for (owner, bindings) in again {
            self.apply(Event::Claim { owner, bindings });
        }
        assert_eq!(self.documents, before, "a claim that changes nothing was announced");
    }

    /// Whether peers may not be told yet of what they should have: the relay, or the sink that they follow, has stalled in the
    /// middle of a change. It goes out as a whole, and those who wait for that sink wait in one line.
    fn is_held_up(&self, sink: usize, dead: Option<usize>) -> bool {
        let settings = self.sinks[sink].settings;
        let ahead =
            |dead: &usize| settings.after == Some(SinkId(*dead)) || self.sinks[*dead].settings.role == Role::Relay;
        let dead = dead.filter(|dead| settings.role == Role::Peer && ahead(dead));
        dead.is_some_and(|dead| !self.sinks[dead].flying.is_empty())
    }
}
