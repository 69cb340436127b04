//! Churn with faults, in rounds. After each, everything holds still until the agent, both receivers and the engines agree;
//! then everything is removed, and the agent is measured with nothing published.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::churn::{self, Ctr, Docker, EndOnDrop, Hand, Orders, Pace, Plain};
use crate::faults::{ENGINES, Fault, Faults, Lasting, OTHERS, Record};
use crate::figures::{Row, Usage};
use crate::interrupted;
use crate::random::Random;
use crate::support::{eventually, run};
use crate::truth::{self, Agreed, connect, settle, settle_empty};
use crate::world::{START, World, lock, wait_state};

/// Hands of dockerd, and how many containers each has at most.
const DOCKER_HANDS: u16 = 3;
const DOCKER_EACH: usize = 10;
const CTR_HANDS: u16 = 2;
const CTR_EACH: usize = 8;
const PLAIN_EACH: usize = 6;
const HANDS: usize = (DOCKER_HANDS + CTR_HANDS) as usize + 1;

/// Whoever starts a container while dockerd is stopped waits for it.
const REST: Duration = Duration::from_secs(150);

/// How much longer a run may take for faults that have not come up.
const LONGER: Duration = Duration::from_secs(45);

/// The list is read every 10 s, and connections are closed that were idle for that long.
const IDLE_CONNECTIONS: Duration = Duration::from_secs(25);

/// What a process may have more, page by page, without having grown: see docs/reliability.md.
const RSS_KIB_MORE_MAX: u64 = 512;
/// A line for each forward and each source or sink that comes and goes.
const LOG_BYTES_EACH_MAX: u64 = 1024;

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
    /// Processes that dockerds have left.
    lost: usize,
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
    let mut random = Random(seed);
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
        for hand in 0..CTR_HANDS {
            hands.push((Box::new(Ctr::new(&world, tally, DOCKER_HANDS + hand)), CTR_EACH));
        }
        hands.push((Box::new(Plain::new(&world, tally, DOCKER_HANDS + CTR_HANDS)), PLAIN_EACH));
        for (thread, (mut hand, most)) in hands.into_iter().enumerate() {
            let (orders, random) = (&orders, random.fork());
            // By its name its panics are known to be nothing that anybody has to see (churn::attempt).
            let named = std::thread::Builder::new().name(churn::HAND.into());
            named.spawn_scoped(scope, move || churn::work(&mut *hand, most, orders, thread, random)).unwrap();
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
        rounds(&world, &orders, &plan, begun + seconds, &record, &panicked, &mut random)
    });
    if interrupted() {
        return Vec::new();
    }
    let took = begun.elapsed();
    let mut wrong = seen.wrong.clone();
    wrong.extend(lock(&panicked).iter().map(|what| format!("the agent did not recover from {what}")));
    report(&world, &orders, &record, &seen, &wrong, took)
}

fn rounds(
    world: &World,
    orders: &Orders,
    plan: &Plan,
    end: Instant,
    record: &Record,
    panicked: &Mutex<Vec<&str>>,
    random: &mut Random,
) -> Seen {
    let mut seen = Seen::default();
    let stop = || interrupted() || !lock(panicked).is_empty();
    // Until everything has come up, and the last agent can be compared with itself; for a short run a little longer.
    let enough = |seen: &Seen| {
        let last = seen.empty.last().map(|usage| usage.pid);
        let samples = seen.empty.iter().filter(|usage| Some(usage.pid) == last).count();
        let now = Instant::now();
        now >= end && samples >= 2 && (record.complete() || now >= end + LONGER)
    };
    while seen.wrong.is_empty() && !stop() && !enough(&seen) {
        orders.give(Pace::Churn);
        let until = Instant::now() + plan.round;
        while Instant::now() < until && !stop() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if stop() {
            break;
        }
        if let Err(differences) = quiet(world, orders, &mut seen, random) {
            eprintln!("--- the agent's last lines:\n{}", tail(&lock(&world.agent).log()));
            explain(world, &differences);
            seen.wrong.extend(differences);
        }
    }
    if !interrupted() {
        orders.give(Pace::Drain);
        orders.wait_rest(REST);
        world.end_lost();
    }
    seen
}

/// Who claims what is there and should not be, and which rules lead to it.
fn explain(world: &World, differences: &[String]) {
    let ports: BTreeSet<&str> =
        differences.iter().filter_map(|text| text.rsplit_once(':')).map(|(_, port)| port).collect();
    let rules = run(&mut world.cni.iptables("iptables-save"));
    for port in ports.into_iter().filter(|port| port.parse::<u16>().is_ok()) {
        eprintln!("--- {port}: {:?}", world.ask(&["explain", port, "--json"]));
        rules.lines().filter(|line| line.contains(port)).for_each(|line| eprintln!("{line}"));
    }
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
    seen.lost += settle_empty(world)?;
    let pid = world.pid();
    let least = seen.empty.iter().filter(|usage| usage.pid == pid).map(|usage| usage.descriptors).min();
    let usage = at_rest(pid, least.unwrap_or_default());
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
    Ok(())
}

/// Once there are no more descriptors than at `least`, or after a while: idle connections to host-switch stay until the next
/// time that its list is read.
fn at_rest(pid: u32, least: usize) -> Usage {
    let end = Instant::now() + IDLE_CONNECTIONS;
    loop {
        let now = Usage::of(pid);
        if now.descriptors <= least || Instant::now() >= end || interrupted() {
            return now;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn report(world: &World, orders: &Orders, record: &Record, seen: &Seen, wrong: &[String], took: Duration) -> Vec<Row> {
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
    rows.push(Row::report(
        "processes that a killed dockerd had left, and that no dockerd knew any more: published while they listened",
        seen.lost.to_string(),
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
    let ok = catch_unwind(AssertUnwindSafe(|| {
        eventually("no problem", || match problems(world) {
            Ok(problems) if problems.is_empty() => Ok(()),
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
        Row::report("CPU time of the agent since it was killed last", format!("{:.2} s", last.cpu_seconds)),
        Row::must(
            "problems that `status` names at the end",
            "none, but for Kubernetes, whose kubeconfig never appears",
            problems(world).map_or_else(|error| error, |problems| format!("{problems:?}").replace("[]", "none")),
            ok.is_ok(),
        ),
    ]
}

fn problems(world: &World) -> Result<Vec<String>, String> {
    let status = world.ask(&["status", "--json"])?;
    let all = status.first().and_then(|status| status["problems"].as_array()).ok_or("no status")?;
    let texts = all.iter().filter_map(|problem| problem.as_str().map(str::to_owned));
    Ok(texts.filter(|problem| !problem.contains("kubernetes")).collect())
}
