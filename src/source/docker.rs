//! The docker source: what containers publish, from the Docker Engine API over its unix socket.
//!
//! A session subscribes to events first and lists the running containers then, so that nothing falls between. A
//! container that starts, or changes its networks, is inspected; one that ends is never asked about: it may be gone
//! by then. The engine's restart ends the session, and the next one begins with the whole list again.
//! Works with Docker (API 1.24 to 1.52) and with Podman's compatible socket.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::Response;
use ureq::{Agent, Body};

use super::lines::{LINE_BYTES_MAX, Lines, Next};
use crate::event::{Event, Owner, Source};
use crate::http::{self, ANSWER_TIMEOUT, Resumable};
use crate::ordered::{Map, Set};
use crate::parse::ParseError;
use crate::parse::docker::{self, ApiVersion, DockerEvent, Running};
use crate::parse::published::Published;
use crate::port::Bindings;
use crate::supervisor::Context;

/// The newest API version whose answers are known to hold what is read here.
const API_NEWEST: ApiVersion = ApiVersion { major: 1, minor: 52 };

/// The oldest one.
const API_OLDEST: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// The largest answer that is read, in bytes. 10,000 published ports make about 3 MB.
const BODY_BYTES_MAX: u64 = 32 << 20;

/// Bytes of an error's message that are shown.
const MESSAGE_BYTES_MAX: usize = 512;

/// The list is read again after bad events, at most this often.
const RELIST_INTERVAL: Duration = Duration::from_secs(1);

/// For so long an engine may list a container as running after it has told of its end: Docker 20.10 writes `die` first, and
/// what it lists from afterwards.
const END_LAG_MAX: Duration = RELIST_INTERVAL;

/// Ends that are remembered for so long. Of more, the oldest are forgotten: no engine ends as many containers in that time.
const ENDS_MAX: usize = 4096;

/// `{"type":["container","network"],
/// "event":["start","die","died","stop","destroy","remove","rename","connect","disconnect"]}`. Podman 4.3 matches its own word
/// `died`, which it then writes as `die`.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%2C%22event%22%3A%5B\
    %22start%22%2C%22die%22%2C%22died%22%2C%22stop%22%2C%22destroy%22%2C%22remove%22%2C%22rename%22%2C\
    %22connect%22%2C%22disconnect%22%5D%7D";

/// `{"status":["running","paused"]}`; a paused container keeps its ports.
const RUNNING: &str = "/containers/json?filters=%7B%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D";

/// Why a session ended.
#[derive(Debug)]
pub enum DockerError {
    /// A request failed.
    Request {
        /// The engine's socket.
        socket: PathBuf,
        /// How.
        error: ureq::Error,
    },
    /// The engine answered with another status than 200.
    Status {
        /// What was asked.
        path: String,
        /// The answer's status.
        status: u16,
        /// The beginning of its body.
        message: String,
    },
    /// The engine's answer could not be read.
    Answer {
        /// What was asked.
        path: String,
        /// What is wrong with it.
        error: ParseError,
    },
    /// The engine speaks other versions of the API.
    Version {
        /// What it speaks, in its own words.
        engine: String,
    },
    /// The event stream ended, stalled or failed.
    Stream(String),
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DockerError::Request { socket, error } => {
                let socket = socket.display();
                write!(f, "cannot ask the engine at {socket}: {error} ({})", remedy(error))
            }
            DockerError::Status { path, status, message } => {
                write!(f, "the engine answered {status} to {path}: {}", message.escape_debug())
            }
            DockerError::Answer { path, error } => write!(f, "the engine's answer to {path}: {error}"),
            DockerError::Version { engine } => {
                write!(f, "the engine speaks API {engine}, this agent {API_OLDEST} to {API_NEWEST}")
            }
            DockerError::Stream(what) => write!(f, "the event stream {what}"),
        }
    }
}

impl std::error::Error for DockerError {}

fn remedy(error: &ureq::Error) -> &'static str {
    match error {
        ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::PermissionDenied => {
            "run as the socket's owner or as a member of its group"
        }
        _ => "is it running? DOCKER_HOST=unix://PATH names another socket",
    }
}

