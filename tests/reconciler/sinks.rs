//! Sinks that are told of some sources only, listeners, and claims of several sources on one port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::{
    Answer, Command, Event, Failure, FailureKind, Operation, Owner, Report, SinkId, Source,
};
use rancher_desktop_agent::policy::Policy;
use rancher_desktop_agent::port::Bindings;
use rancher_desktop_agent::reconciler::{Reconciler, Role, Settings, SinkSettings};

use super::sim::bindings;

const GRACE: Duration = Duration::from_secs(10);

/// A reconciler whose documents are all carried out at once.
pub struct Agent {
    reconciler: Reconciler,
    now: Instant,
    held: Vec<Bindings>,
    pub documents: usize,
    pub reports: Vec<Report>,
    /// What is refused as a conflict, at the first sink.
    pub busy: Bindings,
}

impl Agent {
    fn new(sinks: &[SinkSettings]) -> Agent {
        Agent::with(sinks, Policy { admin: true, ..Policy::default() }, &[])
    }

    pub fn with(sinks: &[SinkSettings], policy: Policy, sources: &[Source]) -> Agent {
        let settings = Settings { policy, grace: GRACE, sinks: sinks.to_vec(), sources: sources.to_vec() };
        Agent {
            reconciler: Reconciler::new(settings, Instant::now()),
            now: Instant::now(),
            held: vec![Bindings::new(); sinks.len()],
            documents: 0,
            reports: Vec::new(),
            busy: Bindings::new(),
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.apply(Event::Tick);
    }

    pub fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for command in self.reconciler.apply(event, self.now) {
                match command {
                    Command::Send(sink, document) => {
                        self.documents += 1;
                        let mut failed = Vec::new();
                        for (binding, port) in document.bindings {
                            match document.operation {
                                Operation::Announce if sink == SinkId(0) && self.busy.contains_key(&binding) => {
                                    let reason = "in use".to_owned();
                                    failed.push((binding, Failure { kind: FailureKind::Conflict, reason }));
                                }
                                Operation::Announce => drop(self.held[sink.0].insert(binding, port)),
                                Operation::Withdraw => drop(self.held[sink.0].remove(&binding)),
                            }
                        }
                        let answer = Answer::Done { failed };
                        events.push(Event::Answered { sink, ticket: document.ticket, answer });
                    }
                    Command::Report(report) => self.reports.push(report),
                    Command::Restart => {}
                }
            }
        }
    }

    pub fn claim(&mut self, source: Source, key: &str, text: &str) {
        self.apply(Event::Claim { owner: owner(source, key), bindings: bindings(text) });
    }

    pub fn snapshot(&mut self, source: Source, claims: &[(&str, &str)]) {
        let claims = claims.iter().map(|(k, b)| (Arc::from(*k), bindings(b))).collect();
        self.apply(Event::Snapshot { source, claims });
    }

    fn stale(&mut self, keys: &[&str]) -> Vec<(String, bool)> {
        self.reports.clear();
        self.apply(Event::Stale { source: Source::Nat, keys: keys.iter().map(|key| Arc::from(*key)).collect() });
        let stale = |report: &Report| match report {
            Report::Stale { owner, stale } => Some((owner.key.to_string(), *stale)),
            _ => None,
        };
        self.reports.iter().filter_map(stale).collect()
    }

    /// Whether the agent could end.
    pub fn is_empty(&self) -> bool {
        self.reconciler.is_empty()
    }

    pub fn held(&self, sink: usize) -> String {
        super::sim::show(self.held[sink].keys())
    }
}

pub fn owner(source: Source, key: &str) -> Owner {
    Owner { source, key: key.into() }
}

#[test]
fn one_forward_stays_while_either_source_claims_it() {
    for (first, second) in [(Source::Docker, Source::Nat), (Source::Nat, Source::Docker)] {
        let mut agent = Agent::new(&[SinkSettings::of_all(Role::Peer)]);
        agent.claim(first, "web", "0.0.0.0:80/tcp 127.0.0.1:81/tcp");
        agent.claim(second, "web", "0.0.0.0:80/tcp");
        assert_eq!((agent.held(0), agent.documents), ("0.0.0.0:80/tcp 127.0.0.1:81/tcp".into(), 1));
        // The first goes: nothing is said of the port that the second still claims.
        agent.claim(first, "web", "");
        assert_eq!((agent.held(0), agent.documents), ("0.0.0.0:80/tcp".into(), 2));
        agent.snapshot(second, &[]);
        assert_eq!((agent.held(0), agent.documents), (String::new(), 3));
    }
}

#[test]
fn a_sink_is_told_of_its_own_sources_only() {
    let feeds: &[Source] = &[Source::Containerd];
    let sinks = [SinkSettings::of_all(Role::Peer), SinkSettings { feeds, ..SinkSettings::of_all(Role::Listener) }];
    let mut agent = Agent::new(&sinks);
    agent.claim(Source::Docker, "a", "0.0.0.0:80/tcp 0.0.0.0:82/tcp");
    agent.claim(Source::Containerd, "b", "0.0.0.0:81/tcp 0.0.0.0:82/tcp");
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp 0.0.0.0:82/tcp");
    assert_eq!(agent.held(1), "0.0.0.0:81/tcp 0.0.0.0:82/tcp", "whoever claimed it first");
    agent.claim(Source::Containerd, "b", "");
    assert_eq!((agent.held(0), agent.held(1)), ("0.0.0.0:80/tcp 0.0.0.0:82/tcp".into(), String::new()));
}

