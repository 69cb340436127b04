//! The size of the musl binaries, and how many crates are in them.

use std::collections::BTreeSet;
use std::process::Command;

use crate::report::{Program, Row, musl, thousands};
use crate::support::run;

/// The limits of `scripts/musl.sh`.
const BYTES_MAX: f64 = 1_480_000.0;
const SMALL_BYTES_MAX: f64 = 940_000.0;
const CRATES_MAX: f64 = 45.0;

/// The agent that is measured, whichever it is.
pub fn of_agent() -> Row {
    let bytes = Program::agent().path.metadata().map_or(0, |file| file.len());
    Row::at_most("Size of the program", BYTES_MAX, "bytes", bytes as f64, format!("{} bytes", thousands(bytes)))
}

pub fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    let programs = [
        ("rancher-desktop-guestagent", "static musl binary", BYTES_MAX),
        ("../small/rancher-desktop-guestagent", "static musl binary, without Kubernetes", SMALL_BYTES_MAX),
        ("rancher-desktop-hostagent", "static musl binary", BYTES_MAX),
    ];
    for (path, how, bytes_max) in programs {
        let file = musl(path).metadata().unwrap_or_else(|error| panic!("{path} for musl: {error}: run make musl"));
        let bytes = file.len();
        let claim = format!("Size of `{}`, {how}", path.trim_start_matches("../small/"));
        rows.push(Row::at_most(&claim, bytes_max, "bytes", bytes as f64, format!("{} bytes", thousands(bytes))));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let tree = run(Command::new(cargo).args(tree).current_dir(env!("CARGO_MANIFEST_DIR")));
    // `name v1.2.3`, and for some what kind they are and where they come from.
    let crates: BTreeSet<Vec<&str>> =
        tree.lines().filter(|line| !line.is_empty()).map(|line| line.split(' ').take(2).collect()).collect();
    let measured = format!("{} crates", crates.len());
    let claim = "Crates in the build, this one included (`cargo tree -e normal`)";
    rows.push(Row::at_most(claim, CRATES_MAX, "", crates.len() as f64, measured));
    rows
}
