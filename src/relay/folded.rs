//! Folds many equal troubles into two log lines: one when they begin, one when they are over, with their number.
//!
//! Never reads the clock and has no timer: the event loop passes `now` in and asks when to come back.

use std::time::{Duration, Instant};

use log::warn;

/// Without the trouble for this long, it is over. Shorter, and a relay that stays at its limit would log all the time.
const QUIET: Duration = Duration::from_secs(5);

/// One kind of trouble.
pub(super) struct Folded {
    what: String,
    episode: Option<Episode>,
}

struct Episode {
    began: Instant,
    last: Instant,
    count: u64,
}

impl Folded {
    /// `what` begins both lines, and says what is refused and why.
    pub(super) fn new(what: String) -> Folded {
        Folded { what, episode: None }
    }

    /// It happened.
    pub(super) fn hit(&mut self, now: Instant) {
        let what = &self.what;
        let episode = self.episode.get_or_insert_with(|| {
            warn!("{what}");
            Episode { began: now, last: now, count: 0 }
        });
        episode.last = now;
        episode.count = episode.count.saturating_add(1);
    }

    /// When to call [`Folded::settle`], if at all.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.episode.as_ref().map(|episode| episode.last + QUIET)
    }

    /// Ends the episode if it has been quiet for long enough.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(Episode { began, last, count }) = self.episode.take() {
            warn!("{}: over, {count} times in {} s", self.what, last.duration_since(began).as_secs());
        }
    }
}

impl Drop for Folded {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_lasts_until_it_has_been_quiet() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut folded = Folded::new("test".into());
        assert_eq!(folded.deadline(), None);
        folded.hit(at(0));
        folded.hit(at(3));
        assert_eq!(folded.deadline(), Some(at(8)));
        folded.settle(at(7));
        assert_eq!(folded.episode.as_ref().unwrap().count, 2);
        folded.settle(at(8));
        assert_eq!(folded.deadline(), None);
    }
}
