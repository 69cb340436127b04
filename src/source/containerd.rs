//! The containerd source: what nerdctl publishes, from the events of `ctr` (being built).

use std::path::PathBuf;

use crate::supervisor::Context;

/// What is known across sessions.
pub struct Containerd {
    socket: PathBuf,
    ctr: Option<PathBuf>,
}

impl Containerd {
    /// For the containerd behind that socket. `ctr` is the program; `None`: the first on the path.
    pub fn new(socket: PathBuf, ctr: Option<PathBuf>) -> Containerd {
        Containerd { socket, ctr }
    }

    /// Watches until containerd or `ctr` is lost, or the agent ends.
    pub fn session(&mut self, _: &Context) -> (bool, String) {
        (false, format!("not built yet: {:?} {:?}", self.socket, self.ctr))
    }
}
