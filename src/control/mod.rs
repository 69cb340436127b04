//! The control socket: what the agent knows and does, for scripts and people. docs/control.md has the protocol.
//!
//! One thread serves every client in one poll loop and never waits for any of them. It keeps no port state: what it is asked
//! for it has the agent show ([`Event::Show`], answered with [`Control::show`]), and changes come by [`Control::tell`]. The
//! agent never waits for it either: both put something into a bounded queue, and raise a sign.

use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::SystemTime;

use crate::event::Event;
use crate::queue::Sender;
use crate::view::{Change, View};

/// What the socket tells of the agent that does not change.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When the agent was started.
    pub started: SystemTime,
    /// Its command line, without the program.
    pub arguments: Vec<String>,
    /// Its `DOCKER_HOST`, where it watches docker.
    pub docker_host: Option<String>,
    /// The rules file.
    pub rules_file: Option<PathBuf>,
    /// The names of its sinks, in the order of their ids.
    pub sinks: Vec<String>,
}

/// The agent's end of the control socket.
pub struct Control {}

impl Control {
    /// Opens the socket and starts the thread.
    ///
    /// # Errors
    /// Where the socket cannot be made, or another agent answers there already.
    pub fn start(_path: &PathBuf, _facts: Facts, _events: Sender<Event>) -> io::Result<Control> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether anybody watches: changes are to be told.
    pub fn is_watched(&self) -> bool {
        false
    }

    /// Tells those who watch. Never waits.
    pub fn tell(&self, _changes: Vec<Change>) {}

    /// Answers [`Event::Show`]. Never waits.
    pub fn show(&self, _view: View) {}

    /// Tells clients that the agent ends, removes the socket, and hands the thread over to be joined.
    pub fn finish(self) -> Option<JoinHandle<()>> {
        None
    }
}
