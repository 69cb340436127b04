//! A world around the reconciler: simulated sinks, a virtual clock, and what must hold after every single event.
//!
//! What the sinks ought to hold is derived here from nothing but what was published, with the exposure policy written
//! again from the design's table, so that it cannot share a mistake with the reconciler.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::{Command, Document, Event, ForwardState, Operation, Report, SinkId, Source};
use rancher_desktop_agent::policy::{Policy, parse_rules};
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::reconciler::ledger::IN_FLIGHT_MAX;
use rancher_desktop_agent::reconciler::{Reconciler, Role, Settings, SinkSettings};
use rancher_desktop_agent::wire::port_mapping::DOCUMENT_BINDINGS_MAX;

use super::sim::{Outcome, Sim, bindings, format_document, owner, show};

pub const GRACE: Duration = Duration::from_secs(10);

/// Longer than any single wait of the reconciler (5 s), and than two in a row (relay, then peer).
pub const QUIET: Duration = Duration::from_secs(12);

/// The text of a rules file, and what it denies.
pub type Rules = (&'static str, fn(&Binding) -> bool);

pub const RULES: [Rules; 5] = [
    ("", |_| false),
    ("deny *", |_| true),
    ("deny tcp/*", |b| b.protocol == Protocol::Tcp),
    ("deny */80", |b| b.host_port.get() == 80),
    ("allow udp/81\ndeny */81\n", |b| b.host_port.get() == 81 && b.protocol == Protocol::Tcp),
];

/// What is asked for: by which published binding, and whose.
type Asked = BTreeMap<Binding, Vec<(Binding, Arc<str>)>>;

pub struct World {
    pub now: Instant,
    pub reconciler: Reconciler,
    pub sinks: Vec<Sim>,
    pub reports: Vec<Report>,
    /// Documents sent so far, to all sinks.
    pub documents: usize,
    /// Whether to keep `sent` and `reports`.
    pub keep_log: bool,
    admin: bool,
    published: BTreeMap<Arc<str>, Bindings>,
    lost: Option<Instant>,
    stopping: bool,
    starting_over: bool,
    /// What the rules file denies.
    denies: fn(&Binding) -> bool,
    /// At peers, at the relay, and at listeners.
    asked: [Asked; 3],
    last_ticket: u64,
}

impl World {
    pub fn new(admin: bool, roles: &[Role]) -> World {
        let sinks: Vec<SinkSettings> = roles.iter().copied().map(SinkSettings::of_all).collect();
        World::of(admin, &sinks)
    }

    pub fn of(admin: bool, sinks: &[SinkSettings]) -> World {
        let settings = Settings {
            policy: Policy { admin, ..Policy::default() },
            grace: GRACE,
            sinks: sinks.to_vec(),
            sources: vec![Source::Docker],
        };
        World {
            now: Instant::now(),
            reconciler: Reconciler::new(settings, Instant::now()),
            sinks: sinks.iter().copied().map(Sim::new).collect(),
            reports: Vec::new(),
            documents: 0,
            keep_log: true,
            admin,
            published: BTreeMap::new(),
            lost: None,
            stopping: false,
            starting_over: false,
            denies: |_| false,
            asked: Default::default(),
            last_ticket: 0,
        }
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

    /// The sink's peer holds these from an earlier run.
    pub fn find(&mut self, sink: usize, bindings: &[Binding]) {
        let told = |(i, sim): &(usize, &mut Sim)| *i == sink || sim.settings.after == Some(SinkId(sink));
        for (_, sim) in self.sinks.iter_mut().enumerate().filter(told) {
            sim.held.extend(bindings);
            sim.carries.extend(bindings);
        }
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
            assert!(round < 10_000, "documents without end");
            let mut moved = false;
            for sink in 0..self.sinks.len() {
                moved |= self.carry_out(sink, self.sinks[sink].mode);
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
        for sink in 0..self.sinks.len() {
            self.sinks[sink].mode = Outcome::Done;
            if std::mem::take(&mut self.sinks[sink].reset_due) {
                self.reset(sink);
            }
        }
        self.pass(QUIET);
        self.check_quiet();
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
        self.note(&event);
        let commands = self.reconciler.apply(event, self.now);
        self.carry(commands);
    }

    /// The rules file is another one.
    pub fn adopt(&mut self, (text, denies): Rules) {
        self.denies = denies;
        self.ask();
        let commands = self.reconciler.adopt_rules(parse_rules(text).unwrap(), self.now);
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
                Command::Restart => self.starting_over = false,
            }
        }
        if let Some(deadline) = self.reconciler.deadline() {
            assert!(deadline > self.now, "a deadline that has passed: a busy loop");
        }
    }

    // The oracle.

    /// Follows what is published, and nothing else.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Claim { .. } | Event::Snapshot { .. } if self.starting_over => {}
            Event::StartOver => {
                self.starting_over = !self.stopping;
                self.published.clear();
            }
            Event::Claim { owner, bindings } => drop(self.published.insert(owner.key.clone(), bindings.clone())),
            Event::Snapshot { claims, .. } => {
                self.published = claims.iter().map(|(key, bindings)| (key.clone(), bindings.clone())).collect();
                self.lost = None;
            }
            Event::SourceLost { .. } => drop(self.lost.get_or_insert(self.now + GRACE)),
            Event::SourceTroubled { .. } => self.lost = None,
            Event::Shutdown => self.stopping = true,
            Event::Found { .. }
            | Event::Named { .. }
            | Event::Show(_)
            | Event::Reread
            | Event::Tick
            | Event::Answered { .. }
            | Event::SinkReset { .. }
            | Event::SinkSeen { .. }
            | Event::Stale { .. }
            | Event::Skipped { .. } => {
                if self.lost.is_none_or(|until| until > self.now) {
                    return;
                }
            }
        }
        if self.lost.is_some_and(|until| until <= self.now) {
            self.lost = None;
            self.published.clear();
        }
        if self.stopping {
            self.published.clear();
        }
        self.ask();
    }

    fn ask(&mut self) {
        self.asked = Default::default();
        let may = |published: &&Binding| !(self.denies)(published);
        let all: BTreeSet<Binding> = self.published.values().flat_map(|all| all.keys().filter(may).copied()).collect();
        for (key, bindings) in &self.published {
            for published in bindings.keys().filter(may) {
                let exposed = exposed(self.admin, *published);
                self.asked[0].entry(exposed).or_default().push((*published, key.clone()));
                if !answers_everywhere(&all, *published) {
                    self.asked[1].entry(*published).or_default().push((*published, key.clone()));
                }
                let noticed = published.host_ip.is_unspecified() || published.host_ip.is_loopback();
                if noticed && published.protocol == Protocol::Tcp {
                    self.asked[2].entry(*published).or_default().push((*published, key.clone()));
                }
            }
        }
    }

    /// Who asks for a binding at a sink, and may have it there now.
    fn askers(&self, sink: usize, binding: Binding) -> impl Iterator<Item = &(Binding, Arc<str>)> {
        let at_peer = self.sinks[sink].settings.role == Role::Peer;
        let relay = self.sinks.iter().find(|sim| sim.settings.role == Role::Relay);
        let asked = self.asked[asked_at(self.sinks[sink].settings.role)].get(&binding).into_iter().flatten();
        let settings = self.sinks[sink].settings;
        let ahead = settings.after.map(|ahead| &self.sinks[ahead.0]);
        asked.filter(move |(published, _)| {
            let reachable = !at_peer
                || !self.asked[1].contains_key(published)
                || relay.is_none_or(|relay| relay.carries.contains(published));
            let of_family = !settings.ipv4_only || published.host_ip.is_ipv4();
            reachable && of_family && ahead.is_none_or(|ahead| ahead.carries.contains(&binding))
        })
    }

    /// A sink is given a document.
    fn take(&mut self, sink: usize, document: Document) {
        let shown = || format_document(&document);
        assert!(document.ticket.0 > self.last_ticket, "a ticket used again: {}", shown());
        self.last_ticket = document.ticket.0;
        assert!(!document.bindings.is_empty(), "an empty document: {}", shown());
        assert!(document.bindings.len() <= DOCUMENT_BINDINGS_MAX, "too long a document");
        let wanted = |binding| self.askers(sink, binding).next().is_some();
        match document.operation {
            Operation::Announce => {
                assert!(!self.stopping, "announced while stopping: {}", shown());
                for binding in document.bindings.keys() {
                    assert!(wanted(*binding), "sink {sink} is told of {binding}, which nobody may have: {}", shown());
                    let theirs = |(_, key): &(Binding, Arc<str>)| *key == document.owner.key;
                    assert!(self.askers(sink, *binding).any(theirs), "{binding} is not its owner's: {}", shown());
                }
            }
            Operation::Withdraw => {
                for binding in document.bindings.keys() {
                    assert!(!wanted(*binding), "sink {sink}: {binding} is wanted and withdrawn: {}", shown());
                }
            }
        }
        let sim = &mut self.sinks[sink];
        for other in sim.flying.values() {
            assert_ne!(other.owner, document.owner, "two documents of one owner on their way: {}", shown());
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
        sim.flying.insert(document.ticket, document.clone());
        sim.queue.push_back(document);
        self.documents += 1;
    }

    /// What a sink should hold if nothing were busy there.
    fn wanted(&self, sink: usize) -> BTreeSet<Binding> {
        let at_peer = self.sinks[sink].settings.role == Role::Peer;
        let relay = self.sinks.iter().find(|sim| sim.settings.role == Role::Relay);
        let settings = self.sinks[sink].settings;
        let possible = |published: &Binding| {
            let reachable = !at_peer
                || !self.asked[1].contains_key(published)
                || relay.is_none_or(|relay| !relay.busy.contains(published));
            reachable && (!settings.ipv4_only || published.host_ip.is_ipv4())
        };
        let refused_ahead = |b: &Binding| settings.after.is_some_and(|ahead| self.sinks[ahead.0].busy.contains(b));
        let asked = self.asked[asked_at(settings.role)].iter().filter(|(b, _)| !refused_ahead(b));
        asked.filter(|(_, by)| by.iter().any(|(published, _)| possible(published))).map(|(b, _)| *b).collect()
    }

    /// Nothing is on its way, and no fault is left but busy ports.
    fn check_quiet(&mut self) {
        let mut conflicts = false;
        for (id, sim) in self.sinks.iter().enumerate() {
            assert!(sim.flying.is_empty(), "sink {id}: documents on their way");
            let wanted = self.wanted(id);
            let (failing, possible): (BTreeSet<Binding>, BTreeSet<Binding>) =
                wanted.iter().partition(|b| sim.busy.contains(b));
            conflicts |= !failing.is_empty();
            assert_eq!(show(&sim.held), show(&possible), "sink {id}: held, wanted");
            let told = |forwarding: bool| {
                let of = sim.told.iter().filter(move |(_, state)| (**state == ForwardState::Forwarding) == forwarding);
                show(of.map(|(b, _)| b))
            };
            assert_eq!(told(true), show(&possible), "sink {id}: reported as forwarding, wanted");
            assert_eq!(told(false), show(&failing), "sink {id}: reported as failing, busy");
        }
        if !conflicts {
            assert_eq!(self.reconciler.deadline(), self.lost, "a deadline with nothing left to do");
        }
        let before = self.documents;
        let again: Vec<_> = self.published.iter().map(|(key, bindings)| (key.clone(), bindings.clone())).collect();
        for (key, bindings) in again {
            self.claim_all(&key, bindings);
        }
        assert_eq!(self.documents, before, "a claim that changes nothing was announced");
    }
}

/// Whether a peer can reach it at every address of the guest: it is published so, or something else on its port is.
fn answers_everywhere(all: &BTreeSet<Binding>, published: Binding) -> bool {
    let every: IpAddr =
        if published.host_ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    all.contains(&Binding { host_ip: every, ..published })
}

/// The design's exposure table.
fn exposed(admin: bool, published: Binding) -> Binding {
    let host_ip = match published.host_ip {
        IpAddr::V4(ip) if ip.octets()[0] == 127 => ip.into(),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) if admin => published.host_ip,
        IpAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 1).into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if admin => published.host_ip,
        IpAddr::V6(_) => Ipv6Addr::from(1).into(),
    };
    Binding { host_ip, ..published }
}

fn asked_at(role: Role) -> usize {
    match role {
        Role::Peer => 0,
        Role::Relay => 1,
        Role::Listener => 2,
    }
}
