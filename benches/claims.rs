//! Measures what the README claims, and prints it as a table next to the limits that this project has set itself.
//!
//! ```text
//! cargo bench --bench claims                          everything: about ten minutes, as root, docker and socat installed
//! cargo bench --bench claims -- relay size            only these groups
//! cargo bench --bench claims -- --update README.md    and puts the table between the markers in that file
//! cargo bench --bench claims -- --base PATH docker    the same work by another agent that takes the same flags, and ratios
//! ```
//!
//! `make bench` installs and builds what is needed first. The processes that are measured are the static musl binaries
//! where they have been built, and those that `cargo bench` has built itself where not: the table says which. A limit
//! holds for the first figure of its row. One that is missed is marked and is no error; something that could not be
//! measured is one. Traffic goes over loopback or inside network namespaces of the benchmark's own, and nothing here
//! opens a vsock connection.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

#[path = "claims/containerd.rs"]
mod containerd;
#[path = "claims/control.rs"]
mod control;
#[path = "claims/docker.rs"]
mod docker;
#[path = "claims/host_switch.rs"]
mod host_switch;
#[path = "claims/idle.rs"]
mod idle;
#[cfg(feature = "kubernetes")]
#[path = "claims/kubernetes.rs"]
mod kubernetes;
#[path = "claims/nat.rs"]
mod nat;
#[path = "claims/net.rs"]
mod net;
#[path = "shared/page.rs"]
mod page;
#[path = "claims/reconciler.rs"]
mod reconciler;
#[path = "claims/relay.rs"]
mod relay;
#[path = "claims/report.rs"]
mod report;
#[path = "claims/size.rs"]
mod size;
#[path = "claims/sockets.rs"]
mod sockets;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use report::{Program, Row};

type Measure = fn() -> Vec<Row>;

/// What can be measured on its own, in the order of the table.
const GROUPS: &[(&str, Measure)] = &[
    ("docker", docker::measure),
    ("containerd", containerd::measure),
    ("nat", nat::measure),
    ("sockets", sockets::measure),
    #[cfg(feature = "kubernetes")]
    ("kubernetes", kubernetes::measure),
    ("host-switch", host_switch::measure),
    ("control", control::measure),
    ("reconciler", reconciler::measure),
    ("relay", relay::measure),
    ("idle", idle::measure),
    ("size", size::measure),
];

const EXIT_USAGE: u8 = 2;

/// What the markers of the page are called.
const MARKER: &str = "bench";

/// Groups that another agent can be measured in: it is run as a program, and only what is seen from outside counts.
const COMPARED: &[&str] = &["docker", "containerd", "nat", "sockets", "kubernetes", "host-switch", "idle"];

struct Wish {
    /// Empty: all of them.
    groups: Vec<String>,
    update: Option<PathBuf>,
    base: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = sockets::hold_connections(&args) {
        return code;
    }
    // `cargo bench` says so; `cargo test --all-targets`, which runs this program too, does not.
    if !args.iter().any(|arg| arg == "--bench") {
        eprintln!("claims: nothing measured: this is for cargo bench");
        return ExitCode::SUCCESS;
    }
    args.retain(|arg| arg != "--bench");
    match read(args) {
        Ok(wish) => match &wish.base {
            Some(base) => compare(base, &wish.groups),
            None => run(&wish),
        },
        Err(message) => {
            eprintln!("claims: {message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn read(args: Vec<String>) -> Result<Wish, String> {
    let mut wish = Wish { groups: Vec::new(), update: None, base: None };
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--update" {
            let file = args.next().ok_or("--update needs the name of a file")?;
            wish.update = Some(PathBuf::from(file));
        } else if arg == "--base" {
            let program = args.next().ok_or("--base needs the path of a program")?;
            // Programs are started in other directories.
            let program = std::fs::canonicalize(&program).map_err(|error| format!("{program}: {error}"))?;
            support::agent::compare_with(&program)?;
            wish.base = Some(program);
        } else if names.contains(&arg.as_str()) {
            wish.groups.push(arg);
        } else {
            return Err(format!("no group {arg:?}; there are {}, --update FILE, and --base PATH", names.join(", ")));
        }
    }
    if let Some(file) = &wish.update {
        if !wish.groups.is_empty() {
            return Err("--update takes the whole table: name no groups".into());
        }
        // Before minutes are spent on it.
        page::updated(file, MARKER, "")?;
    }
    if wish.base.is_some() {
        if wish.update.is_some() {
            return Err("--base and --update do not go together".into());
        }
        if let Some(group) = wish.groups.iter().find(|group| !COMPARED.contains(&group.as_str())) {
            return Err(format!("--base compares {}, not {group}", COMPARED.join(", ")));
        }
    }
    Ok(wish)
}

fn run(wish: &Wish) -> ExitCode {
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for &(name, measure) in GROUPS {
        if !wish.groups.is_empty() && !wish.groups.iter().any(|group| group == name) {
            continue;
        }
        eprintln!("{name}:");
        let begun = Instant::now();
        // A panic has been printed, and has unwound past everything that cleans up.
        match std::panic::catch_unwind(measure) {
            Ok(more) => rows.extend(more),
            Err(_) => failed.push(name),
        }
        eprintln!("{name}: took {:.0} s", begun.elapsed().as_secs_f64());
    }
    let table = format!("{}\n\n{}", report::machine(), report::table(&rows));
    println!("{table}");
    if !failed.is_empty() {
        eprintln!("claims: could not be measured: {}", failed.join(", "));
        return ExitCode::FAILURE;
    }
    if let Some(file) = &wish.update {
        let written = page::updated(file, MARKER, &table)
            .and_then(|text| std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display())));
        if let Err(message) = written {
            eprintln!("claims: {message}");
            return ExitCode::FAILURE;
        }
        eprintln!("claims: updated {}", file.display());
    }
    ExitCode::SUCCESS
}

/// Each group by the other agent and then by this one. What the other one cannot do is said, and is no error.
fn compare(base: &Path, groups: &[String]) -> ExitCode {
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    let compared = GROUPS.iter().filter(|(name, _)| COMPARED.contains(name));
    for &(name, measure) in compared.filter(|(name, _)| groups.is_empty() || groups.iter().any(|group| group == name)) {
        eprintln!("{name}, by {}:", base.display());
        Program::measure_other(Some(base));
        let other = std::panic::catch_unwind(measure);
        Program::measure_other(None);
        eprintln!("{name}, by this agent:");
        match std::panic::catch_unwind(measure) {
            Ok(this) => {
                let mut other = other.unwrap_or_default().into_iter();
                rows.extend(this.into_iter().map(|row| (other.next(), row)));
            }
            Err(_) => failed.push(name),
        }
    }
    Program::measure_other(Some(base));
    let other = size::of_agent();
    Program::measure_other(None);
    rows.push((Some(other), size::of_agent()));
    println!("{}\n\n{}", report::machine(), report::comparison(&rows));
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("claims: could not be measured: {}", failed.join(", "));
    ExitCode::FAILURE
}
