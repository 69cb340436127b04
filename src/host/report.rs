//! What the host end did, for scripts: one JSON object a line on stdout.
//!
//! `{"time":"2026-11-21T01:52:31.123Z","event":"opened","protocol":"tcp","hostIp":"127.0.0.1","hostPort":8080,
//! "connect":"192.168.143.2:8080"}`; the events are `opened`, `closed`, `conflict`, `denied`, `failed` (with a `reason`)
//! and `suppressed` (with a `count` of lines that were left out). Only fields that apply are there.
//!
//! A thread of its own writes, so that a reader that stops reading never holds up a forward: when too many lines wait,
//! new ones are counted instead. A reader that has gone away is not missed.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::quota::Quota;
use crate::logging::timestamp;
use crate::port::Binding;

/// Lines that may wait for a slow reader: more than the `closed` lines of a full set of ports.
const LINES_WAITING_MAX: usize = 32_768;
/// Lines about ports that could not be opened, per second.
const TROUBLE_PER_SECOND_MAX: u32 = 50;
/// Lines about ports that were opened or closed, in each period: all ports twice, and in the long run no more than of
/// the others, however often a guest changes its mind.
const CHANGES_MAX: u32 = 32_768;
const CHANGES_PERIOD: Duration = Duration::from_secs(600);

/// A change of one forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub binding: Binding,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The port is open, and its connections go here.
    Opened(SocketAddr),
    /// It is no longer wanted: closed, or no longer tried.
    Closed,
    /// Another program has the port. It is tried again.
    Conflict(String),
    /// The rules forbid it. It is not tried again.
    Denied(String),
    /// It could not be opened.
    Failed(String),
}

impl Outcome {
    fn event(&self) -> &'static str {
        match self {
            Outcome::Opened(_) => "opened",
            Outcome::Closed => "closed",
            Outcome::Conflict(_) => "conflict",
            Outcome::Denied(_) => "denied",
            Outcome::Failed(_) => "failed",
        }
    }
}

/// Writes changes out.
#[derive(Debug)]
pub struct Reporter {
    lines: Sender<String>,
    waiting: Arc<AtomicUsize>,
    ended: Receiver<()>,
    trouble: Quota,
    changes: Quota,
}

impl Reporter {
    /// Starts the thread that writes to `out`.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Reporter> {
        let (lines, queue) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        thread::Builder::new().name("report".to_owned()).spawn(move || {
            write_lines(&queue, &count, out);
            drop(end);
        })?;
        let trouble = Quota::new(TROUBLE_PER_SECOND_MAX, Duration::from_secs(1));
        let changes = Quota::new(CHANGES_MAX, CHANGES_PERIOD);
        Ok(Reporter { lines, waiting, ended, trouble, changes })
    }

    /// Writes one change, unless too many of its kind came of late, or too many lines wait.
    pub fn report(&mut self, change: &Change, now: Instant) {
        self.settle(now);
        let quota = match change.outcome {
            Outcome::Opened(_) | Outcome::Closed => &mut self.changes,
            Outcome::Conflict(_) | Outcome::Denied(_) | Outcome::Failed(_) => &mut self.trouble,
        };
        if !quota.take(now) {
            return;
        }
        if self.has_room() {
            self.send(line_of(change));
        } else {
            self.trouble.hold_back(1, now);
        }
    }

    /// Says how many lines were left out, once the time for that has come.
    pub fn settle(&mut self, now: Instant) {
        let held_back = self.trouble.settle(now) + self.changes.settle(now);
        if held_back == 0 {
            return;
        }
        if self.has_room() {
            self.send(suppressed_line(held_back));
        } else {
            self.trouble.hold_back(held_back, now);
        }
    }

    /// When [`Reporter::settle`] will have something to say.
    pub fn due(&self) -> Option<Instant> {
        self.trouble.due().into_iter().chain(self.changes.due()).min()
    }

    /// Waits until every line is written, or until patience is at its end.
    pub fn finish(self, patience: Duration) {
        let held_back = self.trouble.held_back() + self.changes.held_back();
        if held_back > 0 {
            self.send(suppressed_line(held_back));
        }
        drop(self.lines);
        // An error either way: the thread has ended, or time is over.
        let _ = self.ended.recv_timeout(patience);
    }

    fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < LINES_WAITING_MAX
    }

    fn send(&self, line: String) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The thread ends only after this sender.
        let _ = self.lines.send(line);
    }
}

