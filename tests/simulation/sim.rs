//! Simulated sinks: they do what documents say, or what the test tells them to do instead, and keep what they hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU16;

use rancher_desktop_agent::event::{
    Answer, Document, Failure, FailureKind, ForwardState, Operation, Owner, Source, Ticket,
};
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::reconciler::SinkSettings;

/// What a sink makes of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carries it out, except for what is busy.
    Done,
    /// Carries it out, but refuses the bindings whose place in the document has its bit set here.
    Refuse(u32),
    /// Carries it out, and does not say so.
    Applied,
    /// Loses it, and does not say so.
    Lost,
    /// Is not there.
    Unreachable,
    /// Is not there, and comes back having lost all it held.
    Restarting,
}

/// A simulated sink. Serial, as a sink's thread is: documents and answers keep their order.
pub struct Sim {
    pub settings: SinkSettings,
    /// What becomes of documents, unless the test says otherwise for one of them.
    pub mode: Outcome,
    /// It carries nothing out, and says nothing.
    pub stalled: bool,
    pub held: BTreeSet<Binding>,
    /// Bindings that somebody else holds on the host.
    pub busy: BTreeSet<Binding>,
    /// A restart whose reset has not been told yet.
    pub reset_due: bool,
    pub queue: VecDeque<Document>,
    pub answers: VecDeque<(Ticket, Answer)>,
    pub flying: BTreeMap<Ticket, Document>,
    /// Every document sent here since the last look: `+owner bindings` or `-owner bindings`.
    pub sent: Vec<String>,
    /// What the reports add up to.
    pub told: BTreeMap<Binding, ForwardState>,
    /// As far as the answers tell, and unless a withdrawal is on its way.
    pub carries: BTreeSet<Binding>,
    /// Documents sent here so far.
    pub documents: usize,
}

impl Sim {
    pub fn new(settings: SinkSettings) -> Sim {
        Sim {
            settings,
            mode: Outcome::Done,
            stalled: false,
            held: BTreeSet::new(),
            busy: BTreeSet::new(),
            reset_due: false,
            queue: VecDeque::new(),
            answers: VecDeque::new(),
            flying: BTreeMap::new(),
            sent: Vec::new(),
            told: BTreeMap::new(),
            carries: BTreeSet::new(),
            documents: 0,
        }
    }

    /// Does what the document says as far as the outcome has it, and answers.
    pub fn carry_out(&mut self, document: &Document, outcome: Outcome) -> Answer {
        let refused = match outcome {
            Outcome::Done | Outcome::Applied => 0,
            Outcome::Refuse(places) => places,
            Outcome::Lost => return Answer::Uncertain("reset".into()),
            Outcome::Unreachable => return Answer::Unreachable("refused".into()),
            Outcome::Restarting => {
                self.held.clear();
                return Answer::Unreachable("refused".into());
            }
        };
        let mut failed = Vec::new();
        for (place, binding) in document.bindings.keys().enumerate() {
            let refuse = place < 32 && refused >> place & 1 == 1;
            let kind = match document.operation {
                // What is held already is announced again without harm.
                Operation::Announce if self.held.contains(binding) => continue,
                Operation::Announce if self.busy.contains(binding) => FailureKind::Conflict,
                Operation::Announce | Operation::Withdraw if refuse => FailureKind::Failed,
                Operation::Announce => {
                    self.held.insert(*binding);
                    continue;
                }
                Operation::Withdraw => {
                    self.held.remove(binding);
                    continue;
                }
            };
            failed.push((*binding, Failure { kind, reason: format!("{kind:?}") }));
        }
        match outcome {
            Outcome::Applied => Answer::Uncertain("reset".into()),
            _ => Answer::Done { failed },
        }
    }

    /// What an answer tells of what this sink carries.
    pub fn note(&mut self, ticket: Ticket, answer: &Answer) {
        let Some(document) = self.flying.remove(&ticket) else { return };
        for binding in document.bindings.keys() {
            let carries = match (answer, document.operation) {
                (Answer::Done { failed }, Operation::Announce) => !failed.iter().any(|(b, _)| b == binding),
                (Answer::Done { failed }, Operation::Withdraw) => failed.iter().any(|(b, _)| b == binding),
                (Answer::Uncertain(_), _) | (Answer::Unreachable(_), Operation::Withdraw) => true,
                (Answer::Unreachable(_), Operation::Announce) => self.carries.contains(binding),
            };
            if carries {
                self.carries.insert(*binding);
            } else {
                self.carries.remove(binding);
            }
        }
    }

    /// The agent is another one: nothing is on its way, and nobody knows what is held.
    pub fn begin_again(&mut self) {
        self.queue.clear();
        self.answers.clear();
        self.flying.clear();
        self.told.clear();
        self.carries.clear();
        self.reset_due = false;
    }

    /// The peer restarts, and holds nothing.
    pub fn restart(&mut self) {
        self.held.clear();
    }
}

pub fn owner(key: &str) -> Owner {
    Owner { source: Source::Docker, key: key.into() }
}

/// `0.0.0.0:80/tcp`.
pub fn binding(text: &str) -> Binding {
    let (addr, protocol) = text.split_once('/').unwrap();
    let addr: SocketAddr = addr.parse().unwrap();
    let host_port = NonZeroU16::new(addr.port()).unwrap();
    Binding { protocol: Protocol::parse(protocol).unwrap(), host_ip: addr.ip(), host_port }
}

/// Bindings with spaces between them.
pub fn bindings(text: &str) -> Bindings {
    text.split_whitespace().map(|word| (binding(word), binding(word).host_port)).collect()
}

pub fn show<'a>(bindings: impl IntoIterator<Item = &'a Binding>) -> String {
    bindings.into_iter().map(Binding::to_string).collect::<Vec<_>>().join(" ")
}

pub fn format_document(document: &Document) -> String {
    let sign = match document.operation {
        Operation::Announce => '+',
        Operation::Withdraw => '-',
    };
    format!("{sign}{} {}", document.owner.key, show(document.bindings.keys()))
}