/// One connection's worth of watching: subscribe, list, follow. Returns when the engine is lost or the agent ends.
pub fn session(socket: &Path, context: &Context) -> (bool, DockerError) {
    let mut session = Session {
        agent: http::unix::agent(socket.to_owned(), http::config()),
        socket,
        context,
        base: String::new(),
        podman: false,
        running: Set::new(),
        ended: VecDeque::new(),
        missed: false,
        healthy: false,
    };
    let agent = session.agent.clone();
    context.stop.on_raise(move || agent.clone().shutdown());
    let error = match session.run() {
        Ok(()) => DockerError::Stream("is not wanted any more".into()),
        Err(error) => error,
    };
    session.agent.shutdown();
    (session.healthy, error)
}

struct Session<'a> {
    agent: Agent,
    socket: &'a Path,
    context: &'a Context,
    /// `http://engine/v1.41`; the host is a label, the socket is what is connected to.
    base: String,
    /// It is Podman that answers.
    podman: bool,
    /// Containers known to run. Network events of any other are preparations or aftermath of its run.
    running: Set<Arc<str>>,
    /// Containers that have ended within [`END_LAG_MAX`], and when that was read.
    ended: VecDeque<(Instant, Arc<str>)>,
    /// The list has to be read again: events may not have told everything.
    missed: bool,
    healthy: bool,
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), DockerError> {
        self.base = format!("http://engine/v{}", self.negotiate()?);
        let events = self.get(EVENTS, None)?;
        let mut lines = Lines::new(Resumable(check(EVENTS, events)?.into_body().into_reader()));
        self.list()?;
        let mut listed = Instant::now();
        // Once more after a while: engines send the stream's head a moment before they subscribe to their own events.
        self.missed = true;
        while !self.context.stop.is_raised() {
            let next = lines.next_line().map_err(|error| DockerError::Stream(format!("failed: {error}")))?;
            let bad = match next {
                Next::Line(line) if line.iter().all(u8::is_ascii_whitespace) => None,
                Next::Line(line) => match docker::event(&line) {
                    Ok(event) => {
                        self.follow(event)?;
                        None
                    }
                    Err(error) => Some(format!("event: {error}")),
                },
                Next::TooLong => Some(format!("event of more than {LINE_BYTES_MAX} bytes")),
                Next::Silence => None,
                Next::Stalled => return Err(DockerError::Stream("stalled in the middle of a line".into())),
                Next::End => return Err(DockerError::Stream("ended".into())),
            };
            if let Some(reason) = bad {
                self.skipped(reason);
                self.missed = true;
            }
            // What an unreadable event would have said is in the list.
            if self.missed && listed.elapsed() >= RELIST_INTERVAL {
                self.list()?;
                listed = Instant::now();
            }
        }
        Ok(())
    }

    fn negotiate(&mut self) -> Result<ApiVersion, DockerError> {
        self.base = "http://engine".into();
        let body = self.ask("/version")?;
        let (newest, oldest) = docker::versions(&body).map_err(|error| answer("/version", error))?;
        let version = newest.min(API_NEWEST);
        if version < API_OLDEST || oldest.is_some_and(|oldest| version < oldest) {
            let engine = oldest.map_or(newest.to_string(), |oldest| format!("{oldest} to {newest}"));
            return Err(DockerError::Version { engine });
        }
        self.podman = docker::is_podman(&body);
        log::debug!("docker: API version={version} engine={newest} podman={}", self.podman);
        Ok(version)
    }

    fn list(&mut self) -> Result<(), DockerError> {
        let body = self.ask(RUNNING)?;
        let Running { mut claims, mut names, skipped } =
            docker::containers(&body).map_err(|error| answer(RUNNING, error))?;
        self.forget_old_ends();
        self.missed = false;
        for (_, id) in &self.ended {
            // Unless it has started again since: then it is the list that is right.
            if !self.running.contains(id) && claims.remove(id).is_some() {
                names.remove(id);
                self.missed = true;
            }
        }
        if self.podman {
            // Of a published range, its list names the first port only.
            for (id, bindings) in claims.iter_mut().filter(|(_, bindings)| !bindings.is_empty()) {
                if let Some(all) = self.inspect(id)? {
                    *bindings = all.bindings;
                }
            }
        }
        self.running = claims.keys().cloned().collect();
        self.named(names);
        self.context.send(Event::Snapshot { source: Source::Docker, claims });
        self.healthy = true;
        skipped.into_iter().for_each(|reason| self.skipped(reason));
        Ok(())
    }

    fn follow(&mut self, event: Option<DockerEvent>) -> Result<(), DockerError> {
        match event {
            Some(DockerEvent::Started(id)) => {
                self.running.insert(id.clone());
                self.look_up(id)
            }
            Some(DockerEvent::NetworkChanged(id)) if self.running.contains(&id) => self.look_up(id),
            Some(DockerEvent::Ended(id)) => {
                self.running.remove(&id);
                self.ended.push_back((Instant::now(), id.clone()));
                self.forget_old_ends();
                self.claim(id, Bindings::new());
                Ok(())
            }
            Some(DockerEvent::Renamed(id, name)) if self.running.contains(&id) => {
                self.named(Map::from_iter([(id, name)]));
                Ok(())
            }
            Some(DockerEvent::NetworkChanged(_) | DockerEvent::Renamed(..)) | None => Ok(()),
        }
    }

    fn forget_old_ends(&mut self) {
        let is_old = |(at, _): &(Instant, _)| at.elapsed() > END_LAG_MAX;
        while self.ended.len() > ENDS_MAX || self.ended.front().is_some_and(is_old) {
            self.ended.pop_front();
        }
    }

    fn look_up(&self, id: Arc<str>) -> Result<(), DockerError> {
        if let Some(Published { bindings, name, .. }) = self.inspect(&id)? {
            let name = name.filter(|_| !bindings.is_empty());
            self.named(name.map(|name| (id.clone(), name)).into_iter().collect());
            self.claim(id, bindings);
        }
        Ok(())
    }

    /// What a container publishes; `None` when its answer could not be read.
    fn inspect(&self, id: &str) -> Result<Option<Published>, DockerError> {
        let path = format!("/containers/{id}/json");
        let response = self.get(&path, Some(ANSWER_TIMEOUT))?;
        if response.status() == 404 {
            // Gone already, and its `die` is on its way.
            return Ok(Some(Published::default()));
        }
        let body = self.body(check(&path, response)?)?;
        match docker::inspect(&body) {
            Ok(mut published) => {
                published.skipped.drain(..).for_each(|reason| self.skipped(reason));
                Ok(Some(published))
            }
            Err(error) => {
                self.skipped(answer(&path, error).to_string());
                Ok(None)
            }
        }
    }

    fn claim(&self, key: Arc<str>, bindings: Bindings) {
        self.context.send(Event::Claim { owner: Owner { source: Source::Docker, key }, bindings });
    }

    /// Before the claims that the names belong to.
    fn named(&self, names: Map<Arc<str>, Arc<str>>) {
        if !names.is_empty() {
            self.context.send(Event::Named { source: Source::Docker, names });
        }
    }

    fn skipped(&self, reason: String) {
        self.context.send(Event::Skipped { source: Source::Docker, reason });
    }

    fn ask(&self, path: &str) -> Result<Vec<u8>, DockerError> {
        self.body(check(path, self.get(path, Some(ANSWER_TIMEOUT))?)?)
    }

    fn get(&self, path: &str, timeout: Option<Duration>) -> Result<Response<Body>, DockerError> {
        let request = self.agent.get(format!("{}{path}", self.base)).config().timeout_global(timeout).build();
        request.call().map_err(|error| self.request(error))
    }

    fn body(&self, response: Response<Body>) -> Result<Vec<u8>, DockerError> {
        let body = response.into_body().into_with_config().limit(BODY_BYTES_MAX).read_to_vec();
        body.map_err(|error| self.request(error))
    }

    fn request(&self, error: ureq::Error) -> DockerError {
        DockerError::Request { socket: self.socket.to_owned(), error }
    }
}

fn answer(path: &str, error: ParseError) -> DockerError {
    DockerError::Answer { path: path.to_owned(), error }
}

fn check(path: &str, response: Response<Body>) -> Result<Response<Body>, DockerError> {
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(response);
    }
    let message = http::message(response);
    let message = String::from_utf8_lossy(message.get(..MESSAGE_BYTES_MAX).unwrap_or(&message)).trim().to_owned();
    Err(DockerError::Status { path: path.to_owned(), status, message })
}
