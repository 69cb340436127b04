//! Programs that are run to their end, alone or side by side, for what they print.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::{Child, END_INTERVAL, Tool, ToolError, drain};

/// Bounds of a run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest it may take.
    pub timeout: Duration,
    /// The most it may print, in bytes.
    pub output_bytes_max: usize,
}

/// A program that runs to its end, whose output is wanted as a whole.
pub struct Run {
    child: Child,
    output: Vec<u8>,
    deadline: Instant,
    limits: Limits,
}

impl Run {
    /// Starts it.
    pub fn start(tool: &Tool, args: &[impl AsRef<OsStr>], limits: Limits) -> Result<Run, ToolError> {
        let child = Child::start(tool, args)?;
        Ok(Run { child, output: Vec::new(), deadline: Instant::now() + limits.timeout, limits })
    }

    /// What to wait for before the next [`Run::advance`], besides [`Run::deadline`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.child.fds()
    }

    /// When to call [`Run::advance`] again, whatever its pipes do.
    pub fn deadline(&self, now: Instant) -> Instant {
        if self.fds().next().is_some() { self.deadline } else { self.deadline.min(now + END_INTERVAL) }
    }

    /// Takes what there is. `Some`: it is over, with all that it printed, or with why that is not to be had.
    pub fn advance(&mut self, now: Instant) -> Option<Result<Vec<u8>, ToolError>> {
        let (output, most) = (&mut self.output, self.limits.output_bytes_max);
        // One chunk over the limit is enough to know.
        drain(&mut self.child.stdout, |bytes| {
            if output.len() <= most {
                output.extend_from_slice(bytes);
            }
        });
        self.child.drain_stderr();
        if self.output.len() > most {
            return Some(Err(ToolError::TooMuch { command: self.child.command.clone(), bytes: most }));
        }
        if self.child.fds().next().is_none() {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Some(Ok(std::mem::take(&mut self.output))),
                Ok(Some(status)) => return Some(Err(self.child.failed(status))),
                Ok(None) => {}
                Err(error) => return Some(Err(ToolError::Start { command: self.child.command.clone(), error })),
            }
        }
        (now >= self.deadline).then(|| Err(ToolError::TimedOut { command: self.child.command.clone() }))
    }
}

enum Slot {
    Running(Box<Run>),
    Over(Result<Vec<u8>, ToolError>),
}

/// Programs that run side by side.
pub struct Runs(Vec<Slot>);

impl Runs {
    /// Some may not even have started.
    pub fn new(runs: Vec<Result<Run, ToolError>>) -> Runs {
        let slot = |run: Result<Run, _>| run.map_or_else(|e| Slot::Over(Err(e)), |run| Slot::Running(run.into()));
        Runs(runs.into_iter().map(slot).collect())
    }

    /// What to wait for before the next [`Runs::advance`], besides [`Runs::deadline`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running().flat_map(Run::fds)
    }

    /// When to call [`Runs::advance`] again, whatever their pipes do. `None`: all have ended.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.running().map(|run| run.deadline(now)).min()
    }

    fn running(&self) -> impl Iterator<Item = &Run> {
        self.0.iter().filter_map(|slot| if let Slot::Running(run) = slot { Some(&**run) } else { None })
    }

    /// Takes what there is.
    pub fn advance(&mut self, now: Instant) {
        for slot in &mut self.0 {
            let Slot::Running(run) = slot else { continue };
            if let Some(result) = run.advance(now) {
                *slot = Slot::Over(result);
            }
        }
    }

    /// What became of each. Those that still run are killed.
    pub fn results(self) -> Vec<Result<Vec<u8>, ToolError>> {
        let result = |slot| if let Slot::Over(result) = slot { result } else { Err(ToolError::Stopped) };
        self.0.into_iter().map(result).collect()
    }
}
