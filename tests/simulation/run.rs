//! One history, carried out: sources, the agent, sinks and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rancher_desktop_agent::event::{Answer, Event, Owner, Scope, SinkId, Source, Ticket};
use rancher_desktop_agent::ordered::Map;
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::reconciler::Role;
use rancher_desktop_agent::reconciler::ledger::IN_FLIGHT_MAX;

use super::history::{Fault, Setting, Step, rules, tries, universe};
use super::oracle::{GRACE, Rule};
use super::sim::{Outcome, binding};
use super::source::{KEYS, SimSource, pick};
use super::world::World;

/// After the last fault every sink is right within this time: starting over may take 5 s, and what waits longest, waits 5 s
/// at the relay, at a peer, and at the peer that follows it. The grace time, 10 s, ends meanwhile.
pub const PROGRESS: Duration = Duration::from_secs(20);

/// How often sockets give a whole view, at least.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(5);

/// What a run was, in numbers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Figures {
    pub steps: usize,
    pub events: usize,
    pub documents: usize,
    /// Points at which every live sink was compared with what is published.
    pub quiet: usize,
    pub time: Duration,
}

impl Figures {
    pub fn add(&mut self, other: Figures) {
        self.steps += other.steps;
        self.events += other.events;
        self.documents += other.documents;
        self.quiet += other.quiet;
        self.time += other.time;
    }
}

struct Run<'a> {
    world: World,
    sources: Vec<SimSource>,
    setting: &'a Setting,
    rules: Vec<Rule>,
    /// The first sink has yet to say what it holds of an earlier run.
    found_due: bool,
    figures: Figures,
}

/// Carries out a history; panics where something is wrong. `progress` is told how far it got.
pub fn run(setting: &Setting, steps: &[Step], mut progress: impl FnMut(usize)) -> Figures {
    let mut run = Run::new(setting);
    let begun = run.world.now;
    for (n, step) in steps.iter().enumerate() {
        progress(n + 1);
        run.act(*step);
    }
    run.end();
    let time = run.world.now - begun;
    let (events, documents) = (run.world.events, run.world.documents);
    Figures { steps: steps.len(), events, documents, time, ..run.figures }
}

