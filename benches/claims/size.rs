//! The size of the musl binaries, and how many crates are in them.

use std::collections::BTreeSet;
use std::process::Command;

use crate::report::{Row, musl, thousands};
use crate::support::run;

const BYTES_MAX: f64 = 1_400_000.0;
const CRATES_MAX: f64 = 45.0;

pub fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for name in ["rancher-desktop-guestagent", "rancher-desktop-hostagent"] {
        let file = musl(name).metadata().unwrap_or_else(|error| panic!("{name} for musl: {error}: run make musl"));
        let bytes = file.len();
        let claim = format!("Size of `{name}`, static musl binary");
        rows.push(Row::at_most(&claim, BYTES_MAX, "bytes", bytes as f64, format!("{} bytes", thousands(bytes))));
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
