//! The host-switch sink: requests to the expose API of host-switch and of every other gvisor-tap-vsock host.
//!
//! Forwards there outlive the guest and the agent, and others make some, too. So the server's list is read at the start and
//! every 10 s, and nothing is removed but what the agent has made: this run, or an earlier one that wrote it into the state
//! file. The file tells of a forward before the server does. Source of the API: gvisor-tap-vsock `pkg/services/forwarder`.
//!
//! What the server holds is known from its list and from its answers since. Where an answer is missing nothing is known
//! any more, and the list is read again.

mod api;
mod documents;
mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{News, Sink};
use crate::event::{Answer, Document, Operation};
use crate::ordered::{Map, Set};
use crate::port::{Binding, Bindings};
use crate::wire::expose::Exposed;
use api::{Api, Wrong};
use files::StateFile;
pub use files::token;

/// How often the server's list is read.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The same, while the server does not answer.
const HEARTBEAT_LOST: Duration = Duration::from_secs(1);

/// Between two pieces of news: what the first one sets off comes before the second.
const NEWS_PAUSE: Duration = Duration::from_millis(50);

/// Documents that were waiting when the server did not answer have the same answer, and do not ask again.
const SAME_FAILURE: Duration = Duration::from_millis(50);

/// A request that was cut off may be carried out that much later.
const STRAY_MAX: Duration = Duration::from_secs(30);

/// A list of more entries than that is not read again within that time only because the server has refused something.
const LIST_SMALL: usize = 1000;
const LIST_PAUSE: Duration = Duration::from_secs(1);

/// A state file of more than that many forwards is written this often at most, where nothing depends on it.
const STATE_SMALL: usize = 512;
const STATE_PAUSE: Duration = Duration::from_millis(100);

/// Where the API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// `HOST:PORT`, looked up at each connection.
    Tcp(String),
    /// A unix stream socket, as gvproxy serves it.
    Unix(PathBuf),
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base::Tcp(address) => write!(f, "http://{address}"),
            Base::Unix(path) => write!(f, "http+unix://{}", path.display()),
        }
    }
}

/// How to reach host-switch, and what to keep of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSwitchConfig {
    /// Where its API is.
    pub base: Base,
    /// Where it is to lead connections to.
    pub tap_ip: Ipv4Addr,
    /// A file with a bearer token, where the API wants one.
    pub token_file: Option<PathBuf>,
    /// Where it is kept what is ours at host-switch.
    pub state_file: PathBuf,
}

/// How long things may take.
#[derive(Clone, Copy)]
struct Patience {
    /// One request, all in all.
    request: Duration,
    /// After that time no request of a document is begun.
    document: Duration,
}

const PATIENCE: Patience = Patience { request: Duration::from_secs(3), document: Duration::from_secs(2) };

/// The same when the agent ends, and all of its documents have to be out within 5 s.
const PATIENCE_STOPPING: Patience = Patience { request: Duration::from_secs(1), document: Duration::from_millis(500) };

/// Keeps forwards at host-switch.
pub struct HostSwitch {
    config: HostSwitchConfig,
    api: Api,
    patience: Patience,
    /// What the server holds; `None`: to be read.
    view: Option<Exposed>,
    /// When that was read.
    looked: Instant,
    /// What the agent has made there, or is about to make.
    ours: Set<Binding>,
    /// The server has answered in this run, and what an earlier one left is known.
    met: bool,
    /// The server did not answer: since when, and why.
    lost: Option<(Instant, String)>,
    /// When the list is to be read again.
    due: Instant,
    /// Announcements that may still be carried out, until then: those that were cut off, and of an earlier run, which was
    /// killed, those that were written down and not there when this one began.
    strays: Map<Binding, Instant>,
    state_file: StateFile,
    /// The state file does not say what is ours.
    unsaved: bool,
    saved: Instant,
    reset: Option<String>,
    found: Set<Binding>,
}

impl HostSwitch {
    /// A sink for that API. Does no I/O.
    pub fn new(config: HostSwitchConfig) -> HostSwitch {
        let now = Instant::now();
        HostSwitch {
            api: Api::new(&config),
            config,
            patience: PATIENCE,
            view: None,
            looked: now,
            ours: Set::new(),
            met: false,
            lost: None,
            due: now,
            strays: Map::new(),
            state_file: StateFile::new(),
            unsaved: false,
            saved: now,
            reset: None,
            found: Set::new(),
        }
    }

    /// Where a binding leads to, where it is ours.
    fn remote(&self, binding: Binding) -> SocketAddrV4 {
        SocketAddrV4::new(self.config.tap_ip, binding.host_port.get())
    }

    /// Where the server leads it to, as far as is known: `Some(None)` is to no place that could be ours.
    fn leads_to(&self, binding: Binding) -> Option<Option<SocketAddrV4>> {
        self.view.as_ref().and_then(|view| view.get(&binding)).copied()
    }

    fn has(&self, binding: Binding) -> bool {
        self.leads_to(binding) == Some(Some(self.remote(binding)))
    }

    /// Reads the server's list. `busy` are the bindings of the document on its way: what becomes of them is told by its
    /// answer.
    fn look(&mut self, busy: &Bindings) -> Result<(), String> {
        let read = match self.api.prepare() {
            Ok(()) => self.api.all(self.patience.request).map_err(Wrong::reason),
            Err(problem) => Err(problem),
        };
        match read {
            Ok(exposed) => {
                let last = self.view.replace(exposed);
                self.lost = None;
                self.looked = Instant::now();
                self.due = self.looked + HEARTBEAT;
                self.compare(busy, &last.unwrap_or_default());
                self.save(false);
                Ok(())
            }
            Err(reason) => {
                self.lose(&reason);
                Err(reason)
            }
        }
    }