impl<'a> Run<'a> {
    fn new(setting: &'a Setting) -> Run<'a> {
        let mut world = World::of(setting.admin, &setting.sinks, &setting.sources);
        world.keep_log = false;
        let sources = setting.sources.iter().map(|source| SimSource::new(*source, universe())).collect();
        let mut run = Run { world, sources, setting, rules: Vec::new(), found_due: false, figures: Figures::default() };
        if setting.left != 0 {
            run.world.sinks[0].held = pick(universe(), 0, setting.left).into_iter().map(|(b, _)| b).collect();
            run.world.sinks[1].held = run.world.sinks[0].held.clone();
            run.found_due = true;
        }
        run.begin();
        run
    }

    /// What the agent publishes itself, for wsl-proxy alone.
    fn begin(&mut self) {
        let published = binding("0.0.0.0:6443/tcp");
        let owner = Owner { source: Source::Agent, key: "kube-apiserver".into() };
        if self.setting.finds {
            self.apply(Event::Claim { owner, bindings: Bindings::from_iter([(published, published.host_port)]) });
        }
    }

    fn apply(&mut self, event: Event) {
        self.world.apply(event);
        self.restart_sources();
    }

    fn pass(&mut self, time: Duration) {
        self.world.pass(time);
        self.restart_sources();
    }

    /// Where everything is withdrawn.
    fn restart_sources(&mut self) {
        if std::mem::take(&mut self.world.restart_due) {
            self.sources.iter_mut().for_each(SimSource::restart);
            self.begin();
        }
    }

    fn act(&mut self, step: Step) {
        if self.found_due && !matches!(step, Step::Publish(..) | Step::Read(..) | Step::Hear(..) | Step::Connect(_)) {
            self.tell_found();
        }
        let (sinks, sources) = (self.world.sinks.len(), self.sources.len());
        match step {
            Step::Publish(source, key, places) => self.sources[source % sources].publish(key, places),
            Step::Share((from, key), (to, other)) => {
                let places = self.sources[from % sources].places(key);
                self.sources[to % sources].publish(other, places);
            }
            Step::PassOn(source, (from, to), places) => {
                let source = &mut self.sources[source % sources];
                source.publish(to, source.places(from));
                source.publish(from, places);
            }
            Step::Read(source, times) => (0..times).for_each(|_| self.sources[source % sources].read()),
            Step::List(source) => self.sources[source % sources].list(),
            Step::Connect(source) => self.sources[source % sources].connect(),
            Step::Lose(source) => self.sources[source % sources].lose(),
            Step::Trouble(source) => self.sources[source % sources].trouble(),
            Step::Skip(source) => self.sources[source % sources].skip(),
            Step::Hear(source, times) => {
                for _ in 0..times {
                    let Some(event) = self.sources[source % sources].hear() else { break };
                    self.apply(event);
                }
            }
            Step::Chatter(source, what) => self.chatter(source % sources, what),
            Step::Tick(ms) => {
                self.world.now += Duration::from_millis(ms);
                self.apply(Event::Tick);
            }
            Step::Deadline => {
                if let Some(deadline) = self.world.reconciler.deadline() {
                    self.world.now = deadline;
                    self.apply(Event::Tick);
                }
            }
            Step::StartOver => self.apply(Event::StartOver),
            Step::Rules(number) => {
                self.rules = rules(number);
                self.world.adopt(&self.rules);
            }
            Step::Crash(heard) => self.crash(heard),
            Step::Dead(sink, fault, seconds) => self.dead(sink % sinks, fault, Duration::from_secs(seconds)),
            Step::Quiet { gone, dead, change } => {
                let dead = dead.map(|(sink, fault)| (sink % sinks, fault)).filter(|_| sinks > 1);
                self.quiet(gone, dead);
                if dead.is_none() {
                    self.change(change.0 % sources, change.1, change.2);
                }
            }
            Step::Reset(sink)
            | Step::Restart(sink, _)
            | Step::ResetDue(sink)
            | Step::Busy(sink, _)
            | Step::CarryOut(sink, _)
            | Step::Answer(sink)
            | Step::Flow(sink, _)
            | Step::UnknownTicket(sink)
            | Step::Seen(sink, _) => {
                self.act_sink(sink % sinks, step);
                self.restart_sources();
            }
        }
    }

    fn act_sink(&mut self, sink: usize, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Reset(_) => world.reset(sink),
            Step::Restart(_, at_once) => {
                world.sinks[sink].restart();
                world.sinks[sink].reset_due = true;
                if at_once {
                    self.act_sink(sink, Step::ResetDue(sink));
                }
            }
            Step::ResetDue(_) if std::mem::take(&mut world.sinks[sink].reset_due) => world.reset(sink),
            Step::Busy(_, place) => {
                let sim = &mut world.sinks[sink];
                let binding = universe()[place % universe().len()];
                if !sim.busy.remove(&binding) && !sim.held.contains(&binding) {
                    sim.busy.insert(binding);
                }
            }
            Step::CarryOut(_, outcome) => drop(world.carry_out(sink, outcome)),
            Step::Answer(_) => drop(world.answer(sink)),
            Step::Flow(_, times) => {
                for _ in 0..times {
                    world.carry_out(sink, Outcome::Done);
                    world.answer(sink);
                }
            }
            Step::UnknownTicket(_) => {
                let answer = Answer::Done { failed: Vec::new() };
                world.apply(Event::Answered { sink: SinkId(sink), ticket: Ticket(u64::MAX), answer });
            }
            Step::Seen(_, there) => {
                let problem = if there { None } else { Some("no answer".to_owned()) };
                world.apply(Event::SinkSeen { sink: SinkId(sink), problem });
            }
            _ => {}
        }
    }

    fn chatter(&mut self, source: usize, what: u8) {
        let source = self.sources[source].source;
        let key: Arc<str> = "a".into();
        self.apply(match what {
            0 => Event::Named { source, names: Map::from_iter([(key.clone(), key)]) },
            1 => Event::Stale { source, keys: [key].into_iter().collect() },
            2 => Event::Skipped { source, reason: "a line of 2 MB".into() },
            _ => Event::Show(Scope::default()),
        });
    }

