//! What the agent has used, and the report.

use std::fs;

use crate::page::ticks;
use crate::support::{descriptors, status_kb};

/// The agent at a moment at which nothing is published.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub pid: u32,
    pub rss_kib: u64,
    pub peak_kib: u64,
    pub descriptors: usize,
    pub threads: u64,
    pub cpu_seconds: f64,
}

impl Usage {
    pub fn of(pid: u32) -> Usage {
        Usage {
            pid,
            rss_kib: status_kb(pid, "VmRSS:"),
            peak_kib: status_kb(pid, "VmHWM:"),
            descriptors: descriptors(pid),
            threads: status_kb(pid, "Threads:"),
            cpu_seconds: cpu_seconds(pid),
        }
    }
}

pub fn cpu_seconds(pid: u32) -> f64 {
    ticks(pid) as f64 / 100.0
}

/// One line of the report.
pub struct Row {
    what: String,
    limit: String,
    measured: String,
    pub missed: bool,
}

impl Row {
    /// What has to hold.
    pub fn must(what: &str, limit: &str, measured: String, holds: bool) -> Row {
        Row { what: what.into(), limit: limit.into(), measured, missed: !holds }
    }

    pub fn report(what: &str, measured: String) -> Row {
        Row { what: what.into(), limit: "–".into(), measured, missed: false }
    }

    pub fn what(&self) -> &str {
        &self.what
    }
}

/// The rows as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from("| what | has to be | was |\n|---|---|---|\n");
    for row in rows {
        let mark = if row.missed { "**missed:** " } else { "" };
        out += &format!("| {} | {} | {mark}{} |\n", row.what, row.limit, row.measured);
    }
    out
}

/// What the figures depend on, without a name or an address of the machine.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let release = read("/proc/sys/kernel/osrelease");
    format!(
        "{} cores of {} (Linux {}), {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("a machine", |(_, name)| name),
        release.trim().split('-').next().unwrap_or_default(),
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
    )
}
