//! The listener sink: LISTEN sockets in the guest, which WSL notices (being built).

use std::io;

use super::Sink;
use crate::event::{Answer, Document};

/// Listens.
pub struct Listener;

impl Listener {
    /// Starts the thread that accepts.
    pub fn start() -> io::Result<Listener> {
        Ok(Listener)
    }
}

impl Sink for Listener {
    fn carry_out(&mut self, _: &Document) -> Answer {
        Answer::Unreachable("not built yet".into())
    }
}