    fn tell_found(&mut self) {
        self.found_due = false;
        let held: Vec<Binding> = self.world.sinks[0].held.iter().copied().collect();
        self.world.find(0, &held);
    }

    /// Killed and started again. What peers hold stays there where one can say so, and what follows it holds no more than
    /// that; other hosts are started again with the agent.
    fn crash(&mut self, heard: u8) {
        let finds = self.setting.finds;
        let ahead = self.world.sinks[0].held.clone();
        for sim in &mut self.world.sinks {
            if finds && sim.settings.role == Role::Peer {
                sim.held.retain(|at| ahead.contains(at) || sim.settings.after.is_none());
            } else {
                sim.held.clear();
            }
        }
        self.world.begin_again(&self.rules);
        self.sources.iter_mut().for_each(SimSource::begin_again);
        self.found_due = finds;
        self.begin();
        for i in (0..self.sources.len()).filter(|i| heard >> i & 1 == 1) {
            self.sources[i].connect();
            self.sources[i].read();
            while let Some(event) = self.sources[i].hear() {
                self.apply(event);
            }
        }
    }

    /// A sink fails for long: what it is asked meanwhile is bounded.
    fn dead(&mut self, sink: usize, fault: Fault, time: Duration) {
        self.fail(sink, fault);
        let concerned = |world: &World| -> BTreeSet<Binding> {
            let sim = &world.sinks[sink];
            let wanted = world.oracle.wanted(sink, &|_, _| true);
            sim.told.keys().chain(&sim.held).chain(&sim.carries).chain(&wanted).copied().collect()
        };
        let mut bindings = concerned(&self.world);
        let before = self.world.sinks[sink].documents;
        self.pass(time);
        bindings.append(&mut concerned(&self.world));
        let documents = self.world.sinks[sink].documents - before;
        let tries = tries(time) + 1;
        let bound = match fault {
            // Those on their way are lost with the peer, and one probes from then on.
            Fault::Unreachable => IN_FLIGHT_MAX + tries,
            // Each owner waits alone.
            Fault::Lost => (self.sources.len() * KEYS + 2) * tries,
            // Each binding waits alone.
            Fault::Refuses => bindings.len() * tries,
            Fault::Stalled => IN_FLIGHT_MAX,
        };
        assert!(
            documents <= bound,
            "a storm: {documents} documents in {time:?} for sink {sink}, {fault:?}; not {bound}"
        );
        let sim = &mut self.world.sinks[sink];
        (sim.mode, sim.stalled) = (Outcome::Done, false);
    }

    fn fail(&mut self, sink: usize, fault: Fault) {
        let sim = &mut self.world.sinks[sink];
        sim.stalled = fault == Fault::Stalled;
        sim.mode = match fault {
            Fault::Unreachable => Outcome::Unreachable,
            Fault::Lost => Outcome::Lost,
            Fault::Refuses => Outcome::Refuse(u32::MAX),
            Fault::Stalled => Outcome::Done,
        };
    }

    /// All faults end but these. After a while the agent knows what is published, and every live sink holds it.
    fn quiet(&mut self, gone: u8, dead: Option<(usize, Fault)>) {
        if self.found_due {
            self.tell_found();
        }
        self.world.end_faults();
        if let Some((sink, fault)) = dead {
            self.fail(sink, fault);
        }
        let end = self.world.now + PROGRESS;
        while self.world.now < end {
            self.heal(gone);
            self.pass(SNAPSHOT_INTERVAL);
        }
        self.figures.quiet += 1;
        self.check_truth();
        self.world.check_quiet(dead.map(|(sink, _)| sink));
    }

    /// Sources are there, and say all that they have to say, but for those that are gone.
    fn heal(&mut self, gone: u8) {
        // Sockets last: they are asked again after others have let go of something.
        for i in 0..self.sources.len() {
            let source = &mut self.sources[i];
            if gone >> i & 1 == 1 && !source.is_poller() {
                if !source.is_lost() {
                    source.lose();
                }
            } else {
                source.connect();
                if source.is_poller() {
                    (0..2).for_each(|_| source.read());
                    source.list();
                }
            }
            for round in 0.. {
                assert!(round < 100, "{} has no end of things to say", self.sources[i].source);
                while let Some(event) = self.sources[i].hear() {
                    self.apply(event);
                }
                let source = &mut self.sources[i];
                if source.is_lost() || !source.is_behind() {
                    break;
                }
                source.read();
            }
        }
    }

