//! Churn with faults, in rounds. After each, everything holds still until the agent, both receivers and the engines agree;
//! then everything is removed, and the agent is measured with nothing published.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::churn::{self, Ctr, Docker, EndOnDrop, Hand, Orders, Pace, Plain};
use crate::faults::{ENGINES, Fault, Faults, Lasting, OTHERS, Record};
use crate::figures::{Row, Usage};
use crate::interrupted;
use crate::random::Random;
use crate::support::{DEADLINE, eventually};
use crate::truth::{self, Agreed, connect, settle};
use crate::world::{START, World, lock, wait_state};

/// Hands of dockerd, and how many containers each has at most.
const DOCKER_HANDS: u16 = 3;
const DOCKER_EACH: usize = 10;
const CTR_EACH: usize = 10;
const PLAIN_EACH: usize = 6;
const HANDS: usize = DOCKER_HANDS as usize + 2;

/// Whoever starts a container while dockerd is stopped waits for it.
const REST: Duration = Duration::from_secs(150);

/// What a process may have more, page by page, without having grown: see docs/reliability.md.
const RSS_KIB_MORE_MAX: u64 = 512;
/// A line for each forward and each source or sink that comes and goes.
const LOG_BYTES_EACH_MAX: u64 = 4096;

/// How a run of some length is divided.
struct Plan {
    round: Duration,
    lasting: Lasting,
    gap: Duration,
    /// Of the run, in which the agent is killed too.
    kill: Duration,
}

impl Plan {
    fn of(seconds: Duration) -> Plan {
        let second = Duration::from_secs(1);
        Plan {
            round: (seconds / 4).clamp(8 * second, 45 * second),
            lasting: Lasting((seconds / 60).clamp(second, 5 * second), (seconds / 20).clamp(3 * second, 15 * second)),
            gap: (seconds / 20).clamp(second, 4 * second),
            kill: seconds * 2 / 5,
        }
    }
}

/// What was seen while everything held still.
#[derive(Default)]
struct Seen {
    loaded: Vec<Agreed>,
    empty: Vec<Usage>,
    answered: usize,
    wrong: Vec<String>,
}

pub fn churn(seconds: Duration, seed: u64) -> Vec<Row> {
    let world = World::new();
    for (list, name, state) in [
        ("sources", "docker", "ready"),
        ("sources", "containerd", "ready"),
        ("sources", "nat", "ready"),
        ("sources", "sockets", "ready"),
    ] {
        wait_state(&world, list, name, state, START);
    }
    let orders = Orders::new(HANDS + 2);
    let record = Record::default();
    let plan = Plan::of(seconds);
    let panicked: Mutex<Vec<&str>> = Mutex::default();
    let mut random = Random::new(seed);
    let begun = Instant::now();
    let faults = Faults {
        world: &world,
        orders: &orders,
        record: &record,
        lasting: plan.lasting,
        kill_until: begun + plan.kill,
        gap: plan.gap,
    };
    let seen = std::thread::scope(|scope| {
        let _end = EndOnDrop(&orders);
        let tally = &orders.tally;
        let mut hands: Vec<(Box<dyn Hand + Send>, usize)> = Vec::new();
        for hand in 0..DOCKER_HANDS {
            hands.push((Box::new(Docker::new(&world, tally, hand)), DOCKER_EACH));
        }
        hands.push((Box::new(Ctr::new(&world, tally, DOCKER_HANDS)), CTR_EACH));
        hands.push((Box::new(Plain::new(&world, tally, DOCKER_HANDS + 1)), PLAIN_EACH));
        for (thread, (mut hand, most)) in hands.into_iter().enumerate() {
            let (orders, random) = (&orders, random.fork());
            scope.spawn(move || churn::work(&mut *hand, most, orders, thread, random));
        }
        for (i, list) in [ENGINES, OTHERS].into_iter().enumerate() {
            let (faults, panicked, orders, random) = (&faults, &panicked, &orders, random.fork());
            scope.spawn(move || {
                let thread = HANDS + i;
                if catch_unwind(AssertUnwindSafe(|| faults.work(list, thread, random))).is_err() {
                    lock(panicked).push(["a fault of the engines", "a fault of the others"][i]);
                }
                // Nobody is to wait for it.
                while orders.read().0 != Pace::End {
                    orders.rest(thread, orders.read().1);
                }
            });
        }
        rounds(&world, &orders, &plan, begun + seconds, &mut random)
    });
    let took = begun.elapsed();
    let mut wrong = seen.wrong.clone();
    wrong.extend(lock(&panicked).iter().map(|what| format!("the agent did not recover from {what}")));
    report(&world, &orders, &record, &seen, &wrong, took)
}

