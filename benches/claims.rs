//! Measures what the README claims, and prints it as a table next to the limits that this project has set itself.
//!
//! ```text
//! cargo bench --bench claims                          everything: about ten minutes, as root, docker and socat installed
//! cargo bench --bench claims -- relay size            only these groups
//! cargo bench --bench claims -- --update README.md    and puts the table between the markers in that file
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

use report::Row;

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

struct Wish {
    /// Empty: all of them.
    groups: Vec<String>,
    update: Option<PathBuf>,
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
        Ok(wish) => run(&wish),
        Err(message) => {
            eprintln!("claims: {message}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn read(args: Vec<String>) -> Result<Wish, String> {
    let mut wish = Wish { groups: Vec::new(), update: None };
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--update" {
            let file = args.next().ok_or("--update needs the name of a file")?;
            wish.update = Some(PathBuf::from(file));
        } else if names.contains(&arg.as_str()) {
            wish.groups.push(arg);
        } else {
            return Err(format!("no group {arg:?}; there are {}, and --update FILE", names.join(", ")));
        }
    }
    if let Some(file) = &wish.update {
        if !wish.groups.is_empty() {
            return Err("--update takes the whole table: name no groups".into());
        }
        // Before minutes are spent on it.
        updated(file, "")?;
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
        let written = updated(file, &table)
            .and_then(|text| std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display())));
        if let Err(message) = written {
            eprintln!("claims: {message}");
            return ExitCode::FAILURE;
        }
        eprintln!("claims: updated {}", file.display());
    }
    ExitCode::SUCCESS
}

/// The file's text with the table between the markers.
fn updated(file: &Path, table: &str) -> Result<String, String> {
    const BEGIN: &str = "<!-- bench:begin -->";
    const END: &str = "<!-- bench:end -->";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let missing = || format!("{}: has no {BEGIN} followed by {END}", file.display());
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}
