//! When one reader is to read. Pure: time is passed in.

use std::time::{Duration, Instant};

use crate::backoff;

/// Quiet after a change before it is read: whoever writes one rule mostly writes more.
const SETTLE: Duration = Duration::from_millis(2);

/// The longest that a change waits for quiet.
const SETTLE_MAX: Duration = Duration::from_millis(20);

/// Changes that wait to be read, and from when on that may be.
#[derive(Debug, Default)]
pub struct Pace {
    /// The first and the last change since the last read began.
    changed: Option<(Instant, Instant)>,
    not_before: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// Something may have changed.
    pub fn change(&mut self, now: Instant) {
        let first = self.changed.map_or(now, |(first, _)| first);
        self.changed = Some((first, now));
    }

    /// When to read; `None`: there is nothing new.
    pub fn due(&self) -> Option<Instant> {
        let (first, last) = self.changed?;
        let settled = (last + SETTLE).min(first + SETTLE_MAX);
        Some(self.not_before.map_or(settled, |earliest| earliest.max(settled)))
    }

    /// A read begins; what changes from now on is for the next one.
    pub fn begin(&mut self) {
        self.changed = None;
    }

    /// It has told all there is; the next one is to begin no earlier than that.
    pub fn succeeded(&mut self, not_before: Instant) {
        self.failures = 0;
        self.not_before = Some(not_before);
    }

    /// It failed, and is to be tried again.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + backoff::wait_after(self.failures));
        self.change(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_quiet_but_not_for_ever() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.change(start);
        assert_eq!(pace.due(), Some(start + ms(2)));
        for n in 1..=30 {
            pace.change(start + ms(n));
        }
        assert_eq!(pace.due(), Some(start + ms(20)), "changes that never end are read too");
        pace.begin();
        assert_eq!(pace.due(), None);
        pace.change(start + ms(40));
        pace.succeeded(start + ms(60));
        assert_eq!(pace.due(), Some(start + ms(60)), "a change while it read is read again, paced");
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            pace.begin();
            pace.failed(now);
            let due = pace.due().unwrap();
            waits.push(due.duration_since(now).as_millis());
            now = due;
            pace.change(now);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.begin();
        pace.succeeded(now);
        pace.change(now);
        assert_eq!(pace.due(), Some(now + SETTLE), "soon again");
    }
}
