//! Random histories against the oracle of [`World`]: whatever happens, once faults end every sink holds what it should.
//!
//! A history is a list of steps that mean something in any order, so that a failing one can be cut down. `SEEDS=N`
//! tries N of them (2,000 otherwise); a failure prints its seed and the shortest list of steps that was found.

use std::cell::Cell;
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use rancher_desktop_agent::event::{Answer, Event, SinkId, Source, Ticket};
use rancher_desktop_agent::port::{Binding, Bindings};
use rancher_desktop_agent::reconciler::{Role, SinkSettings};

use super::sim::{Outcome, binding, owner};
use super::world::{GRACE, RULES, World};

const STEPS: usize = 100;

const OWNERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Few, so that owners meet on them, and that different ones are exposed alike.
const ADDRESSES: [&str; 7] = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "192.168.1.5", "[::]", "[::1]", "[fd00::5]"];

#[derive(Debug, Clone, Copy)]
enum Step {
    /// An owner, and the places of its bindings in the universe.
    Claim(usize, u32),
    Snapshot([u32; OWNERS.len()]),
    SourceLost,
    SourceTroubled,
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
    Deliver(usize, u8),
    UnknownTicket(usize),
    /// A look without a document: the peer is there, or it is not.
    Seen(usize, bool),
    StartOver,
    /// The rules file changes to one of [`RULES`].
    Rules(usize),
    Quiet,
}

#[test]
fn whatever_happens_every_sink_ends_up_with_what_is_published() {
    silence_expected_panics();
    let seeds = std::env::var("SEEDS").map_or(2_000, |n| n.parse().expect("SEEDS is a number"));
    let universe = universe();
    for seed in 0..seeds {
        let steps = history(seed);
        if outcome(seed, &steps, &universe).is_err() {
            let steps = shrink(seed, steps, &universe);
            let why = outcome(seed, &steps, &universe).unwrap_err();
            let list: Vec<String> = steps.iter().map(|step| format!("  {}", describe(step, &universe))).collect();
            panic!("seed {seed} {:?}: {why}\nafter\n{}", setting(seed), list.join("\n"));
        }
    }
}

/// Admin rights, and sinks. The last are those of today's Rancher Desktop: host-switch, and wsl-proxy behind it.
fn setting(seed: u64) -> (bool, Vec<SinkSettings>) {
    let of = |roles: &[Role]| roles.iter().copied().map(SinkSettings::of_all).collect::<Vec<_>>();
    let sinks = match seed / 2 % 5 {
        0 => of(&[Role::Peer, Role::Peer, Role::Relay]),
        1 => of(&[Role::Peer, Role::Peer]),
        2 => of(&[Role::Relay, Role::Peer, Role::Peer]),
        3 => of(&[Role::Listener, Role::Peer, Role::Relay]),
        _ => {
            let mut sinks = of(&[Role::Peer, Role::Peer, Role::Relay]);
            sinks.iter_mut().for_each(|sink| sink.ipv4_only = true);
            sinks[0].document_bindings_max = 2;
            sinks[1].after = Some(SinkId(0));
            sinks
        }
    };
    (seed & 1 == 0, sinks)
}

fn run(seed: u64, steps: &[Step], universe: &[Binding]) {
    let (admin, sinks) = setting(seed);
    let mut world = World::of(admin, &sinks);
    if seed % 3 == 0 {
        // What an earlier run left; as it was bound, which may not be how it would be bound now.
        let left: Vec<Binding> = universe.iter().filter(|b| b.host_ip.is_ipv4()).step_by(3).copied().collect();
        world.find(0, &left);
    }
    world.keep_log = false;
    for step in steps {
        act(&mut world, *step, universe);
    }
    world.quiet();
    // A port that somebody held for long is taken soon after it is free.
    world.sinks.iter_mut().for_each(|sim| sim.busy.clear());
    world.quiet();
    if seed % 3 == 0 {
        world.snapshot(&[]);
        world.quiet();
    } else {
        world.apply(Event::Shutdown);
        world.pass(Duration::from_secs(1));
    }
    assert!(world.sinks.iter().all(|sim| sim.held.is_empty()), "something is left behind");
    assert!(world.reconciler.is_empty(), "not empty at the end");
    world.pass(GRACE);
    assert_eq!(world.reconciler.deadline(), None, "a deadline of an empty reconciler");
}

