//! What the relay's loop lends to `tcp` and `udp`: limits, counters, epoll; and how long to wait.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::folded::Folded;
use super::{Admit, Counters, Limits};

/// What listeners of both protocols need.
pub(super) struct Context {
    pub(super) name: String,
    pub(super) limits: Limits,
    pub(super) admit: Admit,
    pub(super) counters: Arc<Counters>,
    pub(super) epoll: Epoll,
    pub(super) over_connections: Folded,
    pub(super) over_flows: Folded,
    pub(super) exhausted: Folded,
    pub(super) last_token: u64,
}

impl Context {
    /// Has epoll report when `fd` can be read, under a number that is never used again: an event that was already
    /// taken from epoll when its socket was closed then names nothing.
    pub(super) fn watch(&mut self, fd: impl AsFd) -> nix::Result<u64> {
        self.last_token += 1;
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, self.last_token))?;
        Ok(self.last_token)
    }
}

/// The time-out that makes poll and epoll return once `deadline` has passed, and not before.
pub(super) fn timeout_until(deadline: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    // Both count whole milliseconds: rounded down, they would return again and again within the last one.
    let wait = deadline.saturating_duration_since(now) + Duration::from_millis(1);
    PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
}
