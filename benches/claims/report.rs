//! Figures: samples and their percentiles, rows of the table, and the machine they were taken on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

/// One line of the table.
pub struct Row {
    claim: String,
    limit: Option<String>,
    /// Of those with a limit: less is better.
    value: Option<f64>,
    measured: String,
    missed: bool,
}

impl Row {
    /// A figure that may be at most `max`, and how it is shown.
    pub fn at_most(claim: &str, max: f64, unit: &str, value: f64, measured: String) -> Row {
        let limit = if max.fract() == 0.0 { thousands(max as u64) } else { max.to_string() };
        Row {
            claim: claim.into(),
            limit: Some(format!("≤ {limit} {unit}").trim_end().to_owned()),
            value: Some(value),
            measured,
            missed: value > max,
        }
    }

    /// A figure without a limit.
    pub fn report(claim: &str, measured: String) -> Row {
        Row { claim: claim.into(), limit: None, value: None, measured, missed: false }
    }
}

/// The rows as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from("| claim | limit | measured |\n|---|---|---|\n");
    for row in rows {
        let limit = row.limit.as_deref().unwrap_or("–");
        let mark = if row.missed { "**missed:** " } else { "" };
        out += &format!("| {} | {limit} | {mark}{} |\n", row.claim, row.measured);
    }
    out
}

/// The same rows of two agents, side by side: without those that hold no figure to compare. Where the other one could not be
/// measured, that is said.
pub fn comparison(rows: &[(Option<Row>, Row)]) -> String {
    let mut out = String::from("| claim | the other | this agent | this / the other |\n|---|---|---|---|\n");
    for (other, this) in rows {
        let Some(value) = this.value else { continue };
        let ratio = match other.as_ref().and_then(|other| other.value) {
            Some(other) if other > 0.0 => format!("{:.2}", value / other),
            _ => "–".to_owned(),
        };
        let shown = other.as_ref().map_or("not measured", |other| &other.measured);
        out += &format!("| {} | {shown} | {} | {ratio} |\n", this.claim, this.measured);
    }
    out
}

/// Measurements of one thing.
pub struct Samples(Vec<f64>);

impl Samples {
    /// At least one.
    pub fn new(mut values: Vec<f64>) -> Samples {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Samples(values)
    }

    /// By the nearest rank: always one of the samples.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub fn p99(&self) -> f64 {
        self.percentile(99.0)
    }

    pub fn max(&self) -> f64 {
        self.percentile(100.0)
    }

    pub fn n(&self) -> usize {
        self.0.len()
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// KiB, as the kernel counts memory, in megabytes.
pub fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

/// What the figures depend on, without a name or an address of the machine.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map_or("unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    format!(
        "Measured on {cores} cores of a machine with {} ({:.1} GB of memory, Linux {}) on {}.",
        field(&read("/proc/cpuinfo"), "model name"),
        megabytes(kib) / 1000.0,
        release.trim().split('-').next().unwrap_or_default(),
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
    )
}

/// A program to be measured, and what kind of build it is.
pub struct Program {
    pub path: PathBuf,
    pub build: &'static str,
}

/// What [`Program::agent`] is in place of this crate's own.
static OTHER: Mutex<Option<PathBuf>> = Mutex::new(None);

impl Program {
    /// From now on it is another agent that is measured, or this one again.
    pub fn measure_other(path: Option<&Path>) {
        *OTHER.lock().unwrap() = path.map(Path::to_owned);
    }

    pub fn agent() -> Program {
        if let Some(path) = OTHER.lock().unwrap().clone() {
            return Program { path, build: "the other" };
        }
        Program::find("rancher-desktop-guestagent", env!("CARGO_BIN_EXE_rancher-desktop-guestagent"))
    }

    pub fn hostagent() -> Program {
        Program::find("rancher-desktop-hostagent", env!("CARGO_BIN_EXE_rancher-desktop-hostagent"))
    }

    fn find(name: &str, release: &str) -> Program {
        let musl = musl(name);
        match musl.metadata().and_then(|m| m.modified()) {
            Ok(built) => {
                if newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).is_some_and(|changed| changed > built) {
                    eprintln!("  {name}: the musl binary is older than its sources: run make musl");
                }
                Program { path: musl, build: "static musl binary" }
            }
            Err(_) => Program { path: release.into(), build: "release build with glibc" },
        }
    }
}

/// Where `make musl` puts a binary.
pub fn musl(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-musl/release").join(name)
}

/// When a file below `dir` was last changed.
fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries
        .filter_map(|entry| match entry.path() {
            path if path.is_dir() => newest(&path),
            path => path.metadata().and_then(|m| m.modified()).ok(),
        })
        .max()
}
