//! `wait`: until a port is forwarded, or is in another state, or gone.
//!
//! Watches that port with what there is already before it, so that nothing is missed in between, and holds no state but
//! what it was told of it. An agent that is not there yet, goes away or forgets to say something is asked again.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::connection::{Connection, Document, Ended, line, request, socket};
use super::document::{raw, text};
use super::ports::{filter, rows};
use super::table::colours;
use super::{Exit, Failure, print};
use crate::config::duration;
use crate::flags::{FlagError, Parsed};
use crate::ordered::Map;
use crate::view::{State, sink_kind};

/// Between two attempts to reach an agent.
const PAUSE: Duration = Duration::from_millis(10);

/// How long what is there already counts where changes alone do not tell all: a forward that is about to be told may go
/// without a word.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Forwards that are named when the time is over.
const NAMED_MAX: usize = 4;

/// What is waited for.
struct Wish {
    state: State,
    /// The sink was named, so that it may be any; otherwise the agent's own relay does not count.
    any_sink: bool,
    /// Forwards that are not wanted may be there.
    is_narrow: bool,
    json: bool,
}

/// What is known of the forwards of the port: each state, with where and why.
#[derive(Default)]
struct Seen(Map<(String, String, String), (State, String)>);

/// Waits.
///
/// # Errors
/// On wrong usage, and when the time is over.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let mut request = request("watch");
    request.insert("replay".to_owned(), true.into());
    filter(&mut request, parsed, "state")?;
    if !parsed.given("port") {
        return Err(Failure::new(Exit::Usage, "which port? --port N, such as --port 8080"));
    }
    let state = parsed.value("state").unwrap_or_default();
    let expected = "expected forwarding, conflict, denied, failed, pending, left-out or withdrawn";
    let wish = Wish {
        state: State::parse(state).ok_or_else(|| FlagError::bad_value("state", state, expected))?,
        any_sink: parsed.given("sink"),
        is_narrow: ["sink", "source", "host-ip"].iter().any(|flag| parsed.given(flag)),
        json: parsed.on("json"),
    };
    let end = Instant::now() + timeout(parsed)?;
    let socket = socket(parsed)?;
    let mut what = format!("port {}", request.get("port").unwrap_or(&Value::Null));
    if let Some(protocol) = request.get("protocol").and_then(Value::as_str) {
        what.extend(["/", protocol]);
    }
    let request = line(request);
    let mut seen = Seen::default();
    loop {
        let ended = match watch(&socket, &request, &wish, &mut seen, end) {
            Ok(document) => return done(&wish, &what, document.as_ref()),
            Err(ended) => ended,
        };
        match ended {
            Ended::NoAgent(_) | Ended::Gone(_) if Instant::now() + PAUSE < end => std::thread::sleep(PAUSE),
            Ended::NoAgent(_) | Ended::NotAllowed(_) | Ended::Broken(_) | Ended::Unwanted => return Err(ended.into()),
            Ended::Gone(_) | Ended::TimedOut => return Err(Failure::new(Exit::TimedOut, seen.summary(&what, &wish))),
        }
    }
}

/// The value of `--timeout`.
///
/// # Errors
/// Where it is no duration.
pub fn timeout(parsed: &Parsed) -> Result<Duration, FlagError> {
    let text = parsed.value("timeout").unwrap_or_default();
    duration(text).ok_or_else(|| FlagError::bad_value("timeout", text, "expected a duration such as 500ms, 10s or 2m"))
}

/// Asks one agent, until it is as wished; the document that says so, where there is one.
fn watch(socket: &Path, request: &str, wish: &Wish, seen: &mut Seen, end: Instant) -> Result<Option<Document>, Ended> {
    let mut connection = Connection::open(socket)?;
    connection.ask_line(request)?;
    *seen = Seen::default();
    let mut replayed = false;
    let until = match wish.state {
        State::Withdrawn | State::Pending => end.min(Instant::now() + LOOK_AGAIN),
        _ => end,
    };
    loop {
        let document = match connection.next(Some(until)) {
            Ok(Some(document)) => document,
            Ok(None) => return Err(Ended::Gone("the agent ended the answer".to_owned())),
            Err(Ended::TimedOut) if until < end => return Err(Ended::Gone("it is looked at again".to_owned())),
            Err(ended) => return Err(ended),
        };
        let state = match raw(&document.value, "type") {
            "forward" => State::parse(raw(&document.value, "state")),
            "lost" => return Err(Ended::Gone("it lost changes".to_owned())),
            "replayed" => {
                replayed = true;
                None
            }
            _ => continue,
        };
        let counts = state.is_some() && wish.counts(&document.value);
        if let Some(state) = state.filter(|_| counts) {
            seen.note(&document.value, state);
            if state == wish.state && state != State::Withdrawn {
                return Ok(Some(document));
            }
        }
        if wish.state == State::Withdrawn && replayed && !seen.is_anything_left() {
            return Ok(Some(document).filter(|_| state == Some(State::Withdrawn)));
        }
    }
}

fn done(wish: &Wish, what: &str, document: Option<&Document>) -> Result<Exit, Failure> {
    match document {
        Some(document) if wish.json => print(&document.json()),
        None if wish.json => Ok(Exit::Ok),
        Some(document) if wish.state != State::Withdrawn => {
            print(&rows(&[&document.value], false, SystemTime::now(), colours()))
        }
        Some(_) | None => print(&format!("{what}: no forward is left\n")),
    }
}

impl Wish {
    /// Whether what becomes of that forward matters.
    fn counts(&self, forward: &Value) -> bool {
        self.any_sink || sink_kind(raw(forward, "sink")) != "relay"
    }
}

impl Seen {
    fn note(&mut self, forward: &Value, state: State) {
        let key = ["protocol", "host_ip", "sink"].map(|field| raw(forward, field).to_owned());
        if state == State::Withdrawn {
            self.0.remove(&key.into());
        } else {
            self.0.insert(key.into(), (state, text(forward, "reason")));
        }
    }

    fn is_anything_left(&self) -> bool {
        self.0.values().any(|(state, _)| !matches!(state, State::Denied | State::LeftOut | State::Withdrawn))
    }

    fn summary(&self, what: &str, wish: &Wish) -> String {
        let mut said = format!("{what} is not {} in time: ", wish.state.as_str());
        if self.0.is_empty() {
            said.push_str(if wish.is_narrow {
                "no forward of it matches the other flags"
            } else {
                "nothing publishes it"
            });
        }
        for (i, ((_, _, sink), (state, reason))) in self.0.iter().take(NAMED_MAX).enumerate() {
            let semicolon = if i > 0 { "; " } else { "" };
            let at = if sink.is_empty() { "" } else { " at " };
            let colon = if reason.is_empty() { "" } else { ": " };
            let sink = super::document::plain(sink.trim_end_matches(':'));
            said.extend([semicolon, state.as_str(), at, &sink, colon, reason]);
        }
        said
    }
}
