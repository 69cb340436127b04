//! The diagnostic log on standard error: text or JSON lines, and never more of them than a disk can bear.
//!
//! Without debug logging a burst of [`BURST`] lines is let through, and one line every [`REFILL`] after that; what
//! is left out is counted, and the count is the next line that gets through. A day of trouble is then at most some
//! 15 MB, whatever happens. Debug logging, which is for watching, not for keeping, is not limited so. A line that would
//! have to wait for its reader is left out as well: no thread stops because nobody reads what it says.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Logger, Target};
use humantime::format_rfc3339_millis;
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

/// Lines that may come all at once.
pub const BURST: u32 = 200;

/// After a burst, one line in this time.
pub const REFILL: Duration = Duration::from_secs(1);

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `2026-11-21T01:02:03.456Z INFO  message`
    #[default]
    Text,
    /// `{"time":"…","level":"INFO","message":"…"}`
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

/// Starts logging, once in a process.
pub fn start(format: Format, debug: bool) -> Result<(), SetLoggerError> {
    let level = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    let mut builder = Builder::new();
    // Libraries' own debug lines hold no news for our users.
    builder.filter_level(LevelFilter::Warn).filter_module("rancher_desktop", level).target(Target::Stderr);
    builder.format(move |out, record| {
        let time = timestamp();
        match format {
            Format::Text => writeln!(out, "{time} {:<5} {}", record.level(), one_line(&record.args().to_string())),
            Format::Json => {
                let message = record.args().to_string();
                writeln!(out, "{}", json!({"time": time, "level": record.level().as_str(), "message": message}))
            }
        }
    });
    let bucket = Mutex::new(Bucket::full(Instant::now(), !debug));
    log::set_boxed_logger(Box::new(Limited { inner: builder.build(), bucket }))?;
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
    bucket: Mutex<Bucket>,
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
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        match bucket.take(Instant::now(), has_room(io::stderr().as_fd())) {
            None => return,
            Some(0) => {}
            Some(left_out) => self.inner.log(
                &Record::builder()
                    .level(Level::Warn)
                    .target("rancher_desktop_agent")
                    .args(format_args!("log: {left_out} lines left out"))
                    .build(),
            ),
        }
        self.inner.log(record);
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
    fn control_characters_are_escaped() {
        assert_eq!(one_line("a\u{1b}[2J\nb é"), "a\\u{1b}[2J\\nb é");
    }
}