    /// The agent claims what is published, and for a source that is lost, nothing.
    fn check_truth(&self) {
        let there = self.sources.iter().filter(|source| !source.is_lost());
        let truth: BTreeMap<Owner, Bindings> = there.flat_map(|source| source.truth()).collect();
        let claims = self.world.oracle.claims();
        let told = claims.iter().filter(|(owner, _)| owner.source != Source::Agent);
        assert!(told.eq(truth.iter()), "published is {truth:?}, the agent was told {claims:?}");
    }

    /// One owner changes what it publishes, and nothing else happens: no more documents than that takes.
    fn change(&mut self, source: usize, key: usize, places: u32) {
        // Now and then another owner takes over what this one published, and all of it is seen at once.
        let (before, other) = (self.sources[source].places(key), (key + 1) % KEYS);
        let passed_on = if places % 2 == 1 { before } else { self.sources[source].places(other) };
        let changed = before ^ places | self.sources[source].places(other) ^ passed_on;
        let changed = pick(universe(), key, changed);
        let ports: BTreeSet<(Protocol, u16)> = changed.keys().map(|b| (b.protocol, b.host_port.get())).collect();
        // By owner, how many bindings it has on those ports.
        let mut concerned: BTreeMap<Owner, usize> = BTreeMap::new();
        // Places that several owners claim: what is withdrawn for one there is announced for another, and that waits.
        let mut shared = 0;
        let mut count = |world: &World| {
            shared += world.oracle.shared(|at| ports.contains(&(at.protocol, at.host_port.get())));
            for (owner, bindings) in world.oracle.claims() {
                let on = bindings.keys().filter(|b| ports.contains(&(b.protocol, b.host_port.get()))).count();
                let most = concerned.entry(owner.clone()).or_default();
                *most = on.max(*most);
            }
        };
        count(&self.world);
        let before: Vec<usize> = self.world.sinks.iter().map(|sim| sim.documents).collect();
        let source = &mut self.sources[source];
        source.publish(other, passed_on);
        source.publish(key, places);
        if places % 2 == 1 {
            source.list();
        }
        (0..2).for_each(|_| source.read());
        let events: Vec<Event> = std::iter::from_fn(|| source.hear()).collect();
        // Sockets are gone at the first look, and there at the second.
        let changes = events.len();
        for event in events {
            self.apply(event);
            self.world.settle();
        }
        count(&self.world);
        for (id, sim) in self.world.sinks.iter().enumerate() {
            let documents = sim.documents - before[id];
            let most = sim.settings.document_bindings_max;
            // Of each owner, what goes, and what comes.
            let bound = concerned.values().map(|bindings| 2 * bindings.div_ceil(most)).sum::<usize>();
            let bound = changes * (bound + shared);
            let what = format_args!("{documents} documents for {changes} changes of one owner, for sink {id}");
            assert!(documents <= bound, "a storm: {what}; {bound} are enough");
        }
        // It takes no time, but where sockets that were another's have to be seen again.
        if !self.setting.sources.contains(&Source::Sockets) {
            self.world.check_quiet(None);
        }
    }

    /// Everything is right, also when ports that were busy for long are free; and at the end nothing is left.
    fn end(&mut self) {
        self.quiet(0, None);
        self.world.sinks.iter_mut().for_each(|sim| sim.busy.clear());
        self.quiet(0, None);
        if self.setting.left % 3 == 0 {
            for source in &mut self.sources {
                (0..KEYS).for_each(|key| source.publish(key, 0));
            }
            let owner = Owner { source: Source::Agent, key: "kube-apiserver".into() };
            self.apply(Event::Claim { owner, bindings: Bindings::new() });
            self.quiet(0, None);
        } else {
            self.apply(Event::Shutdown);
            self.pass(Duration::from_secs(1));
        }
        assert!(self.world.sinks.iter().all(|sim| sim.held.is_empty()), "something is left behind");
        assert!(self.world.reconciler.is_empty(), "not empty at the end");
        self.pass(GRACE);
        assert_eq!(self.world.reconciler.deadline(), None, "a deadline of an empty reconciler");
    }
}
