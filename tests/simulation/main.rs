//! The simulation: the reconciler and the policy between simulated sources, sinks and a clock, by seeds, against an
//! independent [`oracle`].
//!
//! `SEEDS=N` tries N histories (10,000 otherwise), `SEED=K` that one alone. A failure prints its seed, the shortest list of
//! steps that was found (all of them with `SHRINK=no`), and what differs. `make mutants` is the test of this test: it breaks the reconciler in ways of
//! which each must be noticed (`mutants/*.patch`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod history;
mod oracle;
mod random;
mod run;
mod shrink;
#[allow(dead_code)]
mod sim;
mod source;
#[allow(dead_code)]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use history::{Setting, Step, describe, history};
use run::Figures;
use shrink::{outcome, shrink, silence_expected_panics};

const SEEDS: u64 = 10_000;

/// A history that failed, and why.
struct Failed {
    seed: u64,
    step: usize,
    why: String,
}

#[test]
fn whatever_happens_every_live_sink_ends_up_with_what_is_published() {
    silence_expected_panics();
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let (first, end) = match number("SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("SEEDS").unwrap_or(SEEDS)),
    };
    let begun = Instant::now();
    match try_all(first, end) {
        Ok(all) => println!(
            "{} seeds: {} steps, {} events, {} documents, {} comparisons, {} simulated hours in {:.1} s",
            end - first,
            all.steps,
            all.events,
            all.documents,
            all.quiet,
            all.time.as_secs() / 3600,
            begun.elapsed().as_secs_f64()
        ),
        Err(failed) => panic!("{}", explain(&failed)),
    }
}

/// Every processor takes the next seed, until one fails.
fn try_all(first: u64, end: u64) -> Result<Figures, Failed> {
    let next = AtomicU64::new(first);
    let over = AtomicBool::new(false);
    let failed = Mutex::new(None);
    let work = || {
        let mut sum = Figures::default();
        while !over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            match outcome(&Setting::of(seed), &history(seed)) {
                Ok(one) => sum.add(one),
                Err((step, why)) => {
                    over.store(true, Ordering::Relaxed);
                    *failed.lock().unwrap() = Some(Failed { seed, step, why });
                }
            }
        }
        sum
    };
    let mut all = Figures::default();
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| all.add(worker.join().unwrap()));
    });
    failed.into_inner().unwrap().map_or(Ok(all), Err)
}

fn explain(failed: &Failed) -> String {
    let seed = failed.seed;
    let setting = Setting::of(seed);
    let whole = history(seed);
    let steps: Vec<Step> =
        if std::env::var("SHRINK").is_ok_and(|n| n == "no") { whole } else { shrink(&setting, whole) };
    let why = outcome(&setting, &steps).map_or_else(|(_, why)| why, |_| failed.why.clone());
    let list: Vec<String> = steps.iter().map(|step| format!("  {}", describe(step, &setting))).collect();
    format!(
        "seed {seed} fails at step {}, in {} steps when cut down: {why}\n{}\nafter\n{}",
        failed.step,
        steps.len(),
        setting.describe(),
        list.join("\n")
    )
}
