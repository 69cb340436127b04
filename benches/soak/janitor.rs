//! Nothing is left behind, whatever ends the program: a process of its own that waits for its end, and then ends, unmounts
//! and removes what has the program's number in its name. What is found in order needs none of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::support::docker::unmount_below;

/// How this program is started as the janitor of another one.
pub const WORD: &str = "__janitor";

const NETNS: &str = "/var/run/netns";

/// The janitor's process. It cleans up when this is dropped, or when this process is gone.
pub struct Janitor(Child);

impl Janitor {
    pub fn start() -> Janitor {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // In a process group of its own: the terminal's SIGINT is not for it.
        command.arg(WORD).arg(std::process::id().to_string()).stdin(Stdio::piped()).process_group(0);
        Janitor(command.spawn().unwrap())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What the janitor does.
pub fn run(owner: &str) {
    let _ = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).thread_block();
    let _ = std::io::stdin().read(&mut [0]);
    let Ok(owner) = owner.parse() else { return };
    let left = Left::of(owner);
    if !left.is_empty() {
        eprintln!("soak: cleaning up: {left}");
        left.remove();
    }
}

/// What there is of a program: processes, mounts, network namespaces and directories.
#[derive(Default)]
pub struct Left {
    processes: BTreeSet<i32>,
    mounts: Vec<PathBuf>,
    namespaces: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (processes, mounts) = (self.processes.len(), self.mounts.len());
        let (namespaces, directories) = (self.namespaces.len(), self.directories.len());
        write!(f, "{processes} processes, {mounts} mounts, {namespaces} namespaces, {directories} directories")?;
        for pid in &self.processes {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line: String = String::from_utf8_lossy(&line).replace('\0', " ").chars().take(100).collect();
            write!(f, "; {line}")?;
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

impl Left {
    /// Of the program with that process id: what `tests/support` names after it.
    pub fn of(owner: u32) -> Left {
        let (mark, start) = (format!("-{owner}-"), format!("rda-{owner}-"));
        let ours = |path: &PathBuf| name(path).starts_with("rda-") && name(path).contains(&mark);
        let temporary = std::env::temp_dir();
        let directories: Vec<PathBuf> =
            entries(&temporary).into_iter().filter(|path| name(path).starts_with(&start)).collect();
        let namespaces: Vec<PathBuf> = entries(Path::new(NETNS)).into_iter().filter(ours).collect();
        let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let places = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
        let mounts: Vec<PathBuf> = places.filter(|at| directories.iter().any(|dir| at.starts_with(dir))).collect();
        // The engine's containers have theirs mounted below its directory.
        let inodes: BTreeSet<u64> =
            namespaces.iter().chain(&mounts).filter_map(|path| fs::metadata(path).ok()).map(|of| of.ino()).collect();
        let prefix = temporary.join(start).display().to_string();
        let processes = processes(owner, &prefix, &inodes);
        Left { processes, mounts, namespaces, directories }
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.namespaces.is_empty() && self.directories.is_empty()
    }

    fn remove(self) {
        for pid in &self.processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let end = Instant::now() + Duration::from_secs(5);
        while self.processes.iter().any(|pid| runs(*pid)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        for path in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", name(path)]).output();
        }
        for dir in &self.directories {
            unmount_below(dir);
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// A zombie waits for its parent, and is nothing that runs.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Those that name the directories, or are in one of the network namespaces, and all that descend from them.
fn processes(owner: u32, prefix: &str, inodes: &BTreeSet<u64>) -> BTreeSet<i32> {
    let (mut parents, mut found) = (BTreeMap::new(), BTreeSet::new());
    for path in entries(Path::new("/proc")) {
        let Ok(pid) = name(&path).parse::<i32>() else { continue };
        if pid.unsigned_abs() == owner || pid.unsigned_abs() == std::process::id() || !runs(pid) {
            continue;
        }
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        parents.insert(pid, parent.unwrap_or_default());
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let inside = fs::metadata(path.join("ns/net")).is_ok_and(|namespace| inodes.contains(&namespace.ino()));
        if inside || String::from_utf8_lossy(&line).contains(prefix) {
            found.insert(pid);
        }
    }
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, up)| found.contains(up) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}
