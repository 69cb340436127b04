//! The client's end of the control socket: a request out, documents in, one a line.
//!
//! No call waits longer than it is told to, a line has a limit, and where nobody reads standard output any more, nothing is
//! waited for: what would be printed is no longer wanted.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value};

use super::document::{plain, plain_json, raw};
use super::{Exit, Failure};
use crate::config;
use crate::flags::{FlagError, Parsed};
use crate::net::connect_unix;

/// The longest line that an agent sends.
const LINE_BYTES_MAX: usize = 1 << 20;

/// All lines of one answer that is kept until it is complete.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What is read at once.
const READ_BYTES: usize = 1 << 16;

/// How long the agent has for each document of an answer. It has more time than it ever takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent may have more connections waiting than it takes, and how often that is looked at.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// The only version that is understood.
const SCHEMA: u64 = 1;

/// What is asked for.
pub type Request = Map<String, Value>;

/// Why there is no (further) document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Nobody answers there.
    NoAgent(String),
    /// Somebody does, but not us.
    NotAllowed(String),
    /// The agent went away, or has no place for us; it, or the next one, may answer when asked again.
    Gone(String),
    /// What came is not to be understood, or what was asked is not.
    Broken(String),
    /// The time is over.
    TimedOut,
    /// Nobody reads standard output any more.
    Unwanted,
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Failure {
        match ended {
            Ended::NoAgent(message) | Ended::NotAllowed(message) => Failure::new(Exit::NoAgent, message),
            Ended::Gone(message) | Ended::Broken(message) => Failure::new(Exit::Failed, message),
            Ended::TimedOut => Failure::new(Exit::Failed, "the agent does not answer in time"),
            Ended::Unwanted => Failure::new(Exit::Ok, ""),
        }
    }
}

/// A request of that name.
pub fn request(op: &str) -> Request {
    // Not from_iter, which sorts: a kilobyte.
    let mut request = Map::new();
    request.insert("op".to_owned(), op.into());
    request.insert("schema".to_owned(), SCHEMA.into());
    request
}

/// The line that it is sent as.
pub fn line(request: Request) -> String {
    format!("{}\n", Value::Object(request))
}

/// Where the agent is to be asked.
///
/// # Errors
/// Where `--socket` is no path of a socket, or there is no default for it.
pub fn socket(parsed: &Parsed) -> Result<PathBuf, Failure> {
    if let Some(path) = parsed.value("socket") {
        return Ok(PathBuf::from(path)).and_then(|socket: PathBuf| match socket.as_os_str().len() {
            1..=config::UNIX_PATH_BYTES_MAX => Ok(socket),
            _ => Err(FlagError::bad_value("socket", path, "expected a path of 107 bytes at most").into()),
        });
    }
    config::default_control_socket(&|name: &str| std::env::var_os(name)).ok_or_else(|| {
        let message = "XDG_RUNTIME_DIR is not set, so there is no agent of this user's own; ask as root (sudo), or name \
                       the agent's socket with --socket";
        Failure::new(Exit::NoAgent, message)
    })
}

/// A connection to the agent.
pub struct Connection {
    stream: UnixStream,
    /// What was read and is no document yet, from `taken` on; up to `searched` there is no end of a line.
    buffer: Vec<u8>,
    taken: usize,
    searched: usize,
}

/// One document, and the line that it came in.
pub struct Document {
    /// What it says.
    pub value: Value,
    /// As it came, without the newline.
    pub line: String,
}

impl Document {
    /// As `--json` prints it.
    pub fn json(&self) -> String {
        plain_json(&self.line) + "\n"
    }
}

