//! The diagnostic log on standard error: text or JSON lines, and never more of them than a disk can bear.
//!
//! Without debug logging a burst of [`BURST`] lines is let through, and one line every [`REFILL`] after that; what
//! is left out is counted, and the count is the next line that gets through. A day of trouble is then at most some
//! 15 MB, whatever happens. Nothing is limited with debug logging, which is for watching, not for keeping.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use env_logger::{Builder, Logger, Target};
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};
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
        let time = format!("{:.3}", Timestamp::now());
        match format {
            Format::Text => writeln!(out, "{time} {:<5} {}", record.level(), one_line(&record.args().to_string())),
            Format::Json => {
                let message = record.args().to_string();
                writeln!(out, "{}", json!({"time": time, "level": record.level().as_str(), "message": message}))
            }
        }
    });
    let bucket = (!debug).then(|| Mutex::new(Bucket::full(Instant::now())));
    log::set_boxed_logger(Box::new(Limited { inner: builder.build(), bucket }))?;
    log::set_max_level(level);
    Ok(())
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
    bucket: Option<Mutex<Bucket>>,
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        if let Some(bucket) = &self.bucket {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            match bucket.take(Instant::now()) {
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
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// A token bucket: one token a line.
struct Bucket {
    tokens: u32,
    refilled: Instant,
    left_out: u64,
}

impl Bucket {
    fn full(now: Instant) -> Bucket {
        Bucket { tokens: BURST, refilled: now, left_out: 0 }
    }

    /// Whether a line may be written, and if so how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        while self.tokens < BURST && now.duration_since(self.refilled) >= REFILL {
            self.refilled += REFILL;
            self.tokens += 1;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        if self.tokens == 0 {
            self.left_out += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_burst_through_and_counts_the_rest() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let through = (0..10_000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(through, 200);
        assert_eq!(bucket.take(start + REFILL), Some(9_800));
        assert_eq!(bucket.take(start + REFILL), None);
        let later = start + Duration::from_secs(86_400);
        assert_eq!(bucket.take(later), Some(1));
        assert_eq!((0..10_000).filter(|_| bucket.take(later).is_some()).count(), 199, "never more than a burst");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(one_line("a\u{1b}[2J\nb é"), "a\\u{1b}[2J\\nb é");
    }
}
