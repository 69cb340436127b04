//! The containerd source: what nerdctl publishes, from `ctr` and nerdctl's own records.
//!
//! A session runs `ctr events` for as long as it goes on, lists the running tasks (again when something was missed), and
//! looks up the container of each task that may have ports, with up to [`LOOK_UPS_MAX`] other runs of `ctr` side by side.
//! One thread does it all. A container that ends is never asked about, and one that is gone by its look-up is no
//! trouble. A list that fails ends the session, and claims stay: it is never taken for "no ports".
//!
//! What is known, and what is to be asked, is `tasks.rs`; when to list is `schedule.rs`; here is the I/O.

pub mod ask;
pub mod error;
pub mod schedule;
pub mod state_dir;
pub mod tasks;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use self::ask::Ask;
use self::error::ContainerdError;
use self::schedule::Schedule;
use self::state_dir::StateDirError;
use self::tasks::{Answer, News, Tasks, Urgency};
use super::child::{Child, Limits, Privileges, Run, Tool, ToolError};
use super::lines::{LINE_BYTES_MAX, Lines, Next};
use crate::event::{Event, Owner, Source};
use crate::net;
use crate::ordered::Map;
use crate::parse::containerd::{self, List, NETWORK_CONFIG, Record};
use crate::parse::published::Published;
use crate::supervisor::Context;

/// Runs of `ctr` at a time, besides `ctr events`.
pub const LOOK_UPS_MAX: usize = 4;

/// Bounds of each of them. 16,000 tasks make 1.5 MB of list.
const LOOK_UP_LIMITS: Limits = Limits { timeout: Duration::from_secs(5), output_bytes_max: 4 << 20 };

/// Bytes that `ctr events` may say on standard error. It says nothing there but why it ends.
const STDERR_BYTES_MAX: usize = 1 << 20;

/// The longest that a line of `ctr events` may take from its first byte to its last.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Events read before look-ups have their turn.
const LINES_PER_TURN: usize = 64;

/// Lines in a row that are no events. More, and it is not `ctr` that prints them.
const UNUSABLE_MAX: usize = 100;

/// A session that is over sooner is followed by longer and longer waits, whatever it has seen.
const HEALTHY_AFTER: Duration = Duration::from_secs(1);

/// What is known across sessions.
pub struct Containerd {
    socket: PathBuf,
    ctr: Option<PathBuf>,
    tasks: Tasks,
}

impl Containerd {
    /// For the containerd behind that socket. `ctr` is the program; `None`: the first on the path.
    pub fn new(socket: PathBuf, ctr: Option<PathBuf>) -> Containerd {
        Containerd { socket, ctr, tasks: Tasks::default() }
    }

    /// Watches until containerd or `ctr` is lost, or the agent ends. `true`: there was a complete view, and not only for
    /// a moment.
    pub fn session(&mut self, context: &Context) -> (bool, ContainerdError) {
        let begun = Instant::now();
        let tool = match self.tool() {
            Ok(tool) => tool,
            Err(error) => return (false, error),
        };
        self.tasks.begin_session();
        let mut session = Session {
            context,
            socket: self.socket.as_os_str(),
            tool,
            tasks: &mut self.tasks,
            schedule: Schedule::default(),
            listing: Listing::Over,
            running: Vec::new(),
            unusable: 0,
            missed: false,
            line_begun: None,
            complete: false,
        };
        let error = match session.run() {
            Ok(()) => ContainerdError::Stopped,
            Err(error) => error,
        };
        (session.complete && begun.elapsed() >= HEALTHY_AFTER, error)
    }

    fn tool(&self) -> Result<Tool, ContainerdError> {
        let tool = match &self.ctr {
            Some(path) if path.is_file() => Tool::new(path.clone(), Privileges::None),
            Some(path) => return Err(ContainerdError::NoProgram(path.clone())),
            None => Tool::find("ctr", Privileges::None)?,
        };
        // `ctr` would take ten seconds to find out.
        let connected = net::connect_unix(&self.socket);
        connected.map_err(|error| ContainerdError::Socket { socket: self.socket.clone(), error })?;
        Ok(tool)
    }
}

/// How far a listing has come.
enum Listing {
    /// None is under way.
    Over,
    /// These are still to be asked.
    Reading(VecDeque<Ask>),
    /// All tasks are named; some containers are still being looked up.
    LookingUp,
}

/// What a turn of reading events left behind.
enum Turn {
    /// There may be more.
    More,
    /// All that there is was read.
    Done,
    /// The stream is over.
    Ended,
}

struct Session<'a> {
    context: &'a Context,
    socket: &'a OsStr,
    tool: Tool,
    tasks: &'a mut Tasks,
    schedule: Schedule,
    listing: Listing,
    running: Vec<(Ask, Run)>,
    /// Lines in a row that were no events.
    unusable: usize,
    /// A line was no event since the last listing began.
    missed: bool,
    /// Since when a line has been waited for that has begun.
    line_begun: Option<Instant>,
    /// There was a complete view.
    complete: bool,
}

