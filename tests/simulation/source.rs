//! Simulated sources: each has a truth (what is published) and tells the agent of it as the real one does.
//!
//! | source | a change reaches the agent | what can go wrong |
//! |---|---|---|
//! | docker, containerd | a notice, and what is published is asked for when that is read; an end is never asked about | lost, with its notices; a notice that cannot be read, and so a list; notices from before a list are read after it |
//! | kubernetes | a notice with what was published then; a list is as good as all notices before it | the same |
//! | nat | a look, and a snapshot of what it sees | troubled, never lost |
//! | sockets | two looks, and a claim for each change; gone at once; a snapshot now and then | the same |
//!
//! What a source says waits in a queue of few places. Where that is full a claim is refused, and the source gives a fresh
//! snapshot later.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;

use rancher_desktop_agent::event::{Event, Owner, Source};
use rancher_desktop_agent::ordered::Map;
use rancher_desktop_agent::port::{Binding, Bindings};

/// Owners of one source.
pub const KEYS: usize = 3;

/// What a source may have said that the agent has not heard.
const QUEUE_MAX: usize = 6;

/// What has changed, and the source has not read.
#[derive(Debug, Clone, Copy)]
enum Notice {
    /// Of this owner; it is asked for.
    Changed(usize),
    /// This owner is gone.
    Ended(usize),
    /// This owner publishes that.
    Is(usize, u32),
}

pub struct SimSource {
    pub source: Source,
    keys: [Arc<str>; KEYS],
    universe: &'static [Binding],
    /// What each owner publishes, as places in the universe.
    truth: [u32; KEYS],
    notices: VecDeque<Notice>,
    /// What pollers saw last, and what they have said.
    seen: [u32; KEYS],
    said: [u32; KEYS],
    looks: u32,
    queue: VecDeque<Event>,
    /// It is there, and followed.
    connected: bool,
    /// It was said to be lost, and is not there again.
    lost: bool,
    troubled: bool,
    /// A whole view was given since it was connected, and nothing was missed since.
    complete: bool,
}

impl SimSource {
    pub fn new(source: Source, universe: &'static [Binding]) -> SimSource {
        // Docker and containerd may know the same container; Podman listens itself.
        let keys = match source {
            Source::Nat => ["podman:a", "b", "c"],
            Source::Sockets => ["tcp/80", "tcp/81", "udp/80"],
            Source::Docker | Source::Containerd | Source::Kubernetes | Source::Agent => ["a", "b", "c"],
        };
        SimSource {
            source,
            keys: keys.map(Arc::from),
            universe,
            truth: [0; KEYS],
            notices: VecDeque::new(),
            seen: [0; KEYS],
            said: [0; KEYS],
            looks: 0,
            queue: VecDeque::new(),
            connected: false,
            lost: false,
            troubled: false,
            complete: false,
        }
    }

    /// Whether it looks, and nobody tells it.
    pub fn is_poller(&self) -> bool {
        matches!(self.source, Source::Nat | Source::Sockets)
    }

    pub fn truth(&self) -> impl Iterator<Item = (Owner, Bindings)> {
        let published = self.keys.iter().enumerate().filter(|(key, _)| self.truth[*key] != 0);
        published.map(|(key, _)| (self.owner(key), pick(self.universe, key, self.truth[key])))
    }

    /// An owner publishes these from now on.
    pub fn publish(&mut self, key: usize, places: u32) {
        if std::mem::replace(&mut self.truth[key], places) == places || !self.connected || self.is_poller() {
            return;
        }
        self.notices.push_back(match (self.source, places) {
            (Source::Kubernetes, places) => Notice::Is(key, places),
            (_, 0) => Notice::Ended(key),
            (_, _) => Notice::Changed(key),
        });
    }

    pub fn owner(&self, key: usize) -> Owner {
        Owner { source: self.source, key: self.keys[key].clone() }
    }

    /// Places that an owner publishes.
    pub fn places(&self, key: usize) -> u32 {
        self.truth[key]
    }

