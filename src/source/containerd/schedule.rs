//! When containerd's tasks are to be listed. Pure: the time is passed in.
//!
//! At the start of a session, and twice more soon after: `ctr events` does not say when it has really subscribed.
//! After that only when something was missed, further and further apart while that goes on.

use std::time::{Duration, Instant};

/// From the first listing to the ones that follow it in any case.
const SETTLING: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// From a listing to the next one at least, when something was missed.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The same after many in a row.
const INTERVAL_MAX: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    first: Option<Instant>,
    last: Option<Instant>,
    /// Of [`SETTLING`], those that are over.
    settled: usize,
    interval: Duration,
}

impl Schedule {
    /// When the next listing is due; `None`: not for now. `missed`: something was missed since the last one began.
    pub fn due(&self, now: Instant, missed: bool) -> Option<Instant> {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Some(now) };
        let settling = SETTLING.get(self.settled).map(|after| first + *after);
        settling.into_iter().chain(missed.then(|| last + self.interval)).min()
    }

    /// A listing begins.
    pub fn begin(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        let since = self.last.map(|last| now.duration_since(last));
        // What happens again long after the last time is not what went on then.
        let goes_on = since.is_some_and(|since| since < self.interval * 2);
        self.interval = if goes_on { (self.interval * 2).min(INTERVAL_MAX) } else { INTERVAL_MIN };
        self.settled = SETTLING.iter().filter(|after| first + **after <= now).count();
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which listings begin, when something is missed at these seconds.
    fn listings(missed: impl Fn(u64) -> bool, until: u64) -> Vec<u64> {
        let start = Instant::now();
        let (mut schedule, mut begun, mut due) = (Schedule::default(), Vec::new(), false);
        for second in 0..until {
            due |= missed(second);
            let now = start + Duration::from_secs(second);
            if schedule.due(now, due).is_some_and(|at| at <= now) {
                schedule.begin(now);
                begun.push(second);
                due = false;
            }
        }
        begun
    }

    #[test]
    fn a_quiet_session_lists_three_times() {
        assert_eq!(listings(|_| false, 100), [0, 1, 5]);
    }

    #[test]
    fn what_was_missed_is_listed_soon_and_ever_more_rarely_while_that_goes_on() {
        assert_eq!(listings(|second| second == 20, 100), [0, 1, 5, 20]);
        assert_eq!(listings(|_| true, 48), [0, 1, 3, 5, 13, 21, 29, 37, 45]);
        assert_eq!(listings(|second| second < 30 || second == 90, 100), [0, 1, 3, 5, 13, 21, 29, 90]);
    }
}
