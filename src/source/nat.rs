//! The nat source: published ports in NAT rules (being built).

use std::time::Duration;

use crate::supervisor::Context;

/// What is known across sessions.
pub struct Nat {
    interval: Duration,
}

impl Nat {
    /// Looks that often whether rules that do not tell of their changes may have changed.
    pub fn new(interval: Duration) -> Nat {
        Nat { interval }
    }

    /// Watches until that fails, or the agent ends.
    pub fn session(&mut self, _: &Context) -> (bool, String) {
        (false, format!("not built yet: {:?}", self.interval))
    }
}
