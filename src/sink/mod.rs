//! Where forwards are announced. Each sink carries out documents on a thread of its own, behind a bounded queue, so
//! that a slow or dead peer never delays another. What should be where is the reconciler's alone: a sink keeps of ports no more
//! than what it takes to speak to its peer.

mod deliver;
pub mod handshake;
pub mod host_switch;
pub mod listener;
pub mod relay;
pub mod stdout;
pub mod vtunnel;
pub mod wsl_proxy;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::event::{Answer, Document, Event, Failure, FailureKind, SinkId};
use crate::holder::holder;
use crate::ordered::Set;
use crate::port::{Binding, Protocol};
use crate::queue::{self, Sender};
use crate::reconciler::ledger::IN_FLIGHT_MAX;
use crate::supervisor::spawn;

/// Carries out documents, one after the other. Must end within seconds whatever the peer does.
pub trait Sink: Send {
    /// Carries out one document and says what became of it. Doing it twice must be the same as doing it once.
    fn carry_out(&mut self, document: &Document) -> Answer;

    /// How long it may be left without a document before [`Sink::beat`]. `None`: for ever.
    fn heartbeat(&self) -> Option<Duration> {
        None
    }

    /// Looks whether the peer is still there. `Some`: it answers, or why it does not. `None`: that is not known.
    fn beat(&mut self) -> Option<Result<(), String>> {
        None
    }

    /// The agent ends: what is left is to be carried out as fast as can be. Called before each document from then on.
    fn hurry(&mut self) {}

    /// Asked after each document and beat, until it is nothing: what has become known of the peer meanwhile.
    fn take_news(&mut self) -> Option<News> {
        None
    }
}

/// What a sink learns of its peer beside the answers to documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// What the peer holds is not known any more, for this reason.
    Reset(String),
    /// What it holds from an earlier run of the agent, as bound on the host.
    Found(Set<Binding>),
}

/// A sink's thread, and the way to it. Dropping it lets the thread end after what is queued.
pub struct Running {
    id: SinkId,
    queue: Sender<Document>,
    hurry: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts the thread.
    pub fn start(id: SinkId, name: &str, mut sink: Box<dyn Sink>, events: Sender<Event>) -> io::Result<Running> {
        // The reconciler never has more documents out, so the queue cannot overflow.
        let (queue, documents) = queue::bounded::<Document>(IN_FLIGHT_MAX);
        let hurry = Arc::new(AtomicBool::new(false));
        let in_a_hurry = hurry.clone();
        let run = move || {
            let mut listening = true;
            // What people were told of the peer since the last document.
            let mut seen = None;
            while listening {
                let mut sight = None;
                listening = match documents.recv(sink.heartbeat()) {
                    Ok(document) => {
                        if in_a_hurry.load(Ordering::Relaxed) {
                            sink.hurry();
                        }
                        let answer = sink.carry_out(&document);
                        seen = None;
                        events.send(Event::Answered { sink: id, ticket: document.ticket, answer }).is_ok()
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        let before = seen.clone();
                        seen = sink.beat().map(Result::err).or(seen);
                        sight = seen.clone().filter(|_| before != seen);
                        true
                    }
                    Err(RecvTimeoutError::Disconnected) => false,
                };
                while let Some(news) = sink.take_news().filter(|_| listening) {
                    let event = match news {
                        News::Reset(reason) => Event::SinkReset { sink: id, reason },
                        News::Found(bindings) => Event::Found { sink: id, bindings },
                    };
                    listening = events.send(event).is_ok();
                }
                // Behind the news, or what is told to a peer that is back would be doubted at once, and told again.
                if let Some(problem) = sight.filter(|_| listening) {
                    listening = events.send(Event::SinkSeen { sink: id, problem }).is_ok();
                }
            }
        };
        let thread = spawn(name, Box::new(run))?;
        Ok(Running { id, queue, hurry, thread })
    }

    /// Queues a document. Never blocks: where it cannot be queued, the answer comes at once.
    pub fn send(&self, document: Document) -> Option<Event> {
        match self.queue.try_send(document) {
            Ok(()) => None,
            Err(TrySendError::Full(document) | TrySendError::Disconnected(document)) => {
                let answer = Answer::Unreachable("the sink's own thread does not take documents".into());
                Some(Event::Answered { sink: self.id, ticket: document.ticket, answer })
            }
        }
    }

    /// See [`Sink::hurry`].
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// Lets the thread end, and hands it over to be joined.
    pub fn finish(self) -> JoinHandle<()> {
        self.thread
    }
}

/// Why `who` cannot listen on `addr`, and what to do about it.
fn cannot_listen(who: &str, protocol: Protocol, addr: SocketAddr, error: &io::Error) -> Failure {
    let (kind, why) = match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::EADDRINUSE => {
            let (by, it) = match holder(protocol, addr) {
                Some(name) => (format!(" by {name}"), "it"),
                None => (String::new(), "what listens there"),
            };
            (FailureKind::Conflict, format!("is in use in the guest{by}: stop {it}, or publish another port"))
        }
        Errno::EACCES => {
            (FailureKind::Denied, "is not allowed: ports below 1024 need root or CAP_NET_BIND_SERVICE".into())
        }
        Errno::EMFILE => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft).unwrap_or_default();
            (FailureKind::Failed, format!("needs a descriptor, and the limit is {limit} (ulimit -n): raise it"))
        }
        _ => (FailureKind::Failed, format!("cannot be listened on: {error}")),
    };
    Failure { kind, reason: format!("{who}: {addr} {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EVENTS_MAX;

    /// Is back at the first beat, and may have lost everything.
    struct Back(Option<News>);

    impl Sink for Back {
        fn carry_out(&mut self, _: &Document) -> Answer {
            Answer::Done { failed: Vec::new() }
        }

        fn heartbeat(&self) -> Option<Duration> {
            Some(Duration::from_millis(1))
        }

        fn beat(&mut self) -> Option<Result<(), String>> {
            Some(Ok(()))
        }

        fn take_news(&mut self) -> Option<News> {
            self.0.take()
        }
    }

    #[test]
    fn what_a_peer_lost_is_told_before_its_return() {
        let (sender, events) = queue::bounded(EVENTS_MAX);
        let sink = Back(Some(News::Reset("restarted".into())));
        let running = Running::start(SinkId(0), "sink-back", Box::new(sink), sender).unwrap();
        let next = || events.recv(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(next(), Event::SinkReset { sink: SinkId(0), reason: "restarted".into() });
        assert_eq!(next(), Event::SinkSeen { sink: SinkId(0), problem: None });
        running.finish().join().unwrap();
    }
}
