//! The host-switch sink: requests to the expose API of host-switch and of every other gvisor-tap-vsock host.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::Sink;
use crate::event::{Answer, Document};

/// Where the API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// `HOST:PORT`, looked up at each connection.
    Tcp(String),
    /// A unix stream socket, as gvproxy serves it.
    Unix(PathBuf),
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base::Tcp(address) => write!(f, "http://{address}"),
            Base::Unix(path) => write!(f, "http+unix://{}", path.display()),
        }
    }
}

/// How to reach host-switch, and what to keep of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSwitchConfig {
    /// Where its API is.
    pub base: Base,
    /// Where it is to lead connections to.
    pub tap_ip: Ipv4Addr,
    /// A file with a bearer token, where the API wants one.
    pub token_file: Option<PathBuf>,
    /// Where it is kept what is ours at host-switch.
    pub state_file: PathBuf,
}

/// Keeps forwards at host-switch.
pub struct HostSwitch {
    config: HostSwitchConfig,
}

impl HostSwitch {
    /// A sink for that API. Does no I/O.
    pub fn new(config: HostSwitchConfig) -> HostSwitch {
        HostSwitch { config }
    }
}

impl Sink for HostSwitch {
    fn carry_out(&mut self, _: &Document) -> Answer {
        Answer::Unreachable(format!("{} is not spoken to yet", self.config.base))
    }
}