impl Connection {
    /// Connects.
    pub fn open(socket: &Path) -> Result<Connection, Ended> {
        let end = Instant::now() + CONNECT_TIMEOUT;
        let stream = loop {
            match connect_unix(socket) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(CONNECT_PAUSE);
                }
                Err(error) => return Err(cannot_connect(socket, &error)),
            }
        };
        let _ = stream.set_write_timeout(Some(ANSWER_TIMEOUT));
        Ok(Connection { stream, buffer: Vec::new(), taken: 0, searched: 0 })
    }

    /// Sends a request. Its answer is taken with [`Connection::next`], up to `end`.
    pub fn ask(&mut self, request: Request) -> Result<(), Ended> {
        self.ask_line(&line(request))
    }

    /// The same with one that was made before.
    pub fn ask_line(&mut self, line: &str) -> Result<(), Ended> {
        match self.stream.write_all(line.as_bytes()) {
            // Why it was closed may still be there to read.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(gone(&error.to_string())),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The next document; `None` at the end of the answer. Waits until `end`, or without it as long as the agent is there.
    pub fn next(&mut self, end: Option<Instant>) -> Result<Option<Document>, Ended> {
        loop {
            if let Some(line) = self.line()? {
                return document(line);
            }
            self.await_input(end)?;
            self.read()?;
        }
    }

    /// Sends a request, and takes all documents of its answer.
    pub fn answer(&mut self, request: Request) -> Result<Vec<Document>, Ended> {
        self.ask(request)?;
        let (mut documents, mut bytes) = (Vec::new(), 0);
        while let Some(document) = self.next(Some(Instant::now() + ANSWER_TIMEOUT))? {
            bytes += document.line.len();
            if bytes > ANSWER_BYTES_MAX {
                let what = "the agent's answer has more than 64 MB: ask for less, as with --port or --source";
                return Err(Ended::Broken(what.to_owned()));
            }
            documents.push(document);
        }
        Ok(documents)
    }

    /// The one document that answers a request.
    pub fn one(&mut self, request: Request) -> Result<Document, Ended> {
        self.answer(request)?.pop().ok_or_else(|| Ended::Broken("the agent's answer is empty".to_owned()))
    }

    fn line(&mut self) -> Result<Option<String>, Ended> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.searched - self.taken > LINE_BYTES_MAX {
                return Err(Ended::Broken("what answers there is no agent: a line of more than 1 MB".to_owned()));
            }
            return Ok(None);
        };
        let end = self.searched + length;
        let line = self.buffer.get(self.taken..end).unwrap_or_default().to_vec();
        (self.taken, self.searched) = (end + 1, end + 1);
        match String::from_utf8(line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(Ended::Broken("what answers there is no agent: it does not send UTF-8".to_owned())),
        }
    }

    fn await_input(&self, end: Option<Instant>) -> Result<(), Ended> {
        let stdout = io::stdout();
        loop {
            let timeout = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => PollTimeout::NONE,
                Some(Duration::ZERO) => return Err(Ended::TimedOut),
                // Not before the end: poll(2) counts whole milliseconds.
                Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            };
            let mut fds =
                [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(gone(errno.desc())),
            }
            let raised = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            match raised {
                // A pipe says the one, a socket (as some programs give their children) the other.
                [_, out] if out.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) => return Err(Ended::Unwanted),
                [input, _] if !input.is_empty() => return Ok(()),
                _ => {}
            }
        }
    }

    fn read(&mut self) -> Result<(), Ended> {
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_BYTES, 0);
        let read = self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default());
        self.buffer.truncate(filled + read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(gone("it closed the connection")),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(gone(&error.to_string())),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn document(line: String) -> Result<Option<Document>, Ended> {
    let broken = |what: &str| Ended::Broken(format!("what answers there is no agent: {what}"));
    let value: Value = serde_json::from_slice(line.as_bytes()).map_err(|_| broken("a line that is not JSON"))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(SCHEMA) => {}
        Some(other) => {
            let what =
                format!("the agent speaks schema {other}, and this program schema {SCHEMA}: use the agent's own");
            return Err(Ended::Broken(what));
        }
        None => return Err(broken("a document without a schema")),
    }
    match raw(&value, "type") {
        "end" => Ok(None),
        "error" => {
            let message = plain(raw(&value, "message"));
            Err(match raw(&value, "code") {
                "stopping" => Ended::Gone("the agent has ended".to_owned()),
                "busy" | "timeout" => Ended::Gone(format!("the agent closed the connection: {message}")),
                "not-allowed" => Ended::NotAllowed(format!("the agent answers root and its own user alone: {message}")),
                code => Ended::Broken(format!("the agent refuses ({}): {message}", plain(code))),
            })
        }
        _ => Ok(Some(Document { value, line })),
    }
}

fn gone(why: &str) -> Ended {
    Ended::Gone(format!("the agent went away: {why}"))
}

fn cannot_connect(socket: &Path, error: &io::Error) -> Ended {
    let path = plain(&socket.to_string_lossy());
    if error.kind() == io::ErrorKind::PermissionDenied {
        let message = format!("may not ask the agent at {path}: it answers root and its own user; try sudo");
        return Ended::NotAllowed(message);
    }
    Ended::NoAgent(format!(
        "no agent answers at {path}: {error}\nIs it running? One that runs as root is asked as root (sudo); one with a \
         --control-socket of its own, with --socket PATH."
    ))
}