    /// Reads the next notice, or looks.
    pub fn read(&mut self) {
        if self.is_poller() {
            return self.look();
        }
        if !self.complete {
            return self.list();
        }
        match self.notices.pop_front() {
            Some(Notice::Changed(key)) => self.claim(key, self.truth[key]),
            Some(Notice::Ended(key)) => self.claim(key, 0),
            Some(Notice::Is(key, places)) => self.claim(key, places),
            None => {}
        }
    }

    fn look(&mut self) {
        self.connected = true;
        self.looks += 1;
        let last = std::mem::replace(&mut self.seen, self.truth);
        let sees: [u32; KEYS] = match self.source {
            // Seen twice, or known before.
            Source::Sockets => std::array::from_fn(|key| self.truth[key] & (last[key] | self.said[key])),
            _ => self.truth,
        };
        if self.source == Source::Sockets && self.looks < 2 {
            // Nothing can have been seen twice yet.
            return;
        }
        if !self.complete || self.troubled || self.source == Source::Nat && sees != self.said {
            self.troubled = false;
            self.said = sees;
            return self.snapshot(sees);
        }
        for (key, places) in sees.into_iter().enumerate() {
            if places != self.said[key] {
                self.claim(key, places);
            }
        }
        self.said = sees;
    }

    /// Gives the whole view: what is published now, with whatever notices are still to be read.
    pub fn list(&mut self) {
        if self.is_poller() {
            self.complete = false;
            return self.look();
        }
        if !self.connected {
            return;
        }
        if self.source == Source::Kubernetes {
            self.notices.clear();
        }
        self.snapshot(self.truth);
    }

    fn snapshot(&mut self, places: [u32; KEYS]) {
        let owners = (0..KEYS).filter(|key| places[*key] != 0);
        let claims: Map<_, _> =
            owners.map(|key| (self.keys[key].clone(), pick(self.universe, key, places[key]))).collect();
        self.complete = true;
        self.say(Event::Snapshot { source: self.source, claims });
    }

    fn claim(&mut self, key: usize, places: u32) {
        let owner = self.owner(key);
        let bindings = pick(self.universe, key, places);
        self.say(Event::Claim { owner, bindings });
    }

    fn say(&mut self, event: Event) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(event);
        } else {
            // Refused: the whole view is due.
            self.complete = false;
        }
    }

    /// It can be followed again. The whole view comes with the next read.
    pub fn connect(&mut self) {
        if !self.connected {
            self.notices.clear();
            (self.connected, self.lost, self.complete) = (true, false, false);
        }
    }

    /// It goes away; nobody tells what changes meanwhile.
    pub fn lose(&mut self) {
        if self.is_poller() {
            return self.trouble();
        }
        self.notices.clear();
        (self.connected, self.complete) = (false, false);
        self.lost = true;
        self.queue.push_back(Event::SourceLost { source: self.source, reason: "end of stream".into() });
    }

    /// It is there, and does not say what it should.
    pub fn trouble(&mut self) {
        self.notices.clear();
        (self.connected, self.complete) = (false, false);
        (self.lost, self.troubled) = (false, true);
        self.queue.push_back(Event::SourceTroubled { source: self.source, reason: "answers 503".into() });
    }

    /// A notice cannot be read.
    pub fn skip(&mut self) {
        if self.notices.pop_front().is_some() {
            self.complete = false;
        }
    }

    /// The agent's thread for it ends and begins anew.
    pub fn restart(&mut self) {
        self.notices.clear();
        (self.seen, self.said, self.looks) = ([0; KEYS], [0; KEYS], 0);
        (self.connected, self.complete) = (false, false);
        if self.lost {
            self.lose();
        }
    }

    /// The agent is another one: what was said is not heard.
    pub fn begin_again(&mut self) {
        self.queue.clear();
        self.restart();
    }

    /// What it has said, first come, first heard.
    pub fn hear(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }

    /// Whether there is more for it to say.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty() || !self.notices.is_empty() || !self.complete
    }

    pub fn is_lost(&self) -> bool {
        self.lost
    }
}

/// The bindings at these places. Owners differ in what is behind their ports.
pub fn pick(universe: &[Binding], key: usize, places: u32) -> Bindings {
    let behind = NonZeroU16::new(8000 + key as u16).unwrap();
    universe.iter().enumerate().filter(|(i, _)| places >> i & 1 == 1).map(|(_, b)| (*b, behind)).collect()
}
