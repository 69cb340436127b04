//! How many lines may be said in a stretch of time: the rest is counted, and said as a number later.

use std::time::{Duration, Instant};

/// Lets `max` lines through in each `period`, and counts those it holds back.
#[derive(Debug)]
pub struct Quota {
    max: u32,
    period: Duration,
    begun: Option<Instant>,
    taken: u32,
    held_back: u64,
}

impl Quota {
    /// A quota that nothing has been taken from.
    pub fn new(max: u32, period: Duration) -> Quota {
        Quota { max, period, begun: None, taken: 0, held_back: 0 }
    }

    /// Whether a line may be said now. [`Quota::settle`] comes first, or the count of a period is carried into the next.
    pub fn take(&mut self, now: Instant) -> bool {
        self.begin(now);
        if self.taken == self.max {
            self.held_back += 1;
            return false;
        }
        self.taken += 1;
        true
    }

    /// Counts lines that cannot be said now for another reason.
    pub fn hold_back(&mut self, count: u64, now: Instant) {
        self.begin(now);
        self.held_back += count;
    }

    /// The lines held back so far.
    pub fn held_back(&self) -> u64 {
        self.held_back
    }

    /// The lines held back, once their period is over; zero otherwise.
    pub fn settle(&mut self, now: Instant) -> u64 {
        if self.due().is_some_and(|due| now >= due) { std::mem::take(&mut self.held_back) } else { 0 }
    }

    /// When [`Quota::settle`] will have something to say.
    pub fn due(&self) -> Option<Instant> {
        self.ends().filter(|_| self.held_back > 0)
    }

    fn begin(&mut self, now: Instant) {
        if self.ends().is_none_or(|end| now >= end) {
            self.begun = Some(now);
            self.taken = 0;
        }
    }

    fn ends(&self) -> Option<Instant> {
        self.begun.map(|begun| begun + self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_holds_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut quota = Quota::new(2, Duration::from_secs(1));
        assert_eq!(quota.due(), None);
        assert_eq!((0..5).map(|ms| quota.take(at(ms))).collect::<Vec<_>>(), [true, true, false, false, false]);
        assert_eq!(quota.due(), Some(at(1000)));
        assert_eq!((quota.settle(at(999)), quota.settle(at(1000)), quota.settle(at(1000))), (0, 3, 0));
        assert!(quota.take(at(1001)) && quota.due().is_none());
    }
}
