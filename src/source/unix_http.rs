//! HTTP/1.1 over a unix socket: a connector and a transport for ureq.
//!
//! This is the only place that touches ureq's `unversioned` API, which may change in any release: Cargo.toml pins
//! the exact version.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};
use ureq::{Agent, Error, config::Config, http::Uri};

use crate::net::connect_unix;

/// An HTTP client whose every request goes to the unix socket at `path`. Never through an HTTP proxy.
pub fn agent(path: PathBuf, config: Config) -> Agent {
    Agent::with_parts(config, UnixConnector(path), NoResolver)
}

/// A response's body whose time-outs say so (`TimedOut`), after which it can be read on.
pub struct Resumable<R>(pub R);

impl<R: io::Read> io::Read for Resumable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::Timeout(_)) => io::Error::new(io::ErrorKind::TimedOut, error),
            Some(_) | None => error,
        })
    }
}

#[derive(Debug)]
struct UnixConnector(PathBuf);

impl Connector for UnixConnector {
    type Out = UnixTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<UnixTransport>, Error> {
        let stream = Arc::new(Handle(connect_unix(&self.0)?));
        (details.register_shutdown)(Arc::downgrade(&stream) as Weak<dyn ShutdownHandle>)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(UnixTransport { stream, buffers }))
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
struct Handle(UnixStream);

impl ShutdownHandle for Handle {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[derive(Debug)]
struct UnixTransport {
    stream: Arc<Handle>,
    buffers: LazyBuffers,
}

/// A time-out as a socket option takes it: none for "never", and never zero.
fn option(timeout: NextTimeout) -> Option<Duration> {
    (!timeout.after.is_not_happening()).then(|| (*timeout.after).max(Duration::from_millis(1)))
}

fn told_apart(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.0.set_write_timeout(option(timeout))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        (&self.stream.0).write_all(output).map_err(|error| told_apart(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.0.set_read_timeout(option(timeout))?;
        let n = loop {
            match (&self.stream.0).read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(|error| told_apart(error, timeout))?,
            }
        };
        self.buffers.input_appended(n);
        Ok(n > 0)
    }

    fn is_open(&mut self) -> bool {
        let probe = || {
            self.stream.0.set_nonblocking(true)?;
            let silent = matches!((&self.stream.0).read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            self.stream.0.set_nonblocking(false)?;
            Ok::<bool, io::Error>(silent)
        };
        probe().unwrap_or(false)
    }
}
