//! Histories: lists of steps that mean something in any order, so that a failing one can be cut down.

use std::sync::OnceLock;
use std::time::Duration;

use rancher_desktop_agent::event::{SinkId, Source};
use rancher_desktop_agent::port::{Binding, Protocol};
use rancher_desktop_agent::reconciler::{Role, SinkSettings};

use super::oracle::Rule;
use super::random::Random;
use super::sim::{Outcome, binding};
use super::source::{KEYS, SimSource, pick};

/// Steps of one history.
pub const STEPS: usize = 80;

/// Few, so that owners meet on them, and that different ones are exposed alike.
const ADDRESSES: [&str; 7] = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "192.168.1.5", "[::]", "[::1]", "[fd00::5]"];

/// One of them is the guest's own, in UDP.
const PORTS: [u16; 2] = [80, 5353];

/// Everything that can be published.
pub fn universe() -> &'static [Binding] {
    static UNIVERSE: OnceLock<Vec<Binding>> = OnceLock::new();
    let of = |port: u16| {
        ADDRESSES.iter().flat_map(move |ip| ["tcp", "udp"].map(|protocol| binding(&format!("{ip}:{port}/{protocol}"))))
    };
    UNIVERSE.get_or_init(|| PORTS.into_iter().flat_map(of).collect())
}

/// Sources and sinks are numbers, of which the rest by how many there are counts.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// An owner of a source publishes other bindings: places in the universe.
    Publish(usize, usize, u32),
    /// It publishes what another owner, of whatever source, does.
    Share((usize, usize), (usize, usize)),
    /// Of one source: an owner takes over what another publishes, which publishes something else.
    PassOn(usize, (usize, usize), u32),
    /// A source reads so many notices, or looks so often.
    Read(usize, u8),
    List(usize),
    Connect(usize),
    Lose(usize),
    Trouble(usize),
    Skip(usize),
    /// The agent hears so much of what a source has said.
    Hear(usize, u8),
    /// What changes no port: names, owners that lead nowhere, input that was skipped, a question.
    Chatter(usize, u8),
    /// So late, whatever the deadline.
    Tick(u64),
    Deadline,
    Reset(usize),
    /// The sink restarts; the reset is told at once, or later.
    Restart(usize, bool),
    ResetDue(usize),
    /// Somebody else takes, or gives back, a binding on a sink's host.
    Busy(usize, usize),
    CarryOut(usize, Outcome),
    Answer(usize),
    /// A burst: this many documents are carried out and answered.
    Flow(usize, u8),
    UnknownTicket(usize),
    /// A look without a document: the peer is there, or it is not.
    Seen(usize, bool),
    StartOver,
    /// The rules file changes.
    Rules(u64),
    /// The agent is killed, and started again. These sources are heard before a sink says what it holds.
    Crash(u8),
    /// A sink fails like that for so many seconds.
    Dead(usize, Fault, u64),
    /// All faults end but those of these sources, and of this sink; then one more change, where nothing else happens.
    Quiet {
        gone: u8,
        dead: Option<(usize, Fault)>,
        change: (usize, usize, u32),
    },
}

/// How a sink fails for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Unreachable,
    /// Every document is lost, and nobody knows.
    Lost,
    /// Every binding is refused.
    Refuses,
    /// Nothing is carried out, or answered.
    Stalled,
}

/// What is the same for a whole history.
pub struct Setting {
    pub admin: bool,
    pub sinks: Vec<SinkSettings>,
    pub sources: Vec<Source>,
    /// The first sink can say what it holds of an earlier run.
    pub finds: bool,
    /// What it holds of one, as places; none: it is the first.
    pub left: u32,
}