    /// The server has refused something: what does it hold now?
    fn look_closer(&mut self, busy: &Bindings) -> Result<(), String> {
        let long = self.view.as_ref().is_some_and(|view| view.len() > LIST_SMALL);
        if long && self.looked.elapsed() < LIST_PAUSE { Ok(()) } else { self.look(busy) }
    }

    /// The server does not answer, or not as it should.
    fn lose(&mut self, reason: &str) {
        self.doubt();
        self.lost = Some((Instant::now(), reason.to_owned()));
    }

    /// What the server holds is not known any more.
    fn doubt(&mut self) {
        self.view = None;
        self.api.forget_token();
        self.due = Instant::now() + HEARTBEAT_LOST;
    }

    /// Compares what is ours with what the server has just listed. `last` is what was known of that before.
    fn compare(&mut self, busy: &Bindings, last: &Exposed) {
        let first = !std::mem::replace(&mut self.met, true);
        if first {
            self.ours = StateFile::read(&self.config);
            let missing: Vec<Binding> = self.ours.iter().filter(|binding| !self.has(**binding)).copied().collect();
            self.strays = missing.into_iter().map(|binding| (binding, self.looked + STRAY_MAX)).collect();
            self.found = self.ours.iter().filter(|binding| self.has(**binding)).copied().collect();
        }
        let listed = std::mem::take(&mut self.ours);
        let before = listed.len();
        let mut missing = 0;
        for binding in listed.iter() {
            let is_there = self.has(*binding) || busy.contains_key(binding);
            let may_come = self.strays.get(binding).map(|until| self.looked < *until);
            if is_there || may_come == Some(true) {
                self.ours.insert(*binding);
            }
            // One that has not come in all that time is not missed; but one that was there is.
            if !is_there && (may_come.is_none() || last.contains_key(binding)) {
                missing += 1;
            }
        }
        if missing > 0 {
            self.reset = Some(format!(
                "host-switch does not hold everything any more: it has restarted, or somebody removed or changed {missing} \
                 of our forwards"
            ));
        }
        let caught: Vec<Binding> =
            self.strays.keys().filter(|stray| self.has(**stray) && !busy.contains_key(stray)).copied().collect();
        for binding in caught {
            self.strays.remove(&binding);
            self.ours.insert(binding);
            self.found.insert(binding);
        }
        self.strays.retain(|_, until| self.looked < *until);
        self.unsaved |= before != self.ours.len() || missing > 0 || self.state_file.has_failed();
    }

    /// Writes the state file where it is not up to date. Where that can wait, it waits with many forwards.
    fn save(&mut self, can_wait: bool) {
        let wait = can_wait && self.ours.len() > STATE_SMALL && self.saved.elapsed() < STATE_PAUSE;
        if self.unsaved && !wait {
            self.state_file.write(&self.config, &self.ours);
            self.unsaved = false;
            self.saved = Instant::now();
        }
    }

    /// A binding is not ours, or not any more.
    fn disown(&mut self, binding: Binding) {
        if !self.strays.contains_key(&binding) {
            self.unsaved |= self.ours.remove(&binding);
        }
    }

    fn unreachable(&mut self, reason: String) -> Answer {
        self.lose(&reason);
        Answer::Unreachable(reason)
    }

    fn uncertain(&mut self, reason: String) -> Answer {
        self.doubt();
        Answer::Uncertain(reason)
    }
}

impl Sink for HostSwitch {
    fn carry_out(&mut self, document: &Document) -> Answer {
        if let Some((_, reason)) = self.lost.as_ref().filter(|(at, _)| at.elapsed() < SAME_FAILURE) {
            return Answer::Unreachable(reason.clone());
        }
        if self.view.is_none() {
            if let Err(reason) = self.look(&document.bindings) {
                return self.unreachable(reason);
            }
        }
        match document.operation {
            Operation::Announce => self.announce(&document.bindings),
            Operation::Withdraw => self.withdraw(&document.bindings),
        }
    }

    fn heartbeat(&self) -> Option<Duration> {
        let rest = self.due.saturating_duration_since(Instant::now());
        let sooner = if self.unsaved { Some(STATE_PAUSE) } else { None };
        let news = (!self.found.is_empty()).then_some(NEWS_PAUSE);
        [sooner, news].into_iter().flatten().chain([rest]).min()
    }

    fn beat(&mut self) -> Option<Result<(), String>> {
        self.save(true);
        if Instant::now() < self.due {
            return None;
        }
        let was_lost = self.lost.is_some();
        let looked = self.look(&Bindings::new());
        if was_lost && looked.is_ok() {
            self.reset.get_or_insert_with(|| "it answers again".to_owned());
        }
        Some(looked)
    }

    fn hurry(&mut self) {
        self.patience = PATIENCE_STOPPING;
    }

    fn take_news(&mut self) -> Option<News> {
        // In this order: what is found now is no reason to doubt it at once.
        if let Some(reason) = self.reset.take() {
            return Some(News::Reset(reason));
        }
        (!self.found.is_empty()).then(|| News::Found(std::mem::take(&mut self.found)))
    }
}