fn rounds(world: &World, orders: &Orders, plan: &Plan, end: Instant, random: &mut Random) -> Seen {
    let mut seen = Seen::default();
    while seen.wrong.is_empty() && !interrupted() && (Instant::now() < end || seen.empty.len() < 2) {
        orders.give(Pace::Churn);
        let until = Instant::now() + plan.round;
        while Instant::now() < until && !interrupted() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Err(differences) = quiet(world, orders, &mut seen, random) {
            eprintln!("--- the agent's last lines:\n{}", tail(&lock(&world.agent).log()));
            seen.wrong.extend(differences);
        }
    }
    orders.give(Pace::Drain);
    orders.wait_rest(REST);
    seen
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Holds, compares, removes everything, compares again, and measures.
fn quiet(world: &World, orders: &Orders, seen: &mut Seen, random: &mut Random) -> Result<(), Vec<String>> {
    let rest = |pace: Pace, what: &str| {
        orders.give(pace);
        if orders.wait_rest(REST) { Ok(()) } else { Err(vec![format!("{what}: not within {REST:?}")]) }
    };
    rest(Pace::Hold, "whatever was under way")?;
    let loaded = settle(world)?;
    let answered = connect(world, random, 8).map_err(|error| vec![error])?;
    seen.answered += answered;
    rest(Pace::Drain, "the removal of all containers")?;
    let empty = settle(world)?;
    let mut wrong = Vec::new();
    if empty.forwards != (0, 0) {
        wrong.push(format!("{:?} forwards, and nothing that publishes", empty.forwards));
    }
    let usage = at_rest(world.pid());
    eprintln!(
        "  {} containers started, {} publish {} forwards, agreed after {:.1} s; {answered} answer; then nothing: {} KiB, {} \
         descriptors, {} threads, {:.2} s of CPU, {} bytes of log",
        orders.tally.containers(),
        loaded.publishers,
        loaded.forwards.0,
        loaded.after.as_secs_f64(),
        usage.rss_kib,
        usage.descriptors,
        usage.threads,
        usage.cpu_seconds,
        world.log_bytes(),
    );
    seen.loaded.push(loaded);
    seen.empty.push(usage);
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Once its descriptors do not change any more: connections end some time after what they were for.
fn at_rest(pid: u32) -> Usage {
    let end = Instant::now() + DEADLINE;
    let mut last = Usage::of(pid);
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = Usage::of(pid);
        if now.descriptors == last.descriptors && now.threads == last.threads || Instant::now() >= end {
            return now;
        }
        last = now;
    }
}

fn report(
    world: &World,
    orders: &Orders,
    record: &Record,
    seen: &Seen,
    wrong: &[String],
    took: Duration,
) -> Vec<Row> {
    let tally = &orders.tally;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let mut rows = vec![Row::report(
        "containers started and removed at random",
        format!(
            "{} in {:.0} s ({} of dockerd, {} of containerd), and {} plain processes; {} alive at most; {} starts or \
             removals failed while an engine was away",
            tally.containers(),
            took.as_secs_f64(),
            count(&tally.docker),
            count(&tally.containerd),
            count(&tally.plain),
            count(&tally.alive_max),
            count(&tally.refused)
        ),
    )];
    let slowest = seen.loaded.iter().map(|agreed| agreed.after).max().unwrap_or_default();
    let forwards: Vec<String> = seen.loaded.iter().map(|agreed| agreed.forwards.0.to_string()).collect();
    rows.push(Row::must(
        "forwards at rest, at hostagent, host-switch, in the agent and in its state file",
        &format!("what is published, within {} s", truth::DEADLINE.as_secs()),
        if wrong.is_empty() {
            format!(
                "equal at {} moments ({} forwards), after {:.1} s at most, and none left {} times after all was removed",
                seen.loaded.len(),
                forwards.join(", "),
                slowest.as_secs_f64(),
                seen.empty.len()
            )
        } else {
            wrong.join("; ")
        },
        wrong.is_empty() && !seen.loaded.is_empty(),
    ));
    rows.push(Row::must(
        "connections through hostagent and the relay",
        "all answer",
        format!("{} answered", seen.answered),
        wrong.is_empty(),
    ));
    for fault in ENGINES.iter().chain(OTHERS) {
        rows.push(fault_row(*fault, record));
    }
    rows.push(Row::report(
        "a container's network namespace removed before its rules",
        format!("{} times", count(&tally.namespaces)),
    ));
    rows.extend(usage_rows(world, seen, tally.containers() + count(&tally.plain) + record.all()));
    rows
}

fn fault_row(fault: Fault, record: &Record) -> Row {
    let (times, longest) = record.of(fault);
    let measured = match times {
        0 => "did not come up".to_owned(),
        _ => format!("{times} times, right again after {:.1} s at most", longest.as_secs_f64()),
    };
    Row::report(fault.name(), measured)
}

fn usage_rows(world: &World, seen: &Seen, changes: u64) -> Vec<Row> {
    let Some(last) = seen.empty.last() else { return Vec::new() };
    // Since the agent was killed last: what one before it had says nothing of this one.
    let first = seen.empty.iter().find(|usage| usage.pid == last.pid).unwrap_or(last);
    let samples = seen.empty.iter().filter(|usage| usage.pid == last.pid).count();
    let log = world.log_bytes();
    let health = || world.ask(&["status", "--json"]).map(|status| status[0]["health"].as_str().unwrap_or("").to_owned());
    let ok = catch_unwind(AssertUnwindSafe(|| {
        eventually("health ok", || match health() {
            Ok(health) if health == "ok" => Ok(()),
            other => Err(other),
        });
    }));
    vec![
        Row::must(
            "RSS of the agent with nothing published, first and last",
            &format!("at most {RSS_KIB_MORE_MAX} KiB more"),
            format!("{} and {} KiB, {samples} moments; peak {} KiB", first.rss_kib, last.rss_kib, last.peak_kib),
            last.rss_kib <= first.rss_kib + RSS_KIB_MORE_MAX,
        ),
        Row::must(
            "descriptors of the agent, first and last",
            "no more",
            format!("{} and {}", first.descriptors, last.descriptors),
            last.descriptors <= first.descriptors,
        ),
        Row::must(
            "threads of the agent, first and last",
            "no more",
            format!("{} and {}", first.threads, last.threads),
            last.threads <= first.threads,
        ),
        Row::must(
            "log of the agent, for each container, process and fault",
            &format!("≤ {LOG_BYTES_EACH_MAX} bytes"),
            format!("{} bytes ({log} in all)", log / changes.max(1)),
            log <= LOG_BYTES_EACH_MAX * changes,
        ),
        Row::report(
            "CPU time of the agent since it was killed last",
            format!("{:.2} s", last.cpu_seconds),
        ),
        Row::must("`status` at the end", "ok", health().unwrap_or_else(|error| error), ok.is_ok()),
    ]
}