impl Setting {
    pub fn of(seed: u64) -> Setting {
        let mut random = Random(seed ^ 0x5e77_1265);
        let of = |roles: &[Role]| roles.iter().copied().map(SinkSettings::of_all).collect::<Vec<_>>();
        let kind = random.below(7);
        let mut sinks = match kind {
            0 => of(&[Role::Peer, Role::Peer, Role::Relay]),
            1 => of(&[Role::Peer, Role::Peer]),
            2 => of(&[Role::Relay, Role::Peer, Role::Peer]),
            3 => of(&[Role::Listener]),
            // vtunnel, with listeners for containerd's ports.
            4 => of(&[Role::Peer, Role::Listener, Role::Relay]),
            // host-switch, and wsl-proxy behind it.
            _ => of(&[Role::Peer, Role::Peer, Role::Relay]),
        };
        let finds = kind > 4;
        if kind == 4 {
            sinks[1].feeds = &[Source::Containerd];
        }
        if finds {
            sinks.iter_mut().for_each(|sink| sink.ipv4_only = true);
            sinks[0].document_bindings_max = 2;
            (sinks[1].after, sinks[1].feeds) = (Some(SinkId(0)), Source::WITH_AGENT);
        }
        let mut sources: Vec<Source> = Source::ALL.iter().copied().filter(|_| random.below(2) == 0).collect();
        if sources.is_empty() {
            sources.push(Source::Docker);
        }
        let left = if finds && random.below(2) == 0 { random.places() & 0x1111_1111 } else { 0 };
        Setting { admin: random.below(2) == 0, sinks, sources, finds, left }
    }

    pub fn describe(&self) -> String {
        let sink = |sink: &SinkSettings| {
            let after = sink.after.map_or(String::new(), |ahead| format!(" after {}", ahead.0));
            let of = if sink.feeds == Source::ALL || sink.feeds == Source::WITH_AGENT { "" } else { " of containerd" };
            format!("{:?}{of}{after}{}", sink.role, if sink.ipv4_only { " IPv4" } else { "" })
        };
        let sinks: Vec<String> = self.sinks.iter().map(sink).collect();
        let sources: Vec<&str> = self.sources.iter().map(|source| source.as_str()).collect();
        let left = pick(universe(), 0, self.left).keys().map(Binding::to_string).collect::<Vec<_>>().join(" ");
        let admin = if self.admin { "admin rights" } else { "no admin rights" };
        format!("{admin}; sinks {}; sources {}; left before [{left}]", sinks.join(", "), sources.join(", "))
    }
}

pub fn history(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    (0..STEPS).map(|_| step(&mut random)).collect()
}

fn step(random: &mut Random) -> Step {
    let sink = random.below(3) as usize;
    let source = random.below(5) as usize;
    match random.below(200) {
        0..28 => Step::Publish(source, random.key(), random.places()),
        28..30 => Step::PassOn(source, (random.key(), random.key()), random.places()),
        30..34 => Step::Share((source, random.key()), (random.below(5) as usize, random.key())),
        34..58 => Step::Read(source, 1 + random.below(3) as u8),
        58..60 => Step::List(source),
        60..64 => Step::Connect(source),
        64..67 => Step::Lose(source),
        67..69 => Step::Trouble(source),
        69..71 => Step::Skip(source),
        71..97 => Step::Hear(source, 1 + random.below(4) as u8),
        97 => Step::Chatter(source, random.below(4) as u8),
        98..107 => Step::Tick(random.below(3_000)),
        107..117 => Step::Deadline,
        117..120 => Step::Reset(sink),
        120..124 => Step::Restart(sink, random.below(2) == 0),
        124..127 => Step::ResetDue(sink),
        127..134 => Step::Busy(sink, random.below(64) as usize),
        134..156 => Step::CarryOut(sink, random.outcome()),
        156..172 => Step::Answer(sink),
        172..186 => Step::Flow(sink, 1 + random.below(6) as u8),
        186 => Step::UnknownTicket(random.below(9) as usize),
        187..189 => Step::Seen(sink, random.below(2) == 0),
        189 => Step::StartOver,
        190..195 => Step::Rules(random.next()),
        195 => Step::Crash(random.next() as u8),
        196 => Step::Dead(sink, random.fault(), 60 * (1 + random.below(3))),
        _ => Step::Quiet {
            gone: (random.next() & random.next()) as u8,
            dead: if random.below(2) == 0 { Some((sink, random.fault())) } else { None },
            change: (source, random.key(), random.places()),
        },
    }
}

