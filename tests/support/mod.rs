//! What the tests share: temporary directories, child processes, network namespaces, engines, an API server, and
//! receivers of documents. Everything cleans up after itself when dropped, on failure too. Nothing here waits for a
//! fixed time: [`eventually`] polls with a deadline and says what it saw.
//!
//! vsock is never opened by a test outside a guest that it booted: [`Agent::start`] refuses such arguments.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

pub mod agent;
#[cfg(feature = "kubernetes")]
pub mod certs;
pub mod cni;
pub mod containerd;
pub mod docker;
pub mod engine_stub;
pub mod host_switch;
#[cfg(feature = "kubernetes")]
pub mod kube_server;
#[cfg(feature = "kubernetes")]
pub mod kubeconfig;
pub mod receiver;
pub mod vm;
pub mod wsl_proxy;

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that needs it all has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until `probe` gives `Ok`, and returns that. Panics with the last `Err` when the deadline has passed.
pub fn eventually<T, E: Debug>(what: &str, probe: impl FnMut() -> Result<T, E>) -> T {
    within(DEADLINE, what, probe)
}

pub fn within<T, E: Debug>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= end => panic!("{what}: not within {limit:?}; last seen: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A number no other test of this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A directory that goes away. Its path is short, since unix sockets live in it.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        let path = std::env::temp_dir().join(format!("rda-{}-{}", std::process::id(), unique()));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process that is killed, by its pid, and reaped.
pub struct Process(pub Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end; the exit code, `None` after a signal.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("the end of a process", || self.0.try_wait().unwrap().ok_or("running")).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end and returns what it printed. Panics, with its messages, when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// A field of `/proc/PID/status` in KiB.
pub fn status_kb(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field}"));
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Open descriptors of a process. The programs keep theirs to themselves: not as root, it is what Linux 6.2 tells as the size of
/// the directory, and 0 before.
pub fn descriptors(pid: u32) -> usize {
    let directory = format!("/proc/{pid}/fd");
    match fs::read_dir(&directory) {
        Ok(entries) => entries.count(),
        Err(_) => fs::metadata(directory).unwrap().len() as usize,
    }
}