#[test]
fn a_listener_gets_what_it_can_stand_for_and_people_hear_of_the_rest_once() {
    let mut agent = Agent::new(&[SinkSettings::of_all(Role::Listener)]);
    let published = "0.0.0.0:80/tcp [::]:80/tcp 127.0.0.1:81/tcp 127.0.0.1:53/udp 10.1.2.3:82/tcp";
    agent.claim(Source::Nat, "a", published);
    agent.claim(Source::Nat, "b", published);
    // As published: who forwards it never goes beyond the host's loopback.
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp 127.0.0.1:81/tcp [::]:80/tcp");
    let left_out = |report: &Report| match report {
        Report::LeftOut { sink: SinkId(0), binding, .. } => Some(binding.to_string()),
        _ => None,
    };
    assert_eq!(agent.reports.iter().filter_map(left_out).collect::<Vec<_>>(), ["10.1.2.3:82/tcp", "127.0.0.1:53/udp"]);
    // Nothing is exposed on the host by a listener, hence nothing is narrowed.
    assert!(!agent.reports.iter().any(|report| matches!(report, Report::Narrowed { .. })));
    let mut agent = Agent::new(&[SinkSettings::of_all(Role::Listener), SinkSettings::of_all(Role::Peer)]);
    agent.claim(Source::Nat, "a", "127.0.0.1:53/udp");
    assert!(!agent.reports.iter().any(|report| left_out(report).is_some()), "it is forwarded by the other sink");
}

#[test]
fn s20_stale_owners_are_told_of_and_keep_their_claims() {
    let mut agent = Agent::new(&[SinkSettings::of_all(Role::Peer)]);
    agent.snapshot(Source::Nat, &[("a", "0.0.0.0:80/tcp"), ("b", "0.0.0.0:81/tcp")]);
    agent.claim(Source::Docker, "a", "0.0.0.0:82/tcp");
    assert_eq!(agent.stale(&["a", "nobody"]), [("a".into(), true)]);
    assert_eq!(agent.stale(&["a"]), []);
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp 0.0.0.0:82/tcp");
    assert_eq!(agent.stale(&["b"]), [("a".into(), false), ("b".into(), true)]);
    // With the rule, the mark goes too.
    agent.snapshot(Source::Nat, &[("a", "0.0.0.0:80/tcp")]);
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp 0.0.0.0:82/tcp");
    agent.snapshot(Source::Nat, &[("a", "0.0.0.0:80/tcp"), ("b", "0.0.0.0:81/tcp")]);
    assert_eq!(agent.stale(&["b"]), [("b".into(), true)]);
}

#[test]
fn a_troubled_source_keeps_its_claims_and_losses_are_counted() {
    let mut agent = Agent::new(&[SinkSettings::of_all(Role::Peer)]);
    agent.snapshot(Source::Nat, &[("a", "0.0.0.0:80/tcp")]);
    let trouble = || Event::SourceTroubled { source: Source::Nat, reason: "exit status 1".into() };
    agent.apply(trouble());
    agent.apply(trouble());
    agent.now += GRACE * 2;
    agent.apply(Event::Tick);
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp");
    agent.snapshot(Source::Nat, &[("a", "0.0.0.0:80/tcp")]);
    let loss = || Event::SourceLost { source: Source::Nat, reason: "no socket".into() };
    for _ in 0..3 {
        agent.apply(loss());
    }
    // It is there again, if not in order: the grace time is over, and begins anew with the next loss.
    agent.now += GRACE / 2;
    agent.apply(trouble());
    agent.now += GRACE * 2;
    agent.apply(Event::Tick);
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp");
    agent.apply(loss());
    agent.now += GRACE - Duration::from_millis(1);
    agent.apply(Event::Tick);
    assert_eq!(agent.held(0), "0.0.0.0:80/tcp");
    agent.now += Duration::from_millis(1);
    agent.apply(Event::Tick);
    assert_eq!(agent.held(0), "");
    agent.snapshot(Source::Nat, &[]);
    let told = |report: &Report| match report {
        Report::Source { problem, lost, losses, .. } => Some((problem.clone().unwrap_or_default(), *lost, *losses)),
        _ => None,
    };
    let told: Vec<(String, bool, u64)> = agent.reports.iter().filter_map(told).collect();
    let told: Vec<(&str, bool, u64)> = told.iter().map(|(problem, lost, n)| (problem.as_str(), *lost, *n)).collect();
    let (trouble, loss) = ("exit status 1", "no socket");
    let expect = [
        ("", false, 0),
        (trouble, false, 0),
        ("", false, 0),
        (loss, true, 1),
        (trouble, false, 3),
        (loss, true, 4),
        ("", false, 4),
    ];
    assert_eq!(told, expect, "each change once");
}

#[test]
fn owners_are_shown_as_people_know_them() {
    let hash = "0123456789abcdef".repeat(4);
    for (source, key, expect) in [
        (Source::Docker, hash.as_str(), "docker:0123456789ab"),
        (Source::Containerd, "default/web", "containerd:default/web"),
        (Source::Nat, "default-0123456789abcdef 10.4.0.2", "nat:default-0123456789abcdef 10.4.0.2"),
        (Source::Nat, "x\u{1b}[2J", "nat:x\\u{1b}[2J"),
    ] {
        assert_eq!(owner(source, key).to_string(), expect);
    }
}
