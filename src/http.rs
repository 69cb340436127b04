//! HTTP/1.1 for sources and sinks: ureq over streams of our own, with one set of time-outs.
//!
//! This folder is the only place that touches ureq's `unversioned` API, which may change in any release: Cargo.toml pins
//! the exact version. It never follows a redirect and never uses an HTTP proxy.

#[cfg(feature = "kubernetes")]
pub mod crypto;
pub mod tcp;
#[cfg(feature = "kubernetes")]
pub mod tls;
pub mod unix;

use std::fmt::Debug;
use std::io::{self, Read};
use std::time::Duration;

use ureq::config::{Config, ConfigBuilder};
use ureq::http::Response;
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, LazyBuffers, NextTimeout, Transport};
use ureq::{Body, Error};

/// The longest that a whole answer may take. Never applies to a stream of events, which has no end.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest silence inside an answer, or inside a line of a stream.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an error's message that are read.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// What every source wants of its client.
pub fn config() -> Config {
    builder().build()
}

/// The same for many short requests, up to `connections` at once, each with `connect` to connect. A connection that has
/// been idle for `idle` is not used again.
pub fn config_of_many(connections: usize, connect: Duration, idle: Duration) -> Config {
    builder()
        .timeout_connect(Some(connect))
        .max_idle_connections(connections)
        .max_idle_connections_per_host(connections)
        .max_idle_age(idle)
        .build()
}

fn builder() -> ConfigBuilder<AgentScope> {
    Config::builder()
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("rancher-desktop-guestagent/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .timeout_per_write(Some(READ_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .input_buffer_size(16 << 10)
        .output_buffer_size(4 << 10)
        .max_idle_connections(1)
}

/// The body of an answer that tells of a failure: as much of it as there is, since the status alone says that it failed.
pub fn message(response: Response<Body>) -> Vec<u8> {
    let mut message = Vec::new();
    let _ = response.into_body().into_reader().take(MESSAGE_BYTES_MAX).read_to_end(&mut message);
    message
}

/// A response's body whose time-outs say so (`TimedOut`), after which it can be read on.
pub struct Resumable<R>(pub R);

impl<R: Read> Read for Resumable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::Timeout(_)) => io::Error::new(io::ErrorKind::TimedOut, error),
            Some(_) | None => error,
        })
    }
}

/// What HTTP is spoken over. A time-out is `TimedOut` or `WouldBlock`, after which the stream can be used on.
trait Stream: Debug + Send + Sync + 'static {
    /// Whether what is sent is encrypted.
    const IS_TLS: bool;
    /// Waits for bytes, at most that long; 0: the peer has ended.
    fn receive(&mut self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize>;
    /// Sends them all, waiting at most that long each time.
    fn transmit(&mut self, bytes: &[u8], timeout: Option<Duration>) -> io::Result<()>;
    /// Whether it is open, and nothing has come that nobody asked for.
    fn is_silent(&mut self) -> bool;
}

/// A [`Stream`] with ureq's buffers.
#[derive(Debug)]
struct Buffered<S> {
    stream: S,
    buffers: LazyBuffers,
}

impl<S: Stream> Buffered<S> {
    fn new(stream: S, details: &ConnectionDetails) -> Buffered<S> {
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Buffered { stream, buffers }
    }
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

impl<S: Stream> Transport for Buffered<S> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.transmit(output, option(timeout)).map_err(|error| told_apart(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let n = loop {
            match self.stream.receive(self.buffers.input_append_buf(), option(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(|error| told_apart(error, timeout))?,
            }
        };
        self.buffers.input_appended(n);
        Ok(n > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.is_silent()
    }

    fn is_tls(&self) -> bool {
        S::IS_TLS
    }
}