impl Session<'_> {
    /// Subscribe, list, follow.
    fn run(&mut self) -> Result<(), ContainerdError> {
        let mut events = Child::start(&self.tool, &[OsStr::new("--address"), self.socket, OsStr::new("events")])?;
        let stdout = events.take_stdout().ok_or(ContainerdError::Events("has no output".into()))?;
        let mut lines = Lines::new(stdout);
        loop {
            if events.drain_stderr() > STDERR_BYTES_MAX {
                let message = events.message();
                let first = message.lines().next().unwrap_or_default();
                return Err(ContainerdError::Events(format!("complains without end: {first}")));
            }
            let turn = self.read_events(&mut lines)?;
            if let Turn::Ended = turn {
                return Err(events.outcome().into());
            }
            self.take_answers()?;
            self.go_on_listing(Instant::now());
            self.ask()?;
            let now = Instant::now();
            let deadline = if let Turn::More = turn { Some(now) } else { self.deadline(now) };
            let runs = self.running.iter().flat_map(|(_, run)| run.fds());
            let fds: Vec<BorrowedFd<'_>> =
                [lines.input().as_fd()].into_iter().chain(events.fds()).chain(runs).collect();
            if !self.context.stop.wait_readable(&fds, deadline) {
                return Ok(());
            }
        }
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        let runs = self.running.iter().map(|(_, run)| run.deadline(now));
        let line = self.line_begun.map(|begun| begun + LINE_TIMEOUT);
        let listing = match self.listing {
            Listing::Over => self.schedule.due(now, self.has_missed()),
            // What could not even be run has been answered without a wait.
            Listing::Reading(_) | Listing::LookingUp => self.running.is_empty().then_some(now),
        };
        runs.chain(line).chain(listing).min()
    }

    fn has_missed(&self) -> bool {
        self.missed || self.tasks.has_missed()
    }

    fn read_events(&mut self, lines: &mut Lines<ChildStdout>) -> Result<Turn, ContainerdError> {
        for _ in 0..LINES_PER_TURN {
            let next = lines.next_line().map_err(|error| ContainerdError::Events(format!("failed: {error}")))?;
            match next {
                Next::Line(line) => {
                    self.line_begun = None;
                    self.follow(&line)?;
                }
                Next::Silence => {
                    self.line_begun = None;
                    return Ok(Turn::Done);
                }
                Next::Stalled => {
                    let now = Instant::now();
                    if now.duration_since(*self.line_begun.get_or_insert(now)) >= LINE_TIMEOUT {
                        return Err(ContainerdError::Events("stalled in the middle of a line".into()));
                    }
                    return Ok(Turn::Done);
                }
                Next::TooLong => {
                    return Err(ContainerdError::Events(format!("printed a line of more than {LINE_BYTES_MAX} bytes")));
                }
                Next::End => return Ok(Turn::Ended),
            }
        }
        Ok(Turn::More)
    }

    fn follow(&mut self, line: &[u8]) -> Result<(), ContainerdError> {
        match containerd::event(line) {
            Ok(event) => {
                self.unusable = 0;
                if let Some(event) = event {
                    let news = self.tasks.follow(event);
                    self.tell(news);
                }
            }
            Err(error) => {
                self.unusable += 1;
                self.missed = true;
                if self.unusable > UNUSABLE_MAX {
                    let what = format!("printed {UNUSABLE_MAX} lines in a row that are no events: {error}");
                    return Err(ContainerdError::Events(what));
                }
                // Once for all of them.
                if self.unusable == 1 {
                    self.skipped(format!("ctr events: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Takes what the runs of `ctr` have brought.
    fn take_answers(&mut self) -> Result<(), ContainerdError> {
        let now = Instant::now();
        let mut over = Vec::new();
        for (ask, mut run) in std::mem::take(&mut self.running) {
            match run.advance(now) {
                Some(result) => over.push((ask, result)),
                None => self.running.push((ask, run)),
            }
        }
        over.into_iter().try_for_each(|(ask, result)| self.take_answer(ask, result))
    }

    fn take_answer(&mut self, ask: Ask, result: Result<Vec<u8>, ToolError>) -> Result<(), ContainerdError> {
        let bad = |list: String| move |error| ContainerdError::List { list, error };
        match ask {
            Ask::Info(ticket, _) => {
                let answer = result.map_or_else(|error| Answer::Failed(error.to_string()), |output| ports(&output));
                let news = self.tasks.answer(ticket, answer);
                self.tell(news);
            }
            Ask::Namespaces => {
                let namespaces = containerd::namespaces(&result?).map_err(bad("namespaces ls".into()))?;
                for namespace in self.usable("namespaces ls", namespaces) {
                    self.list_next(Ask::Tasks(namespace));
                }
            }
            Ask::Tasks(namespace) => {
                let list = format!("-n {namespace} tasks ls");
                let tasks = containerd::tasks(&namespace, &result?).map_err(bad(list.clone()))?;
                let tasks = self.usable(&list, tasks);
                if !tasks.is_empty() {
                    self.list_next(Ask::Recorded(namespace, tasks));
                }
            }
            Ask::Recorded(namespace, tasks) => {
                let list = format!("-n {namespace} containers ls");
                let recorded = containerd::containers(&namespace, &result?).map_err(bad(list.clone()))?;
                let recorded = self.usable(&list, recorded);
                for (container, pid) in tasks {
                    let may_have_ports = recorded.binary_search(&container).is_ok();
                    let news = self.tasks.listed(container, pid, may_have_ports);
                    self.tell(news);
                }
            }
        }
        Ok(())
    }

    fn usable<T>(&self, list: &str, List { items, skipped }: List<T>) -> Vec<T> {
        if skipped > 0 {
            self.skipped(format!("{list}: {skipped} names that containerd would not accept"));
        }
        items
    }

    fn list_next(&mut self, ask: Ask) {
        if let Listing::Reading(asks) = &mut self.listing {
            asks.push_back(ask);
        }
    }

    /// Begins a listing that is due, and ends one that has all its answers.
    fn go_on_listing(&mut self, now: Instant) {
        let due = self.schedule.due(now, self.has_missed()).is_some_and(|due| due <= now);
        match &self.listing {
            Listing::Over if due => {
                self.schedule.begin(now);
                self.tasks.begin_listing();
                self.missed = false;
                self.listing = Listing::Reading(VecDeque::from([Ask::Namespaces]));
            }
            Listing::Reading(asks) if asks.is_empty() && self.running.iter().all(|(ask, _)| ask.is_look_up()) => {
                self.tasks.end_listing();
                self.listing = Listing::LookingUp;
            }
            Listing::Over | Listing::Reading(_) | Listing::LookingUp => {}
        }
        if matches!(self.listing, Listing::LookingUp) && self.tasks.is_listing_looked_up() {
            self.context.send(Event::Snapshot { source: Source::Containerd, claims: self.tasks.claims() });
            self.listing = Listing::Over;
            self.complete = true;
        }
    }

    /// Starts as many runs of `ctr` as may be.
    fn ask(&mut self) -> Result<(), ContainerdError> {
        while self.running.len() < LOOK_UPS_MAX {
            let Some(ask) = self.next_ask() else { break };
            match Run::start(&self.tool, &ask.args(self.socket), LOOK_UP_LIMITS) {
                Ok(run) => self.running.push((ask, run)),
                Err(error) => self.take_answer(ask, Err(error))?,
            }
        }
        Ok(())
    }

    /// For events first, then for the listing. The last place is the listing's, or events that never end would put it off
    /// for ever.
    fn next_ask(&mut self) -> Option<Ask> {
        let is_last = self.running.len() + 1 == LOOK_UPS_MAX;
        let order: [fn(&mut Self) -> Option<Ask>; 2] =
            if is_last { [Self::next_listed, Self::next_urgent] } else { [Self::next_urgent, Self::next_listed] };
        order.into_iter().find_map(|next| next(self))
    }

    fn next_urgent(&mut self) -> Option<Ask> {
        self.look_up(Urgency::Event)
    }

    fn next_listed(&mut self) -> Option<Ask> {
        let next = match &mut self.listing {
            Listing::Reading(asks) => asks.pop_front(),
            Listing::Over | Listing::LookingUp => None,
        };
        next.or_else(|| self.look_up(Urgency::Listing)).or_else(|| self.look_up(Urgency::Refresh))
    }

    fn look_up(&mut self, urgency: Urgency) -> Option<Ask> {
        self.tasks.next_look_up(urgency).map(|(ticket, container)| Ask::Info(ticket, container))
    }

    fn tell(&self, News { claim, name, skipped }: News) {
        if let Some((key, bindings)) = claim {
            if let Some(name) = name {
                let names = Map::from_iter([(key.clone(), name)]);
                self.context.send(Event::Named { source: Source::Containerd, names });
            }
            let owner = Owner { source: Source::Containerd, key };
            self.context.send(Event::Claim { owner, bindings });
        }
        skipped.into_iter().for_each(|reason| self.skipped(reason));
    }

    fn skipped(&self, reason: String) {
        self.context.send(Event::Skipped { source: Source::Containerd, reason });
    }
}

/// What a container publishes, by the output of `ctr containers info`.
fn ports(output: &[u8]) -> Answer {
    let (dir, name) = match containerd::info(output) {
        Ok(Record::None) => return Answer::Ports(Published::default()),
        Ok(Record::Ports(published)) => return Answer::Ports(published),
        Ok(Record::StateDir(dir, name)) => (dir, name),
        Err(error) => return Answer::Unusable(error.to_string()),
    };
    let about = |error: StateDirError| format!("{:?} {error}", dir.join(NETWORK_CONFIG));
    match state_dir::read(&dir) {
        Ok(published) => Answer::Ports(Published { name, ..published }),
        Err(error @ StateDirError::Read(_)) => Answer::Failed(about(error)),
        Err(error) => Answer::Unusable(about(error)),
    }
}
