//! HTTP over a unix socket.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, ShutdownHandle};
use ureq::{Agent, Error, config::Config, http::Uri};

use super::{Buffered, Stream};
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
        let socket = Arc::new(Socket(connect_unix(&self.0)?));
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

#[derive(Debug)]
struct Socket(UnixStream);

impl ShutdownHandle for Socket {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Stream for Arc<Socket> {
    const IS_TLS: bool = false;

    fn receive(&mut self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        self.0.set_read_timeout(timeout)?;
        (&self.0).read(buffer)
    }

    fn transmit(&mut self, bytes: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_write_timeout(timeout)?;
        (&self.0).write_all(bytes)
    }

    fn is_silent(&mut self) -> bool {
        let probe = || {
            self.0.set_nonblocking(true)?;
            let silent = matches!((&self.0).read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            self.0.set_nonblocking(false)?;
            Ok::<bool, io::Error>(silent)
        };
        probe().unwrap_or(false)
    }
}
