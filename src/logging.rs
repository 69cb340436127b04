//! The diagnostic log on standard error: text or JSON lines, and never more of them than a disk can bear.
//!
//! Without debug logging a burst of [`BURST`] lines is let through, and one line every [`REFILL`] after that; what
//! is left out is counted, and the count is the next line that gets through. A day of trouble is then at most some
//! 15 MB, whatever happens. Debug logging, which is for watching, not for keeping, is not limited so. A line that would
//! have to wait for its reader is left out as well: no thread stops because nobody reads what it says. A warning that is
//! repeated at once is written once, and then how often it was: before the next line, or after [`REPEATS_TOLD`].
//!
//! A message is words, then its details as ` key=value` or ` key="quoted"`; JSON lines have these as fields.

pub mod fields;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Logger, Target};
use humantime::format_rfc3339_millis;
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

/// Lines that may come all at once.
pub const BURST: u32 = 200;

/// After a burst, one line in this time.
pub const REFILL: Duration = Duration::from_secs(1);

/// How long a warning may go on being repeated before its repetitions are told.
pub const REPEATS_TOLD: Duration = Duration::from_secs(60);

/// The longest warning that is compared with the next one, in bytes.
const COMPARED_BYTES_MAX: usize = 2048;

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-21T01:02:03.456Z INFO  message`
    #[default]
    Text,
    /// `{"time":"…","level":"INFO","message":"…","key":"…"}`
    Json,
}

impl Format {
    /// The format of that name.
    pub fn parse(name: &str) -> Option<Format> {
        match name {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// The level of that name: lines of it and of more serious ones are written.
pub fn level(name: &str) -> Option<LevelFilter> {
    match name {
        "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "info" => Some(LevelFilter::Info),
        "debug" => Some(LevelFilter::Debug),
        _ => None,
    }
}

/// Starts logging, once in a process.
pub fn start(format: Format, level: LevelFilter) -> Result<(), SetLoggerError> {
    let mut builder = Builder::new();
    // Libraries' own debug lines hold no news for our users.
    builder.filter_level(level.min(LevelFilter::Warn)).filter_module("rancher_desktop", level).target(Target::Stderr);
    builder.format(move |out, record| {
        let time = timestamp();
        match format {
            Format::Text => writeln!(out, "{time} {:<5} {}", record.level(), one_line(&record.args().to_string())),
            Format::Json => writeln!(out, "{}", json_line(&time, record.level(), &record.args().to_string())),
        }
    });
    let now = Instant::now();
    let state = State { bucket: Bucket::full(now, level < LevelFilter::Debug), repeats: Repeats::new(now) };
    log::set_boxed_logger(Box::new(Limited { inner: builder.build(), state: Mutex::new(state) }))?;
    log::set_max_level(level);
    Ok(())
}

/// The time as logs and scripts are told it: `2026-11-21T01:02:03.456Z`.
pub fn timestamp() -> String {
    timestamp_of(SystemTime::now())
}

/// Another time, as they are told it.
pub fn timestamp_of(time: SystemTime) -> String {
    let mut text = String::new();
    // Fails in the year 10000; a clock that was never set may be before 1970.
    let _ = write!(text, "{}", format_rfc3339_millis(time.max(UNIX_EPOCH)));
    text
}

/// Not serde_json's object: its fields are in the order of their names.
fn json_line(time: &str, level: Level, message: &str) -> String {
    let (words, pairs) = fields::split(message);
    let head = [("time", time.to_owned()), ("level", level.as_str().to_owned()), ("message", words.to_owned())];
    let mut line = String::new();
    for (key, value) in head.into_iter().chain(pairs) {
        let before = if line.is_empty() { '{' } else { ',' };
        let _ = write!(line, "{before}\"{key}\":{}", Value::String(value));
    }
    line.push('}');
    line
}

/// Whatever a message quotes, it stays one line and sends nothing to a terminal.
fn one_line(message: &str) -> String {
    if message.chars().any(char::is_control) {
        message.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
    } else {
        message.to_owned()
    }
}

struct Limited {
    inner: Logger,
    state: Mutex<State>,
}

struct State {
    bucket: Bucket,
    repeats: Repeats,
}

/// A line about the log itself.
fn own(args: fmt::Arguments<'_>) -> Record<'_> {
    Record::builder().level(Level::Warn).target("rancher_desktop_agent").args(args).build()
}

impl Limited {
    /// Whether the line was written.
    fn write(&self, bucket: &mut Bucket, now: Instant, record: &Record<'_>) -> bool {
        match bucket.take(now, has_room(io::stderr().as_fd())) {
            None => return false,
            Some(0) => {}
            Some(left_out) => self.inner.log(&own(format_args!("log: {left_out} lines left out"))),
        }
        self.inner.log(record);
        true
    }
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        // Held while the line is written, or another thread's might take the room for it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { bucket, repeats } = &mut *state;
        let now = Instant::now();
        let (repeated, is_new) = repeats.take(now, record.level(), *record.args());
        if repeated > 0 {
            self.write(bucket, now, &own(format_args!("log: the line before was repeated {repeated} times")));
        }
        if is_new && !self.write(bucket, now, record) {
            repeats.last = None;
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// Whether a line can be written without waiting. Errors are writing's to find.
fn has_room(out: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}

/// What was written last, where it was a warning or worse, and how often it was to be written since.
struct Repeats {
    last: Option<(Level, String)>,
    count: u64,
    since: Instant,
}

impl Repeats {
    fn new(now: Instant) -> Repeats {
        Repeats { last: None, count: 0, since: now }
    }

    /// How often the line before was repeated, where that is to be told now, and whether this one is another.
    fn take(&mut self, now: Instant, level: Level, args: fmt::Arguments<'_>) -> (u64, bool) {
        let line = (level <= Level::Warn).then(|| (level, args.to_string()));
        let line = line.filter(|(_, text)| text.len() <= COMPARED_BYTES_MAX);
        if line.is_some() && line == self.last {
            self.count += 1;
            if now.duration_since(self.since) < REPEATS_TOLD {
                return (0, false);
            }
            self.since = now;
            return (std::mem::take(&mut self.count), false);
        }
        self.since = now;
        self.last = line;
        (std::mem::take(&mut self.count), true)
    }
}

/// A token bucket: one token a line.
struct Bucket {
    limited: bool,
    tokens: u32,
    refilled: Instant,
    left_out: u64,
}

impl Bucket {
    fn full(now: Instant, limited: bool) -> Bucket {
        Bucket { limited, tokens: BURST, refilled: now, left_out: 0 }
    }

    /// Whether a line may be written, and if so how many were left out before it.
    fn take(&mut self, now: Instant, has_room: bool) -> Option<u64> {
        while self.tokens < BURST && now.duration_since(self.refilled) >= REFILL {
            self.refilled += REFILL;
            self.tokens += 1;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        if self.tokens == 0 || !has_room {
            self.left_out += 1;
            return None;
        }
        self.tokens -= u32::from(self.limited);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_burst_through_and_counts_the_rest() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start, true);
        let through = (0..10_000).filter(|_| bucket.take(start, true).is_some()).count();
        assert_eq!(through, 200);
        assert_eq!(bucket.take(start + REFILL, true), Some(9_800));
        assert_eq!(bucket.take(start + REFILL, true), None);
        let later = start + Duration::from_secs(86_400);
        assert_eq!(bucket.take(later, true), Some(1));
        assert_eq!((0..10_000).filter(|_| bucket.take(later, true).is_some()).count(), 199, "never more than a burst");
    }

    #[test]
    fn debug_logging_leaves_out_only_what_nobody_reads() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start, false);
        assert!((0..10_000).all(|_| bucket.take(start, true) == Some(0)));
        assert_eq!((bucket.take(start, false), bucket.take(start, true)), (None, Some(1)));
    }

    #[test]
    fn a_repeated_warning_is_written_once_and_counted() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut repeats = Repeats::new(start);
        let mut take = |at, level, text: &str| repeats.take(at, level, format_args!("{text}"));
        assert_eq!(take(start, Level::Warn, "a"), (0, true));
        assert!((0..59).all(|n| take(after(n), Level::Warn, "a") == (0, false)));
        assert_eq!(take(after(60), Level::Warn, "a"), (60, false), "told once a minute while it goes on");
        assert_eq!(take(after(61), Level::Warn, "a"), (0, false));
        assert_eq!(take(after(62), Level::Info, "b"), (1, true), "told before another line");
        assert_eq!(take(after(63), Level::Warn, "a"), (0, true), "not one after the other");
        assert_eq!(take(after(64), Level::Error, "a"), (0, true));
        let long = "x".repeat(COMPARED_BYTES_MAX + 1);
        for (level, text) in [(Level::Info, "c"), (Level::Debug, "c"), (Level::Warn, &long)] {
            assert_eq!((take(start, level, text), take(start, level, text)), ((0, true), (0, true)), "{level}");
        }
    }

    #[test]
    fn a_json_line_has_the_details_as_fields() {
        let line = |text| json_line("T", Level::Warn, text);
        assert_eq!(
            line("conflict binding=0.0.0.0:80/tcp reason=\"in use by \\\"x\\\"\""),
            r#"{"time":"T","level":"WARN","message":"conflict","binding":"0.0.0.0:80/tcp","reason":"in use by \"x\""}"#
        );
        assert_eq!(line("a\u{1b}\n"), r#"{"time":"T","level":"WARN","message":"a\u001b\n"}"#);
        assert_eq!(line("a time=1 level=2"), r#"{"time":"T","level":"WARN","message":"a time=1 level=2"}"#);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(one_line("a\u{1b}[2J\nb é"), "a\\u{1b}[2J\\nb é");
    }
}
