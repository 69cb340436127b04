//! The wsl-proxy sink: PortMapping documents to Rancher Desktop's wsl-proxy, which listens in the namespace of other distributions.

use std::path::PathBuf;

use super::Sink;
use crate::event::{Answer, Document};

/// Tells wsl-proxy.
pub struct WslProxy {
    path: PathBuf,
}

impl WslProxy {
    /// A sink for the unix socket at `path`. Does no I/O.
    pub fn new(path: PathBuf) -> WslProxy {
        WslProxy { path }
    }
}

impl Sink for WslProxy {
    fn carry_out(&mut self, _: &Document) -> Answer {
        Answer::Unreachable(format!("{} is not spoken to yet", self.path.display()))
    }
}
