//! Programs: where they are, what they may do, and why one did not do what it was run for.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::PathBuf;

use caps::Capability;

/// Where programs are looked for after the PATH, which may be empty.
const SYSTEM_DIRS: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What a program may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// What any user may.
    None,
    /// Read the kernel's packet filter, as far as the agent may.
    NetAdmin,
}

impl Privileges {
    /// What the agent has to keep, so that its children can have it.
    pub fn capabilities(self) -> &'static [Capability] {
        match self {
            Privileges::None => &[],
            Privileges::NetAdmin => &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW],
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Privileges::None => "none",
            Privileges::NetAdmin => "net-admin",
        }
    }
}

/// A program that can be run.
#[derive(Debug, Clone)]
pub struct Tool {
    pub(super) program: PathBuf,
    pub(super) privileges: Privileges,
    pub(super) launcher: PathBuf,
}

impl Tool {
    /// The program at an absolute path.
    pub fn new(program: PathBuf, privileges: Privileges) -> Tool {
        Tool { program, privileges, launcher: PathBuf::from("/proc/self/exe") }
    }

    /// The first program of that name on the PATH, or where systems keep theirs.
    pub fn find(name: &'static str, privileges: Privileges) -> Result<Tool, ToolError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
        let mut programs = dirs.chain(SYSTEM_DIRS.iter().map(PathBuf::from)).map(|dir| dir.join(name));
        let program = programs.find(|program| program.is_file()).ok_or(ToolError::NotFound { name })?;
        Ok(Tool::new(program, privileges))
    }

    /// With another program than this one as what starts it: where this one is a test.
    pub fn launched_by(self, launcher: PathBuf) -> Tool {
        Tool { launcher, ..self }
    }

    /// For messages: `ctr tasks ls`.
    pub(super) fn shown(&self, args: &[&OsStr]) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        let words: Vec<String> = std::iter::once(&name).chain(args).map(|w| w.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }
}

/// Why a program did not do what it was run for.
#[derive(Debug)]
pub enum ToolError {
    /// There is no such program.
    NotFound {
        /// Its name.
        name: &'static str,
    },
    /// It could not be started.
    Start {
        /// Its command line.
        command: String,
        /// Why.
        error: io::Error,
    },
    /// It took too long, and was killed.
    TimedOut {
        /// Its command line.
        command: String,
    },
    /// It said too much, and was killed.
    TooMuch {
        /// Its command line.
        command: String,
        /// The limit, in bytes.
        bytes: usize,
    },
    /// It ended with another exit code than 0.
    Failed {
        /// Its command line.
        command: String,
        /// Its exit code; `None` after a signal.
        code: Option<i32>,
        /// The beginning of what it said on standard error.
        message: String,
    },
    /// The agent ends.
    Stopped,
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::NotFound { name } => {
                write!(f, "there is no program {name} on the PATH ({:?})", std::env::var_os("PATH").unwrap_or_default())
            }
            ToolError::Start { command, error } => write!(f, "cannot start {command:?}: {error}"),
            ToolError::TimedOut { command } => write!(f, "{command:?} took too long, and was killed"),
            ToolError::TooMuch { command, bytes } => {
                write!(f, "{command:?} printed more than {bytes} bytes, and was killed")
            }
            ToolError::Failed { command, code: Some(code), message } => {
                write!(f, "{command:?} ended with exit code {code}: {}", message.escape_debug())
            }
            ToolError::Failed { command, code: None, message } => {
                write!(f, "{command:?} was ended by a signal: {}", message.escape_debug())
            }
            ToolError::Stopped => f.write_str("the agent ends"),
        }
    }
}

impl std::error::Error for ToolError {}