/// A rules file: none at times, otherwise a few lines.
pub fn rules(number: u64) -> Vec<Rule> {
    let mut random = Random(number);
    let sources = [None, None, Some(Source::Docker), Some(Source::Nat), Some(Source::Sockets)];
    let protocols = [None, Some(Protocol::Tcp), Some(Protocol::Udp)];
    (0..random.below(4))
        .map(|_| Rule {
            allow: random.below(3) == 0,
            protocol: protocols[random.below(3) as usize],
            port: [None, Some(PORTS[0]), Some(PORTS[1])][random.below(3) as usize],
            source: sources[random.below(5) as usize],
        })
        .collect()
}

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn key(&mut self) -> usize {
        self.below(KEYS as u64) as usize
    }

    /// None at times, otherwise few.
    fn places(&mut self) -> u32 {
        match self.below(4) {
            0 => 0,
            _ => (self.next() & self.next() & self.next()) as u32 & ((1 << universe().len()) - 1),
        }
    }

    fn fault(&mut self) -> Fault {
        [Fault::Unreachable, Fault::Lost, Fault::Refuses, Fault::Stalled][self.below(4) as usize]
    }

    fn outcome(&mut self) -> Outcome {
        match self.below(12) {
            0..3 => Outcome::Done,
            3..6 => Outcome::Refuse(self.next() as u32),
            6 => Outcome::Applied,
            7 => Outcome::Lost,
            8..10 => Outcome::Unreachable,
            _ => Outcome::Restarting,
        }
    }
}

/// How many tries there are in that time, the first included: 100 ms after the first, then twice as long each time, 5 s at
/// most.
pub fn tries(time: Duration) -> usize {
    let (mut at, mut wait, mut count) = (Duration::ZERO, Duration::from_millis(100), 1);
    while at + wait <= time {
        at += wait;
        wait = (wait * 2).min(Duration::from_secs(5));
        count += 1;
    }
    count
}

/// A step in words.
pub fn describe(step: &Step, setting: &Setting) -> String {
    let name = |source: usize| setting.sources[source % setting.sources.len()];
    let sink = |sink: usize| sink % setting.sinks.len();
    let places = |places: u32| {
        let names: Vec<String> = pick(universe(), 0, places).keys().map(Binding::to_string).collect();
        format!("[{}]", names.join(" "))
    };
    let owner = |source: usize, key: usize| SimSource::new(name(source), universe()).owner(key);
    match step {
        Step::Publish(source, key, what) => format!("{} publishes {}", owner(*source, *key), places(*what)),
        Step::Share(from, to) => format!("{} publishes what {} does", owner(to.0, to.1), owner(from.0, from.1)),
        Step::PassOn(source, (from, to), what) => {
            let (from, to) = (owner(*source, *from), owner(*source, *to));
            format!("{to} publishes what {from} does, which publishes {}", places(*what))
        }
        Step::Read(source, times) => format!("{} reads {times}", name(*source)),
        Step::Hear(source, times) => format!("{} is heard {times}", name(*source)),
        Step::List(source) => format!("{} lists", name(*source)),
        Step::Connect(source) => format!("{} connects", name(*source)),
        Step::Lose(source) => format!("{} is lost", name(*source)),
        Step::Trouble(source) => format!("{} is troubled", name(*source)),
        Step::Skip(source) => format!("{} cannot read a notice", name(*source)),
        Step::Busy(at, place) => format!("sink {}: busy or free {}", sink(*at), universe()[place % universe().len()]),
        Step::Rules(number) => {
            let lines: Vec<String> = rules(*number).iter().map(Rule::to_string).collect();
            format!("rules [{}]", lines.join("; "))
        }
        Step::CarryOut(at, outcome) => format!("sink {} carries out: {outcome:?}", sink(*at)),
        Step::Answer(at) => format!("sink {} answers", sink(*at)),
        Step::Flow(at, times) => format!("sink {} carries out and answers {times}", sink(*at)),
        Step::Dead(at, fault, seconds) => format!("sink {} is {fault:?} for {seconds} s", sink(*at)),
        Step::Quiet { gone, dead, change: (source, key, what) } => {
            let change = format!("{} publishes {}", owner(*source, *key), places(*what));
            format!("quiet: sources gone {gone:#b}, dead sink {:?}; {change}", dead.map(|(at, how)| (sink(at), how)))
        }
        other => format!("{other:?}"),
    }
}
