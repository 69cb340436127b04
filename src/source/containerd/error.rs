//! Why a session of the containerd source ended, with what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::parse::ParseError;
use crate::source::child::ToolError;

/// Why a session ended.
#[derive(Debug)]
pub enum ContainerdError {
    /// Nobody answers at the socket.
    Socket {
        /// Where.
        socket: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// There is no program where `--ctr` says.
    NoProgram(PathBuf),
    /// `ctr` could not be found or run, ended, or did not do what it was asked for.
    Ctr(ToolError),
    /// A list that `ctr` printed could not be read.
    List {
        /// Which.
        list: String,
        /// What is wrong with it.
        error: ParseError,
    },
    /// The events could not be followed.
    Events(String),
    /// The agent ends.
    Stopped,
}

impl fmt::Display for ContainerdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContainerdError::Socket { socket, error } => {
                let remedy = match error.kind() {
                    ErrorKind::PermissionDenied => "run as the socket's owner, which is root as a rule",
                    _ => "is it running? -containerdSock PATH names another socket",
                };
                write!(f, "cannot connect to containerd at {}: {error} ({remedy})", socket.display())
            }
            ContainerdError::NoProgram(path) => {
                write!(f, "there is no program at {} (--ctr PATH names containerd's ctr)", path.display())
            }
            ContainerdError::Ctr(error @ ToolError::NotFound { .. }) => {
                write!(f, "{error}: install containerd's ctr, or name it with --ctr PATH")
            }
            ContainerdError::Ctr(error) => error.fmt(f),
            ContainerdError::List { list, error } => write!(f, "what ctr printed for {list}: {error}"),
            ContainerdError::Events(what) => write!(f, "ctr events {what}"),
            ContainerdError::Stopped => f.write_str("the agent ends"),
        }
    }
}

impl std::error::Error for ContainerdError {}

impl From<ToolError> for ContainerdError {
    fn from(error: ToolError) -> ContainerdError {
        ContainerdError::Ctr(error)
    }
}
