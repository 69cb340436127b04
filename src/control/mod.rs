//! The control socket: what the agent knows and does, for scripts and people. docs/control.md has the protocol.
//!
//! One thread serves every client in one poll loop and never waits for any of them. It keeps no port state: what it is asked
//! for it has the agent show ([`Event::Show`], answered with [`Control::show`]), and changes come by [`Control::tell`]. The
//! agent never waits for it either: it puts something into a bounded queue, and raises a sign.
//!
//! | where | what |
//! |---|---|
//! | `listen` | the socket's file, and who may connect |
//! | `server` | the thread: clients, and what the agent is asked for |
//! | `client` | one client: requests in, responses out |
//! | `shared` | what all clients are served from |
//! | `ring` | changes, until all who watch have been told |
//! | `request` | a line into a request |
//! | `document`, `state`, `json` | what the agent shows into lines |

mod client;
mod document;
mod json;
mod listen;
pub mod request;
mod ring;
mod server;
mod shared;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::event::{Event, Report};
use crate::queue::Sender;
use crate::supervisor::spawn;
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

/// What the agent puts in for the thread.
enum Update {
    View(Box<View>),
    Changes(Vec<Change>),
    /// There was no room for so many changes.
    Lost(u64),
}

/// Between the agent and the thread.
struct Link {
    inbox: Mutex<Inbox>,
    /// Written to when the inbox is no longer empty.
    wake: EventFd,
    watched: AtomicBool,
}

/// Updates that the thread has not seen yet, in their order. Not a [`crate::queue`]: what is lost has its place among the
/// others, and a view, of which there is one at a time, always has room.
#[derive(Default)]
struct Inbox {
    updates: Vec<Update>,
    /// Changes in them.
    changes: usize,
    is_over: bool,
}

impl Link {
    fn put(&self, update: Option<Update>) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = inbox.updates.is_empty();
        match update {
            Some(Update::Changes(mut changes)) if inbox.changes + changes.len() > ring::CHANGES_MAX => {
                let all = changes.len();
                // Few, and waited for by who asked for a reset.
                changes.retain(|c| matches!(c.report, Report::StartingOver | Report::StartedOver { .. }));
                let count = u64::try_from(all - changes.len()).unwrap_or(u64::MAX);
                match inbox.updates.last_mut() {
                    Some(Update::Lost(lost)) => *lost += count,
                    _ => inbox.updates.push(Update::Lost(count)),
                }
                if !changes.is_empty() {
                    inbox.updates.push(Update::Changes(changes));
                }
            }
            Some(Update::Changes(changes)) => {
                inbox.changes += changes.len();
                inbox.updates.push(Update::Changes(changes));
            }
            Some(other) => inbox.updates.push(other),
            None => inbox.is_over = true,
        }
        if is_first || inbox.is_over {
            drop(inbox);
            // Fails where so much is written already that it wakes anyway.
            let _ = self.wake.write(1);
        }
    }

    /// What has come, and whether it is the last.
    fn take(&self) -> (Vec<Update>, bool) {
        // Nothing there is an error, too.
        let _ = self.wake.read();
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.changes = 0;
        (std::mem::take(&mut inbox.updates), inbox.is_over)
    }
}

/// The agent's end of the control socket. Where it goes, the socket does.
pub struct Control {
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Opens the socket and starts the thread.
    ///
    /// # Errors
    /// Where the socket cannot be made, or another agent answers there already.
    pub fn start(path: &Path, facts: Facts, events: Sender<Event>) -> io::Result<Control> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let link = Arc::new(Link { inbox: Mutex::default(), wake, watched: AtomicBool::new(false) });
        let server = server::Server::new(listen::open(path)?, link.clone(), events, facts);
        let thread = spawn("control", Box::new(move || server.run()))?;
        Ok(Control { link, thread: Some(thread) })
    }

    /// Whether anybody watches: changes are to be told.
    pub fn is_watched(&self) -> bool {
        self.link.watched.load(Ordering::SeqCst)
    }

    /// Tells those who watch. Never waits.
    pub fn tell(&self, changes: Vec<Change>) {
        if self.is_watched() && !changes.is_empty() {
            self.link.put(Some(Update::Changes(changes)));
        }
    }

    /// Answers [`Event::Show`]. Never waits.
    pub fn show(&self, view: View) {
        self.link.put(Some(Update::View(Box::new(view))));
    }

    /// Tells clients that the agent ends, removes the socket, and hands the thread over to be joined.
    pub fn finish(mut self) -> Option<JoinHandle<()>> {
        self.thread.take()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.link.put(None);
    }
}
