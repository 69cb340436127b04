//! Changes that those who watch have yet to be told, kept once for all of them. Each has a place of its own in it, and whoever
//! falls off the end is told how many it missed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Report;
use crate::view::Change;

/// Changes that are kept.
pub(super) const CHANGES_MAX: usize = 16_384;

/// What comes next for one who watches.
pub(super) enum Next {
    Change(Arc<Change>),
    /// So many were missed.
    Lost(u64),
    Nothing,
}

/// Numbered changes; numbers that are not there were lost.
#[derive(Default)]
pub(super) struct Ring {
    kept: VecDeque<(u64, Arc<Change>)>,
    /// The number of the next one.
    next: u64,
    /// From this number on they wait for the present state: see [`Ring::wants_state`].
    waiting: Option<u64>,
}

impl Ring {
    /// The place of one who is told what comes from now on.
    pub(super) fn end(&self) -> u64 {
        self.next
    }

    pub(super) fn push(&mut self, change: Change) {
        let is_of_whole = match &change.report {
            Report::Source { .. } | Report::Peer { .. } | Report::Reset { .. } => true,
            Report::Forward { .. }
            | Report::Stale { .. }
            | Report::LeftOut { .. }
            | Report::Denied { .. }
            | Report::Skipped { .. }
            | Report::Rules { .. }
            | Report::StartingOver
            | Report::StartedOver { .. }
            | Report::Narrowed { .. } => false,
        };
        if is_of_whole {
            self.waiting.get_or_insert(self.next);
        }
        if self.kept.len() >= CHANGES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((self.next, Arc::new(change)));
        self.next += 1;
    }

    /// So many did not get here.
    pub(super) fn skip(&mut self, count: u64) {
        self.next += count;
    }

    /// Whether there is a change of a source or a sink: its document has counts that only the present state has.
    pub(super) fn wants_state(&self) -> bool {
        self.waiting.is_some()
    }

    /// The present state is known. It came behind all changes that are here.
    pub(super) fn state_came(&mut self) {
        self.waiting = None;
    }

    /// Nobody watches.
    pub(super) fn clear(&mut self) {
        // The room goes, too.
        self.kept = VecDeque::new();
        self.waiting = None;
    }

    /// What comes next at that place, which moves on.
    pub(super) fn next(&self, place: &mut u64) -> Next {
        let end = self.waiting.unwrap_or(self.next);
        if *place >= end {
            return Next::Nothing;
        }
        let index = self.kept.partition_point(|(number, _)| number < place);
        let found = self.kept.get(index).filter(|(number, _)| *number < end);
        let number = found.map_or(end, |(number, _)| *number);
        let lost = number - *place;
        *place = number;
        match found {
            Some((_, change)) if lost == 0 => {
                *place += 1;
                Next::Change(change.clone())
            }
            Some(_) | None => Next::Lost(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn change(count: usize) -> Change {
        Change { at: UNIX_EPOCH, report: Report::StartedOver { left: count }, name: None }
    }

    fn of_sink() -> Change {
        let report = Report::Peer { sink: crate::event::SinkId(0), problem: None };
        Change { at: UNIX_EPOCH, report, name: None }
    }

    /// What one at that place is told: `Ok` a change, `Err` how many are lost.
    fn read(ring: &Ring, place: &mut u64) -> Vec<Result<usize, u64>> {
        let mut read = Vec::new();
        loop {
            match ring.next(place) {
                Next::Change(change) => match change.report {
                    Report::StartedOver { left } => read.push(Ok(left)),
                    _ => read.push(Ok(usize::MAX)),
                },
                Next::Lost(count) => read.push(Err(count)),
                Next::Nothing => return read,
            }
        }
    }

    #[test]
    fn each_is_told_all_from_its_place_on() {
        let mut ring = Ring::default();
        ring.push(change(0));
        let (mut first, mut second) = (0, ring.end());
        ring.push(change(1));
        assert_eq!(read(&ring, &mut first), [Ok(0), Ok(1)]);
        assert_eq!(read(&ring, &mut second), [Ok(1)]);
        ring.clear();
        ring.push(change(2));
        assert_eq!(read(&ring, &mut second), [Ok(2)]);
    }

    #[test]
    fn what_is_lost_is_counted_where_it_was() {
        let mut ring = Ring::default();
        let mut place = ring.end();
        ring.push(change(0));
        ring.skip(7);
        ring.push(change(8));
        ring.skip(2);
        assert_eq!(read(&ring, &mut place), [Ok(0), Err(7), Ok(8), Err(2)]);
        for count in 0..CHANGES_MAX + 5 {
            ring.push(change(count));
        }
        let read = read(&ring, &mut place);
        assert_eq!(read[..2], [Err(5), Ok(5)]);
        assert_eq!(read.len(), CHANGES_MAX + 1);
    }

    #[test]
    fn what_needs_the_present_state_waits_for_it() {
        let mut ring = Ring::default();
        let mut place = ring.end();
        ring.push(change(0));
        ring.push(of_sink());
        ring.push(change(2));
        assert!(ring.wants_state());
        assert_eq!(read(&ring, &mut place), [Ok(0)]);
        ring.state_came();
        assert_eq!(read(&ring, &mut place), [Ok(usize::MAX), Ok(2)]);
        assert!(!ring.wants_state());
    }
}
