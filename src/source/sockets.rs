//! The sockets source: what listens in the guest, whoever it belongs to.

use std::io;
use std::time::Duration;

use crate::net::Outward;
use crate::supervisor::Context;

/// Looks at sockets again and again.
pub struct Sockets {
    interval: Duration,
    outward: Vec<Outward>,
}

impl Sockets {
    /// A source that looks once in `interval`. Of sockets on one address, those on loopback addresses and on `outward` count.
    pub fn new(interval: Duration, outward: Vec<Outward>) -> Sockets {
        Sockets { interval, outward }
    }

    /// One session, for the supervisor.
    pub fn session(&mut self, context: &Context) -> (bool, io::Error) {
        context.stop.wait(self.interval);
        (false, io::Error::other(format!("sockets are not looked at yet ({} ways in)", self.outward.len())))
    }
}
