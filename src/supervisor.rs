//! Keeps source threads going: runs each in its own named thread, and starts it again after a failure.
//!
//! A source never gives up: an engine that is not there yet is tried again, at most [`backoff::LONGEST`] apart.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::backoff;
use crate::event::{Event, Source};
use crate::queue::Sender;
use crate::stop::Stop;

/// Stack of every thread of ours, in bytes. Only what is touched counts as memory. A debug build needs over half of it for
/// JSON nested as deeply as serde_json lets it be.
pub const STACK_BYTES: usize = 256 * 1024;

/// Until a descriptor is asked for again, where there was none.
const NO_SIGN_PAUSE: Duration = Duration::from_millis(100);

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

/// A thread of ours that runs until it is told to end, and the way to tell it.
pub struct Supervised {
    sign: Arc<Mutex<Sign>>,
    thread: JoinHandle<()>,
}

struct Sign {
    /// Once it is raised: the thread ends, or its session does.
    ended: bool,
    stop: Stop,
}

impl Supervised {
    /// A thread that ends when that sign is raised.
    pub fn new(stop: Stop, thread: JoinHandle<()>) -> Supervised {
        Supervised { sign: Arc::new(Mutex::new(Sign { ended: false, stop })), thread }
    }

    /// Tells the thread to end.
    pub fn end(&self) {
        let mut sign = lock(&self.sign);
        sign.ended = true;
        sign.stop.raise();
    }

    /// Ends the session of a thread of [`supervise`]; the next one begins at once, or when there are descriptors for it.
    pub fn start_over(&self) {
        lock(&self.sign).stop.raise();
    }

    /// Hands the thread over to be joined.
    pub fn finish(self) -> JoinHandle<()> {
        self.thread
    }
}

/// No code that holds the lock can leave what it guards half changed.
fn lock(sign: &Mutex<Sign>) -> MutexGuard<'_, Sign> {
    sign.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `session` again and again in a thread named after the source. A session returns when it lost what it
/// watches, with whether it ever had a complete view (then the next attempt comes soon) and the reason for people.
pub fn supervise<S, E>(source: Source, mut context: Context, mut session: S) -> io::Result<Supervised>
where
    S: FnMut(&Context) -> (bool, E) + Send + 'static,
    E: std::fmt::Display,
{
    let sign = Arc::new(Mutex::new(Sign { ended: false, stop: context.stop.clone() }));
    let shared = sign.clone();
    let run = move || {
        let mut failures = 0;
        loop {
            let (was_healthy, error) = session(&context);
            if !context.stop.is_raised() {
                failures = if was_healthy { 1 } else { failures + 1 };
                let reason = error.to_string();
                log::debug!("source session ended source={source} failures={failures} reason={reason:?}");
                if !context.send(Event::SourceLost { source, reason }) {
                    return;
                }
                if !context.stop.wait(backoff::wait_after(failures)) {
                    continue;
                }
            }
            match next_sign(&shared) {
                Some(stop) => context.stop = stop,
                None => return,
            }
            failures = 0;
        }
    };
    let thread = spawn(source.as_str(), Box::new(run))?;
    Ok(Supervised { sign, thread })
}

/// The sign of the next session; `None`: there is to be none.
fn next_sign(shared: &Mutex<Sign>) -> Option<Stop> {
    loop {
        let mut sign = lock(shared);
        if sign.ended {
            return None;
        }
        match Stop::new() {
            Ok(stop) => {
                sign.stop = stop.clone();
                return Some(stop);
            }
            Err(error) => log::warn!("a source waits to begin anew reason={:?}", error.to_string()),
        }
        drop(sign);
        std::thread::sleep(NO_SIGN_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::bounded;

    /// A source whose sessions wait until they are ended, and say when they begin.
    fn waiting(context: &Context) -> (bool, &'static str) {
        context.send(Event::Skipped { source: Source::Nat, reason: "begun".into() });
        context.stop.wait(Duration::from_secs(60));
        (true, "ended")
    }

    #[test]
    fn a_source_starts_over_at_once_and_nothing_is_lost_by_it() {
        let (sender, events) = bounded(8);
        let context = Context { events: sender, stop: Stop::new().unwrap() };
        let supervised = supervise(Source::Nat, context, waiting).unwrap();
        for _ in 0..3 {
            let event = events.recv(Some(Duration::from_secs(30))).unwrap();
            assert!(matches!(event, Event::Skipped { .. }), "{event:?}");
            supervised.start_over();
        }
        assert!(matches!(events.recv(Some(Duration::from_secs(30))), Ok(Event::Skipped { .. })));
        supervised.end();
        supervised.finish().join().unwrap();
        assert!(events.recv(Some(Duration::ZERO)).is_err(), "nothing was told after that");
    }

    #[test]
    fn a_source_that_waits_to_try_again_starts_over_at_once() {
        let (sender, events) = bounded(8);
        let context = Context { events: sender, stop: Stop::new().unwrap() };
        let supervised = supervise(Source::Nat, context, |_: &Context| (false, "refused")).unwrap();
        let lost = || events.recv(Some(Duration::from_secs(30))).unwrap();
        // The waits double, from 100 ms.
        (0..4).for_each(|_| assert!(matches!(lost(), Event::SourceLost { .. })));
        supervised.start_over();
        let begun = std::time::Instant::now();
        assert!(matches!(lost(), Event::SourceLost { .. }));
        assert!(begun.elapsed() < Duration::from_millis(400), "it would have waited 800 ms");
        supervised.end();
        // It may be in the middle of telling: the channel must not hold it.
        drop(events);
        supervised.finish().join().unwrap();
    }
}
