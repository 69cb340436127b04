//! Programs that sources run: found once, started clean, bounded in time and output, and never left behind.
//!
//! A child starts as this very program, which asks the kernel to be killed when the agent dies (`PR_SET_PDEATHSIG`),
//! gives up the privileges that its job does not need and every descriptor but its pipes, and becomes the other program: by
//! its absolute path, without environment, in `/`. Nothing of it goes through a shell. A child that is dropped is killed and reaped, with what it
//! has started itself: it may be a script around the program, and has a process group of its own for that.

mod run;
mod tool;

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

pub use self::run::{Limits, Run, Runs};
pub use self::tool::{Privileges, Tool, ToolError};
use crate::privileges;

/// The first argument of this program as a child that is about to become another one.
const MARK: &str = "__child";

/// Bytes of what a child says on standard error that are kept.
const MESSAGE_BYTES_MAX: usize = 512;

/// Between looks whether a child that has closed its pipes has ended.
const END_INTERVAL: Duration = Duration::from_millis(1);

/// The longest wait for the end of a child that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A program that runs, with its output on pipes that never block.
pub struct Child {
    process: std::process::Child,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    command: String,
    message: Vec<u8>,
    /// Bytes on standard error so far.
    said: usize,
    /// Its process id, and its group's, may be another's by now.
    reaped: bool,
}

impl Child {
    /// Starts it. Its output is to be read, or it will wait.
    pub fn start(tool: &Tool, args: &[impl AsRef<OsStr>]) -> Result<Child, ToolError> {
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        let shown = tool.shown(&args);
        let start = || {
            let mut process = Command::new(&tool.launcher)
                .arg(MARK)
                .arg(std::process::id().to_string())
                .arg(tool.privileges.as_str())
                .arg(&tool.program)
                .args(&args)
                .env_clear()
                .current_dir("/")
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
            let child =
                Child { process, stdout, stderr, command: shown.clone(), message: Vec::new(), said: 0, reaped: false };
            for fd in child.fds() {
                fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
            Ok(child)
        };
        start().map_err(|error| ToolError::Start { command: shown.clone(), error })
    }

    /// Its standard output, where a read that finds nothing is `WouldBlock`. To be taken once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// Those of its pipes that are held here and still open.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let stdout = self.stdout.iter().map(AsFd::as_fd);
        stdout.chain(self.stderr.iter().map(AsFd::as_fd))
    }

    /// Takes what it has said on standard error, and keeps the beginning: a full pipe would make it wait. Returns how many
    /// bytes that were so far.
    pub fn drain_stderr(&mut self) -> usize {
        let Child { stderr, message, said, .. } = self;
        drain(stderr, |bytes| {
            let room = MESSAGE_BYTES_MAX - message.len();
            message.extend(bytes.iter().take(room));
            *said = said.saturating_add(bytes.len());
        });
        *said
    }

    /// The beginning of what it has said on standard error.
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.message).trim().to_owned()
    }

    /// How it ended, when it has closed its output; it is given a moment to end.
    pub fn outcome(mut self) -> ToolError {
        let end = Instant::now() + KILL_TIMEOUT;
        loop {
            // Its last words are in the pipe by the time it has ended.
            let status = self.try_wait();
            self.drain_stderr();
            match status {
                Ok(Some(status)) => return self.failed(status),
                Ok(None) if Instant::now() < end => std::thread::sleep(END_INTERVAL),
                Ok(None) => return ToolError::TimedOut { command: self.command.clone() },
                Err(error) => return ToolError::Start { command: self.command.clone(), error },
            }
        }
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.process.try_wait()?;
        self.reaped |= status.is_some();
        Ok(status)
    }

    fn failed(&self, status: ExitStatus) -> ToolError {
        ToolError::Failed { command: self.command.clone(), code: status.code(), message: self.message() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        if let Ok(pid) = i32::try_from(self.process.id()) {
            // An error means that nothing of it runs.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let end = Instant::now() + KILL_TIMEOUT;
        while matches!(self.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                log::error!("killed, but it does not end pid={} command={:?}", self.process.id(), self.command);
                return;
            }
            std::thread::sleep(END_INTERVAL);
        }
    }
}

/// Reads what is there, up to a pipe's fill: a child that writes as fast as we read must not hold us. Closes the pipe
/// at its end.
fn drain<R: Read>(pipe: &mut Option<R>, mut take: impl FnMut(&[u8])) {
    let mut chunk = [0; 16 * 1024];
    for _ in 0..4 {
        let Some(open) = pipe else { return };
        match open.read(&mut chunk) {
            Ok(n) if n > 0 => take(chunk.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => *pipe = None,
        }
    }
}

/// Becomes the program that this process was started to become. Returns only if it was not (`None`), or could not.
pub fn become_program(words: impl IntoIterator<Item = OsString>) -> Option<String> {
    let mut words = words.into_iter();
    if words.next()? != MARK {
        return None;
    }
    privileges::close_inherited();
    let parent: Option<i32> = words.next().and_then(|word| word.to_str()?.parse().ok());
    let keep = words.next();
    let keep =
        [Privileges::None, Privileges::NetAdmin].into_iter().find(|p| Some(OsStr::new(p.as_str())) == keep.as_deref());
    let (Some(parent), Some(keep), Some(program)) = (parent, keep, words.next()) else {
        return Some(format!("{MARK} is for the agent's own use"));
    };
    if let Err(error) = privileges::drop_to(keep.capabilities(), &[]) {
        return Some(error.to_string());
    }
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return Some(format!("cannot tie itself to the agent: {errno}"));
    }
    // It may have died before the kernel was asked to tell.
    if getppid().as_raw() != parent {
        return Some("the agent is gone".into());
    }
    let error = Command::new(&program).args(words).exec();
    Some(format!("cannot run {}: {error}", program.to_string_lossy()))
}