fn write_lines(queue: &Receiver<String>, waiting: &AtomicUsize, mut out: impl Write) {
    let mut reader_left = false;
    for line in queue {
        if !reader_left {
            reader_left = out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err();
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn line_of(change: &Change) -> String {
    let Binding { protocol, host_ip, host_port } = change.binding;
    let event = change.outcome.event();
    let mut line = format!(
        "{{\"time\":\"{}\",\"event\":\"{event}\",\"protocol\":\"{protocol}\",\"hostIp\":\"{host_ip}\",\"hostPort\":{host_port}",
        timestamp()
    );
    match &change.outcome {
        Outcome::Opened(target) => {
            let _ = write!(line, ",\"connect\":\"{target}\"");
        }
        Outcome::Closed => {}
        Outcome::Conflict(reason) | Outcome::Denied(reason) | Outcome::Failed(reason) => {
            let _ = write!(line, ",\"reason\":{}", serde_json::Value::from(reason.as_str()));
        }
    }
    line.push_str("}\n");
    line
}

fn suppressed_line(count: u64) -> String {
    format!("{{\"time\":\"{}\",\"event\":\"suppressed\",\"count\":{count}}}\n", timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;
    use serde_json::Value;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn change(outcome: Outcome) -> Change {
        let host_port = 8080.try_into().unwrap();
        Change { binding: Binding { protocol: Protocol::Tcp, host_ip: "::1".parse().unwrap(), host_port }, outcome }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn lines_have_the_fields_that_apply() {
        let out = Shared::default();
        let mut reporter = Reporter::start(out.clone()).unwrap();
        let now = Instant::now();
        reporter.report(&change(Outcome::Opened("[fd00::2]:8080".parse().unwrap())), now);
        reporter.report(&change(Outcome::Denied("a \"reason\"".into())), now);
        reporter.finish(PATIENCE);
        let lines = out.lines();
        let fields = |i: usize| lines[i].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(0), ["connect", "event", "hostIp", "hostPort", "protocol", "time"]);
        assert_eq!(lines[0]["connect"], "[fd00::2]:8080");
        assert_eq!(fields(1), ["event", "hostIp", "hostPort", "protocol", "reason", "time"]);
        assert_eq!((&lines[1]["reason"], &lines[1]["hostPort"]), (&"a \"reason\"".into(), &8080.into()));
        let time = lines[0]["time"].as_str().unwrap();
        assert!(time.len() == "2026-11-21T01:52:31.123Z".len() && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_flood_of_trouble_becomes_a_count() {
        let out = Shared::default();
        let mut reporter = Reporter::start(out.clone()).unwrap();
        let now = Instant::now();
        for _ in 0..1000 {
            reporter.report(&change(Outcome::Failed("no".into())), now);
        }
        reporter.report(&change(Outcome::Closed), now);
        assert_eq!(reporter.due(), Some(now + Duration::from_secs(1)));
        reporter.settle(now + Duration::from_secs(1));
        reporter.finish(PATIENCE);
        let lines = out.lines();
        assert_eq!(lines.len(), 52);
        assert_eq!((&lines[50]["event"], &lines[51]["count"]), (&"closed".into(), &950.into()));
    }

    /// Writes nothing until its channel is closed.
    struct Blocked(Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_reading_holds_nobody_up() {
        let (unblock, blocked) = mpsc::channel();
        let mut reporter = Reporter::start(Blocked(blocked)).unwrap();
        let (now, later) = (Instant::now(), Instant::now() + CHANGES_PERIOD);
        (0..CHANGES_MAX).for_each(|_| reporter.report(&change(Outcome::Closed), now));
        (0..10).for_each(|_| reporter.report(&change(Outcome::Closed), later));
        assert!(reporter.waiting.load(Ordering::Relaxed) <= LINES_WAITING_MAX);
        // What was lost is said when there is room again, and until then it is not asked for all the time.
        reporter.settle(reporter.due().unwrap());
        assert!(reporter.due().unwrap() > later + Duration::from_millis(1500));
        drop(unblock);
        while reporter.waiting.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        reporter.settle(reporter.due().unwrap());
        assert_eq!(reporter.due(), None);
        reporter.finish(PATIENCE);
    }

    #[test]
    fn changes_without_end_become_a_count_too() {
        let out = Shared::default();
        let mut reporter = Reporter::start(out.clone()).unwrap();
        let now = Instant::now();
        (0..CHANGES_MAX + 10).for_each(|_| {
            reporter.report(&change(Outcome::Closed), now);
            while !reporter.has_room() {
                thread::yield_now();
            }
        });
        reporter.finish(PATIENCE);
        let lines = out.lines();
        assert_eq!(lines.len(), CHANGES_MAX as usize + 1);
        assert_eq!(lines.last().unwrap()["count"], 10);
    }

    #[test]
    fn a_reader_that_has_left_is_not_missed() {
        let (gone, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(gone);
        let mut reporter = Reporter::start(writer).unwrap();
        for _ in 0..3 {
            reporter.report(&change(Outcome::Closed), Instant::now());
        }
        reporter.finish(PATIENCE);
    }
}