fn act(world: &mut World, step: Step, universe: &[Binding]) {
    let sinks = world.sinks.len();
    match step {
        Step::Claim(key, places) => world.claim_all(OWNERS[key], pick(universe, places, key)),
        Step::Snapshot(all) => {
            let claims = OWNERS
                .iter()
                .enumerate()
                .filter(|(i, _)| all[*i] != 0)
                .map(|(i, key)| (owner(key).key, pick(universe, all[i], i)))
                .collect();
            world.apply(Event::Snapshot { source: Source::Docker, claims });
        }
        Step::SourceLost => world.lose_source(),
        Step::SourceTroubled => {
            world.apply(Event::SourceTroubled { source: Source::Docker, reason: "answers 503".into() });
        }
        Step::Tick(ms) => {
            world.now += Duration::from_millis(ms);
            world.apply(Event::Tick);
        }
        Step::Deadline => {
            if let Some(deadline) = world.reconciler.deadline() {
                world.now = deadline;
                world.apply(Event::Tick);
            }
        }
        Step::Reset(sink) => world.reset(sink % sinks),
        Step::Restart(sink, at_once) => {
            world.sinks[sink % sinks].restart();
            world.sinks[sink % sinks].reset_due = true;
            if at_once {
                act(world, Step::ResetDue(sink), universe);
            }
        }
        Step::ResetDue(sink) => {
            if std::mem::take(&mut world.sinks[sink % sinks].reset_due) {
                world.reset(sink % sinks);
            }
        }
        Step::Busy(sink, place) => {
            let sim = &mut world.sinks[sink % sinks];
            let binding = universe[place % universe.len()];
            if !sim.busy.remove(&binding) && !sim.held.contains(&binding) {
                sim.busy.insert(binding);
            }
        }
        Step::CarryOut(sink, outcome) => drop(world.carry_out(sink % sinks, outcome)),
        Step::Answer(sink) => drop(world.answer(sink % sinks)),
        Step::Deliver(sink, times) => {
            for _ in 0..times {
                world.carry_out(sink % sinks, Outcome::Done);
                world.answer(sink % sinks);
            }
        }
        Step::UnknownTicket(sink) => {
            let answer = Answer::Done { failed: Vec::new() };
            world.apply(Event::Answered { sink: SinkId(sink), ticket: Ticket(u64::MAX), answer });
        }
        Step::Seen(sink, there) => {
            let problem = if there { None } else { Some("no answer".to_owned()) };
            world.apply(Event::SinkSeen { sink: SinkId(sink % sinks), problem });
        }
        Step::StartOver => world.apply(Event::StartOver),
        Step::Rules(n) => world.adopt(RULES[n % RULES.len()]),
        Step::Quiet => world.quiet(),
    }
}

/// Fewer and fewer steps, while it still fails.
fn shrink(seed: u64, mut steps: Vec<Step>, universe: &[Binding]) -> Vec<Step> {
    let mut chunk = steps.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            if outcome(seed, &fewer, universe).is_err() {
                steps = fewer;
                shorter = true;
            } else {
                at += chunk;
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    for i in 0..steps.len() {
        for place in 0..u32::BITS {
            let mut fewer = steps.clone();
            match &mut fewer[i] {
                Step::Claim(_, places) => *places &= !(1 << place),
                Step::Snapshot(all) => all.iter_mut().for_each(|places| *places &= !(1 << place)),
                _ => continue,
            }
            if outcome(seed, &fewer, universe).is_err() {
                steps = fewer;
            }
        }
    }
    steps
}

fn outcome(seed: u64, steps: &[Step], universe: &[Binding]) -> Result<(), String> {
    SILENT.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, steps, universe)));
    SILENT.set(false);
    result.map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("a panic", |text| text).to_owned(),
    })
}

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// A failing history is run many times while it is cut down: only the last panic is worth printing.
fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                print(info);
            }
        }));
    });
}

fn history(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    (0..STEPS).map(|_| step(&mut random)).collect()
}

fn step(random: &mut Random) -> Step {
    let sink = random.below(3) as usize;
    match random.below(108) {
        0..18 => Step::Claim(random.below(OWNERS.len() as u64) as usize, random.places()),
        18..22 => Step::Snapshot(std::array::from_fn(|_| random.places())),
        22..25 => Step::SourceLost,
        25 => Step::SourceTroubled,
        26..33 => Step::Tick(random.below(3_000)),
        33..40 => Step::Deadline,
        40..43 => Step::Reset(sink),
        43..46 => Step::Restart(sink, random.below(2) == 0),
        46..48 => Step::ResetDue(sink),
        48..53 => Step::Busy(sink, random.below(64) as usize),
        53..73 => Step::CarryOut(sink, random.outcome()),
        73..87 => Step::Answer(sink),
        87..96 => Step::Deliver(sink, 1 + random.below(6) as u8),
        96 => Step::UnknownTicket(random.below(9) as usize),
        97 => Step::Seen(sink, random.below(2) == 0),
        98 => Step::StartOver,
        99 => Step::Quiet,
        100..105 => Step::Rules(random.below(RULES.len() as u64) as usize),
        _ => Step::Seen(sink, random.below(2) == 0),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// None at times, otherwise few.
    fn places(&mut self) -> u32 {
        match self.below(4) {
            0 => 0,
            _ => (self.next() & self.next() & self.next()) as u32,
        }
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

fn universe() -> Vec<Binding> {
    let protocols = ["tcp", "udp"];
    let of = |port: u16| {
        ADDRESSES.iter().flat_map(move |ip| protocols.map(|protocol| binding(&format!("{ip}:{port}/{protocol}"))))
    };
    of(80).chain(of(81)).collect()
}

/// Owners differ in what is behind their ports.
fn pick(universe: &[Binding], places: u32, owner: usize) -> Bindings {
    let behind = NonZeroU16::new(8000 + owner as u16).unwrap();
    universe.iter().enumerate().filter(|(i, _)| places >> i & 1 == 1).map(|(_, b)| (*b, behind)).collect()
}

fn describe(step: &Step, universe: &[Binding]) -> String {
    let names = |places: u32, owner: usize| {
        let names: Vec<String> = pick(universe, places, owner).keys().map(Binding::to_string).collect();
        format!("{}: [{}]", OWNERS[owner], names.join(" "))
    };
    match step {
        Step::Claim(key, places) => format!("Claim {}", names(*places, *key)),
        Step::Snapshot(all) => {
            let all: Vec<String> = all.iter().enumerate().map(|(i, places)| names(*places, i)).collect();
            format!("Snapshot {}", all.join(", "))
        }
        Step::Busy(sink, place) => format!("Busy({sink}, {})", universe[place % universe.len()]),
        other => format!("{other:?}"),
    }
}
