//! Faults on the real thing: dockerd, containerd, the host end and the agent in network namespaces of their own, containers
//! that come and go at random, and everything killed, stopped, filled and cut off meanwhile. Prints what has to hold and
//! what was, and exits with 1 where something did not.
//!
//! ```text
//! cargo bench --bench soak                                    everything, ten minutes of churn; as root
//! cargo bench --bench soak -- --seconds 60 --seed 7           less of it, and the same decisions as another run
//! cargo bench --bench soak -- churn descriptors               only these parts
//! cargo bench --bench soak -- --update docs/reliability.md    and puts the report between the markers in that file
//! ```
//!
//! The seed decides what is started, removed and injected, and how long it lasts; when that is, depends on the machine too.
//! `make soak` installs what is needed first. Nothing opens a vsock connection, and nothing changes the machine's clock.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

#[path = "../tests/simulation/random.rs"]
mod chance;
#[path = "soak/churn.rs"]
mod churn;
#[path = "soak/clock.rs"]
mod clock;
#[path = "soak/engine.rs"]
mod engine;
#[path = "soak/faults.rs"]
mod faults;
#[path = "soak/figures.rs"]
mod figures;
#[path = "soak/janitor.rs"]
mod janitor;
#[path = "soak/limits.rs"]
mod limits;
#[path = "shared/page.rs"]
mod page;
#[path = "soak/random.rs"]
mod random;
#[path = "soak/run.rs"]
mod run;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "soak/truth.rs"]
mod truth;
#[path = "soak/world.rs"]
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use figures::Row;
use janitor::{Janitor, Left};

type Part = fn(&Wish) -> Vec<Row>;

/// Parts of it, in the order of the report.
const PARTS: &[(&str, Part)] = &[
    ("descriptors", |_| limits::descriptors()),
    ("memory", |_| limits::memory()),
    ("clock", |_| clock::jumps()),
    ("address", |_| limits::address()),
    ("churn", |wish| run::churn(wish.seconds, wish.seed)),
];

const SECONDS: u64 = 600;
const EXIT_USAGE: u8 = 2;
const EXIT_INTERRUPTED: u8 = 130;

/// What the markers of the page are called.
const MARKER: &str = "soak";

/// SIGINT or SIGTERM: end, in order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub struct Wish {
    seconds: Duration,
    seed: u64,
    /// Empty: all of them.
    parts: Vec<String>,
    update: Option<PathBuf>,
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [janitor::WORD, owner] => {
            janitor::run(owner);
            return ExitCode::SUCCESS;
        }
        [world::SWITCH_WORD, address] => {
            world::serve_switch(address);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    // `cargo bench` says so; `cargo test --all-targets`, which runs this program too, does not.
    if !args.iter().any(|arg| arg == "--bench" || arg == "--seconds") {
        eprintln!("soak: nothing done: this is for cargo bench, or say --seconds");
        return ExitCode::SUCCESS;
    }
    args.retain(|arg| arg != "--bench");
    match read(args) {
        Ok(wish) => soak(&wish),
        Err(message) => {
            eprintln!("soak: {message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn read(args: Vec<String>) -> Result<Wish, String> {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs());
    let mut wish = Wish { seconds: Duration::from_secs(SECONDS), seed, parts: Vec::new(), update: None };
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seconds" => {
                wish.seconds = Duration::from_secs(value()?.parse().map_err(|_| "--seconds needs a number")?)
            }
            "--seed" => wish.seed = value()?.parse().map_err(|_| "--seed needs a number")?,
            "--update" => wish.update = Some(PathBuf::from(value()?)),
            part if names.contains(&part) => wish.parts.push(arg),
            _ => return Err(format!("no part {arg:?}; there are {}", names.join(", "))),
        }
    }
    if let Some(file) = &wish.update {
        if !wish.parts.is_empty() {
            return Err("--update takes the whole report: name no parts".into());
        }
        // Before minutes are spent on it.
        page::updated(file, MARKER, "")?;
    }
    Ok(wish)
}

fn soak(wish: &Wish) -> ExitCode {
    // Children start with an empty mask of their own.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().unwrap();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                // A second one: at once, and the janitor cleans up.
                std::process::exit(i32::from(EXIT_INTERRUPTED));
            }
            eprintln!("soak: ends, and cleans up");
        }
    });
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // `tests/support` panics where a test would fail; here an engine has just been killed.
        if std::thread::current().name() != Some(churn::HAND) {
            usual(panic);
        }
    }));
    let janitor = Janitor::start();
    eprintln!("soak: seed {}, {} s of churn", wish.seed, wish.seconds.as_secs());
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, part) in PARTS {
        if interrupted() || !(wish.parts.is_empty() || wish.parts.iter().any(|wanted| wanted == name)) {
            continue;
        }
        eprintln!("{name}:");
        let begun = Instant::now();
        // A panic has been printed, and has unwound past everything that cleans up.
        match std::panic::catch_unwind(|| part(wish)) {
            Ok(more) => rows.extend(more),
            Err(_) => failed.push((*name).to_owned()),
        }
        eprintln!("{name}: took {:.0} s", begun.elapsed().as_secs_f64());
    }
    rows.push(left_behind());
    drop(janitor);
    let how = if cfg!(debug_assertions) { "test" } else { "bench" };
    let command = format!("cargo {how} --bench soak -- --seconds {} --seed {}", wish.seconds.as_secs(), wish.seed);
    let agent = support::agent::program();
    let agent = if agent.components().any(|part| part.as_os_str().to_string_lossy().contains("musl")) {
        "the static musl binary"
    } else {
        "cargo's own build"
    };
    let report =
        format!("`{command}`, the agent being {agent}, on {}:\n\n{}", figures::machine(), figures::table(&rows));
    println!("{report}");
    if interrupted() {
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    failed.extend(rows.iter().filter(|row| row.missed).map(|row| row.what().to_owned()));
    if let Some(Err(message)) = wish.update.as_ref().filter(|_| failed.is_empty()).map(|file| {
        let text = page::updated(file, MARKER, &report)?;
        std::fs::write(file, text).map_err(|error| error.to_string())
    }) {
        failed.push(message);
    }
    if failed.is_empty() {
        eprintln!("soak: passed");
        return ExitCode::SUCCESS;
    }
    eprintln!("soak: FAILED:\n  {}", failed.join("\n  "));
    ExitCode::FAILURE
}

/// What everything that was dropped has left. What the kernel and the shims still end gets a moment.
fn left_behind() -> Row {
    let end = Instant::now() + Duration::from_secs(10);
    let mut left = Left::of(std::process::id());
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        left = Left::of(std::process::id());
    }
    Row::must("left behind at the end", "nothing", left.to_string(), left.is_empty())
}
