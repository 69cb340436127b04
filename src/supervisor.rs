//! Keeps source threads going: runs each in its own named thread, and starts it again after a failure.
//!
//! A source never gives up: an engine that is not there yet is tried again, at most [`backoff::LONGEST`] apart.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::backoff;
use crate::event::{Event, Source};
use crate::queue::Sender;
use crate::stop::Stop;

/// Stack of every thread of ours, in bytes. Only what is touched counts as memory. A debug build needs over half of it for
/// JSON nested as deeply as serde_json lets it be.
pub const STACK_BYTES: usize = 256 * 1024;

/// Starts a thread of ours. What it does comes boxed, so that the code that starts threads is there once.
pub fn spawn(name: &str, run: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}

/// What a source's thread has to do with: where its events go, and when it is to end.
#[derive(Clone)]
pub struct Context {
    /// Into the agent's channel. A full channel makes the source wait, and what it watches with it.
    pub events: Sender<Event>,
    /// Raised when the agent ends.
    pub stop: Stop,
}

impl Context {
    /// Sends an event; `false` when the agent has gone.
    pub fn send(&self, event: Event) -> bool {
        self.events.send(event).is_ok()
    }
}

/// A thread with the sign that ends it.
pub struct Supervised {
    /// Ends the thread.
    pub stop: Stop,
    /// To be joined.
    pub thread: JoinHandle<()>,
}

/// Runs `session` again and again in a thread named after the source. A session returns when it lost what it
/// watches, with whether it ever had a complete view (then the next attempt comes soon) and the reason for people.
pub fn supervise<S, E>(source: Source, context: Context, mut session: S) -> io::Result<Supervised>
where
    S: FnMut(&Context) -> (bool, E) + Send + 'static,
    E: std::fmt::Display,
{
    let stop = context.stop.clone();
    let run = move || {
        let mut failures = 0;
        loop {
            let (was_healthy, error) = session(&context);
            if context.stop.is_raised() {
                return;
            }
            failures = if was_healthy { 1 } else { failures + 1 };
            let reason = error.to_string();
            log::debug!("source session ended source={source} failures={failures} reason={reason:?}");
            let lost = Event::SourceLost { source, reason };
            if !context.send(lost) || context.stop.wait(backoff::wait_after(failures)) {
                return;
            }
        }
    };
    let thread = spawn(source.as_str(), Box::new(run))?;
    Ok(Supervised { stop, thread })
}
