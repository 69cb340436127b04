//! The thread of the control socket: one poll loop over all clients. It waits without end where nobody has to be hurried, and
//! never in anything but poll.

use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Client, Phase};
use super::listen::{SocketFile, may_ask};
use super::request::Op;
use super::ring::Ring;
use super::shared::{Shared, Shown, now};
use super::state::{Clients, Present};
use super::{Facts, Link, Update};
use crate::event::{Event, Scope};
use crate::queue::Sender;
use crate::view::View;

/// Clients that may be connected.
const CLIENTS_MAX: usize = 64;

/// Clients that are let in before it is others' turn.
const ACCEPTED_MAX: usize = 128;

/// Until the agent is asked again, where its channel is full.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Until clients are let in again, where the system refuses descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Present states with every forward that are kept for clients who have yet to take them.
const SHOWN_MAX: usize = 8;

/// How long they may take, where another one is asked for.
const SHOWN_TIME: Duration = Duration::from_secs(1);

pub(super) struct Server {
    listener: UnixListener,
    file: SocketFile,
    link: Arc<Link>,
    events: Sender<Event>,
    shared: Shared,
    clients: Vec<Client>,
    /// The agent has been asked for the present state, and has not answered yet.
    is_asked: bool,
    /// It is to be asked, but has no room for that.
    asks_again: bool,
    /// The system has no descriptors until then.
    full_until: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        (listener, file): (UnixListener, SocketFile),
        link: Arc<Link>,
        events: Sender<Event>,
        facts: Facts,
    ) -> Server {
        let (ring, present, clients) = (Ring::default(), Present::default(), Clients::default());
        let shared = Shared { facts, ring, present, clients, watching: 0 };
        let (is_asked, asks_again, full_until) = (false, false, None);
        Server { listener, file, link, events, shared, clients: Vec::new(), is_asked, asks_again, full_until }
    }

    /// Until the agent ends.
    pub(super) fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    log::error!("the control socket ends: poll: {error}");
                    break;
                }
            };
            if !self.take_updates() {
                break;
            }
            let mut ready = ready.into_iter();
            let knocks = ready.next().is_some_and(|ready| !ready.is_empty());
            for client in &mut self.clients {
                client.serve(ready.next().unwrap_or(PollFlags::empty()), &mut self.shared);
            }
            let now = Instant::now();
            for client in self.clients.iter_mut().filter(|client| client.deadline().is_some_and(|at| at <= now)) {
                client.close("timeout", "nothing was asked, answered or taken for 10 s");
            }
            if knocks {
                self.let_in(now);
            }
            self.count();
            self.ask();
        }
        self.file.remove();
        self.link.watched.store(false, Ordering::Relaxed);
        for client in &mut self.clients {
            client.close("stopping", "the agent ends");
        }
    }

    /// What has come: for the listener, and for each client.
    fn wait(&mut self) -> nix::Result<Vec<PollFlags>> {
        let now = Instant::now();
        self.full_until = self.full_until.filter(|until| *until > now);
        let again = self.asks_again.then(|| now + ASK_AGAIN);
        let deadline = self.clients.iter().filter_map(Client::deadline).chain(again).chain(self.full_until).min();
        let accepts = if self.full_until.is_some() { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut fds =
            vec![PollFd::new(self.link.wake.as_fd(), PollFlags::POLLIN), PollFd::new(self.listener.as_fd(), accepts)];
        fds.extend(self.clients.iter().map(|client| PollFd::new(client.as_fd(), client.interest())));
        poll(&mut fds, timeout(deadline, now))?;
        let all = PollFlags::all();
        Ok(fds.iter().skip(1).map(|fd| fd.revents().unwrap_or(all)).collect())
    }

    /// What the agent has put in. `false`: it ends.
    fn take_updates(&mut self) -> bool {
        let (updates, is_over) = self.link.take();
        for update in updates {
            match update {
                Update::View(view) => self.show(*view),
                Update::Changes(changes) => changes.into_iter().for_each(|change| self.shared.ring.push(change)),
                Update::Lost(count) => self.shared.ring.skip(count),
            }
        }
        !is_over
    }

    /// Has those who asked be sent it.
    fn show(&mut self, view: View) {
        self.is_asked = false;
        let clock = now();
        self.shared.present = Present { sources: view.sources.clone(), sinks: view.sinks.clone() };
        self.shared.ring.state_came();
        let (shown, place) = (Arc::new(Shown { view, clock }), self.shared.ring.end());
        for client in &mut self.clients {
            match std::mem::replace(&mut client.phase, Phase::Closing) {
                Phase::Waiting { request, asked: true } => {
                    client.phase = Phase::Sending { request, shown: shown.clone(), item: 0, place };
                }
                other => client.phase = other,
            }
        }
    }

    fn let_in(&mut self, now: Instant) {
        for _ in 0..ACCEPTED_MAX {
            if self.full_until.is_some() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!("the control socket lets nobody in reason={:?}", error.to_string());
                    self.full_until = Some(now + ACCEPT_AGAIN);
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let is_allowed = may_ask(&stream);
        let mut client = Client::new(stream);
        if !is_allowed {
            self.shared.clients.refused += 1;
            return client.close("not-allowed", "only root and the agent's own user are answered");
        }
        self.clients.retain(|client| !client.is_done());
        if self.clients.len() >= CLIENTS_MAX {
            // Who has been silent for longest; where all are being answered, who has taken nothing for longest.
            let others = self.clients.iter_mut().filter(|client| !client.watches());
            match others.min_by_key(|client| (!matches!(client.phase, Phase::Idle), client.since)) {
                Some(longest) => longest.close("timeout", "another client needs the place"),
                None => {
                    self.shared.clients.refused += 1;
                    return client.close("busy", "too many clients are connected");
                }
            }
            self.clients.retain(|client| !client.is_done());
        }
        self.shared.clients.served += 1;
        self.clients.push(client);
    }

    fn count(&mut self) {
        self.clients.retain(|client| !client.is_done());
        self.shared.clients.now = self.clients.len();
        self.shared.watching = self.clients.iter().filter(|client| client.watches()).count();
        let is_watched = self.shared.watching > 0;
        if !is_watched {
            self.shared.ring.clear();
        }
        // Before the agent is asked for anything, so that no change is lost between its answer and those that follow.
        self.link.watched.store(is_watched, Ordering::SeqCst);
    }

    /// Asks the agent for what clients wait for: one view at a time, for all whom it can serve.
    fn ask(&mut self) {
        self.asks_again = false;
        for client in &mut self.clients {
            if let Phase::Resetting { told, .. } = &mut client.phase {
                if !*told {
                    *told = !is_full(self.events.try_send(Event::StartOver));
                    self.asks_again |= !*told;
                }
            }
        }
        if self.is_asked {
            return;
        }
        let has_room = self.has_room();
        // A view has the claims on one port: on that of who has waited for longest.
        let explains = self.clients.iter().filter_map(|client| match &client.phase {
            Phase::Waiting { request, .. } if request.op == Op::Explain => Some((client.since, request.filter.port)),
            _ => None,
        });
        let claims_on = explains.min_by_key(|(since, _)| *since).and_then(|(_, port)| port);
        let mut scope = Scope::default();
        let mut wants = self.shared.ring.wants_state();
        for client in &mut self.clients {
            let Phase::Waiting { request, asked } = &mut client.phase else { continue };
            let has_rows = request.op != Op::Status;
            *asked = (has_room || !has_rows) && (request.op != Op::Explain || request.filter.port == claims_on);
            if *asked {
                wants = true;
                scope.rows |= has_rows;
                if request.op == Op::Explain {
                    scope.claims_on = claims_on;
                }
            }
            self.asks_again |= has_rows && !has_room;
        }
        if wants {
            self.is_asked = !is_full(self.events.try_send(Event::Show(scope)));
            self.asks_again |= !self.is_asked;
        }
    }

    /// Whether another present state with every forward may be kept. Where it is wanted, who is sent the oldest has had time.
    fn has_room(&mut self) -> bool {
        let mut kept: Vec<Instant> = self.clients.iter().filter_map(Client::shown).collect();
        kept.sort();
        kept.dedup();
        let oldest = kept.first().copied().filter(|_| kept.len() >= SHOWN_MAX);
        let is_wanted =
            |client: &Client| matches!(&client.phase, Phase::Waiting { request, .. } if request.op != Op::Status);
        match oldest {
            None => true,
            Some(at) if at.elapsed() >= SHOWN_TIME && self.clients.iter().any(is_wanted) => {
                for client in self.clients.iter_mut().filter(|client| client.shown() == Some(at)) {
                    client.close("timeout", "it takes too long, and others wait");
                }
                self.clients.retain(|client| !client.is_done());
                true
            }
            Some(_) => false,
        }
    }
}

/// Where the agent is gone there is nothing to be tried again: it is about to say so.
fn is_full(sent: Result<(), TrySendError<Event>>) -> bool {
    matches!(sent, Err(TrySendError::Full(_)))
}

/// Until then, in poll's words. Never too early, or poll would be called again and again.
fn timeout(deadline: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let millis = deadline.saturating_duration_since(now).as_micros().div_ceil(1000);
    i32::try_from(millis).ok().and_then(|millis| PollTimeout::try_from(millis).ok()).unwrap_or(PollTimeout::MAX)
}
