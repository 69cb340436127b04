//! HTTP over a unix socket.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, ShutdownHandle};
use ureq::{Agent, Error, config::Config, http::Uri};

use super::Buffered;
use super::tcp::Socket;
use crate::net::connect_unix;

/// An HTTP client whose every request goes to the unix socket at `path`.
pub fn agent(path: PathBuf, config: Config) -> Agent {
    Agent::with_parts(config, UnixConnector(path), NoResolver)
}

#[derive(Debug)]
struct UnixConnector(PathBuf);

impl Connector for UnixConnector {
    type Out = Buffered<Arc<Socket>>;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Self::Out>, Error> {
        // What is done with a socket from here on is the same for both kinds.
        let socket = Arc::new(Socket(OwnedFd::from(connect_unix(&self.0)?).into()));
        (details.register_shutdown)(Arc::downgrade(&socket) as Weak<dyn ShutdownHandle>)?;
        Ok(Some(Buffered::new(socket, details)))
    }
}

/// The path is all there is to know: names are not looked up.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        Ok(self.empty())
    }
}
