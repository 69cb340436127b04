//! Hands one document to a receiver that has no reply: writes it, and waits for the close that shows it was read.
//!
//! Every wait has an end. What the document is, and who the receiver, is the sinks' own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vsock::VsockStream;

/// The longest a connection, or a write, may take. AF_VSOCK has its own limit of 2 s for connecting.
pub(super) const PEER_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest wait for the receiver's close. A receiver that keeps the connection open has taken the document all
/// the same.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same when the agent ends, and all of its documents have to be out within 5 s: the Privileged Service closes only
/// when it has carried the document out, and so does wsl-proxy.
pub(super) const CLOSE_TIMEOUT_STOPPING: Duration = Duration::from_millis(20);

/// Bytes of an answer; only our own host end sends any, and more than that is not waited for.
const ANSWER_BYTES_MAX: usize = 4096;

/// Writes the document, waits for the receiver to close, and returns what it answered.
pub(super) fn deliver(stream: &mut dyn Stream, document: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    stream.timeouts(PEER_TIMEOUT, patience)?;
    write_all_within(stream, document, PEER_TIMEOUT)?;
    stream.no_more()?;
    let begun = Instant::now();
    let mut answer = Vec::new();
    let mut chunk = [0; 256];
    while answer.len() < ANSWER_BYTES_MAX && begun.elapsed() < patience {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            // Over vsock, what reading says after a shutdown that came later than the receiver's close: Linux's shutdown
            // clears the flag by which reading tells an orderly end from no connection.
            Err(error) if error.kind() == ErrorKind::NotConnected => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// A receiver that takes a byte now and then must not hold the sink up: the time is for the whole of it.
fn write_all_within(stream: &mut dyn Stream, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
    let begun = Instant::now();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if begun.elapsed() > limit {
            return Err(io::Error::new(ErrorKind::TimedOut, "it takes too long to read"));
        }
    }
    Ok(())
}

/// What the three kinds of streams have in common.
pub(super) trait Stream: Read + Write {
    fn timeouts(&self, write: Duration, read: Duration) -> io::Result<()>;
    fn no_more(&self) -> io::Result<()>;
}

macro_rules! stream {
    ($kind:ty) => {
        impl Stream for $kind {
            fn timeouts(&self, write: Duration, read: Duration) -> io::Result<()> {
                self.set_write_timeout(Some(write))?;
                self.set_read_timeout(Some(read))
            }

            fn no_more(&self) -> io::Result<()> {
                match self.shutdown(Shutdown::Write) {
                    // The receiver has read and closed already: that is what the close is waited for.
                    Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
                    result => result,
                }
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
stream!(VsockStream);
