//! Telling the agent of a guest that the host is here, so that it announces everything again.
//!
//! The host connects to port 17382 of the guest and reads the 50 bytes of [`MAGIC`]: vtunnel's handshake, by which
//! Rancher Desktop finds the right virtual machine. Through a hypervisor's unix socket that begins with
//! `CONNECT 17382\n`, answered by `OK <number>\n` (Firecracker's protocol). Tried once a second, ten times; an agent
//! that is not running yet announces everything when it starts, so failing is no error. Never blocks for long.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vsock::VsockStream;

use crate::net::connect_unix;
use crate::wire::vtunnel::{HANDSHAKE_PORT, MAGIC};

/// How often it is tried.
const TRIES_MAX: u32 = 10;
/// From one try to the next.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// The longest that one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest answer to `CONNECT` that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 32;

/// A way to the guest.
#[derive(Debug, Clone)]
pub enum Guest {
    /// The hypervisor's unix socket.
    Uds(PathBuf),
    /// The guest's CID.
    Cid(u32),
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guest::Uds(path) => write!(f, "{}", path.display()),
            Guest::Cid(cid) => write!(f, "guest {cid}"),
        }
    }
}

/// A handshake that is being tried. Dropping it ends that.
#[derive(Debug)]
pub struct Handshake {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Handshake {
    /// Starts a thread that tries.
    pub fn start(guest: Guest) -> io::Result<Handshake> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("handshake".to_owned()).spawn(move || run(&guest, &stopped))?;
        Ok(Handshake { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            log::error!("the handshake thread has panicked");
        }
    }
}

fn run(guest: &Guest, stopped: &Receiver<()>) {
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        match attempt(guest) {
            Ok(()) => {
                log::info!("handshake with the agent through {guest} done: it announces everything again");
                return;
            }
            Err(error) => {
                log::debug!("handshake through {guest}: {error}");
                last = error.to_string();
            }
        }
        match stopped.recv_timeout(TRY_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
    log::info!("no handshake through {guest} after {TRIES_MAX} tries ({last}): the agent is waited for");
}

fn attempt(guest: &Guest) -> io::Result<()> {
    let deadline = Instant::now() + TRY_TIMEOUT;
    match guest {
        Guest::Uds(path) => {
            let mut stream = connect_unix(path)?;
            stream.set_write_timeout(Some(TRY_TIMEOUT))?;
            stream.write_all(format!("CONNECT {HANDSHAKE_PORT}\n").as_bytes())?;
            read_ok(&mut stream, deadline)?;
            read_magic(&mut stream, deadline)
        }
        // The kernel gives up connecting after two seconds by itself.
        Guest::Cid(cid) => read_magic(&mut VsockStream::connect_with_cid_port(*cid, HANDSHAKE_PORT)?, deadline),
    }
}

/// A stream whose reads can be given a time-out.
pub trait TimedRead: Read {
    /// Sets it for the reads that follow.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl TimedRead for UnixStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

impl TimedRead for VsockStream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))
    }
}

/// Reads a hypervisor's answer to `CONNECT`, and no byte behind it.
///
/// # Errors
/// It is another answer than `OK <number>`, or does not come in time.
pub fn read_ok(stream: &mut impl TimedRead, deadline: Instant) -> io::Result<()> {
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < ANSWER_BYTES_MAX {
        answer.push(read_byte(stream, deadline)?);
    }
    let number = answer.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    match number {
        Some(number) if !number.is_empty() && number.iter().all(u8::is_ascii_digit) => Ok(()),
        Some(_) | None => Err(invalid(format!("the answer to CONNECT is \"{}\"", answer.escape_ascii()))),
    }
}

/// Reads what the agent of Rancher Desktop says, and no byte behind it.
///
/// # Errors
/// Something else is said, or it does not come in time.
pub fn read_magic(stream: &mut impl TimedRead, deadline: Instant) -> io::Result<()> {
    for expected in MAGIC {
        if read_byte(stream, deadline)? != *expected {
            return Err(invalid(format!("port {HANDSHAKE_PORT} of the guest is answered by another program")));
        }
    }
    Ok(())
}

fn read_byte(stream: &mut impl TimedRead, deadline: Instant) -> io::Result<u8> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_timeout(left)?;
    let mut byte = [0];
    match stream.read_exact(&mut byte) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error),
        Ok(()) => Ok(u8::from_ne_bytes(byte)),
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &[u8]) -> io::Result<()> {
        let (mut host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(answer).unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        read_ok(&mut host, deadline).and_then(|()| read_magic(&mut host, deadline))
    }

    #[test]
    fn takes_only_the_right_answer() {
        assert!(check(&[b"OK 1073741824\n", &MAGIC[..]].concat()).is_ok());
        for bad in [&b"OK \n"[..], b"OK x\n", b"NO 1\n", b"OK 1\nSSH-2.0-OpenSSH", &[b'1'; 100]] {
            assert_eq!(check(bad).unwrap_err().kind(), io::ErrorKind::InvalidData, "{}", bad.escape_ascii());
        }
        for slow in [&b""[..], b"OK 1", b"OK 1\n", b"OK 1\ngithub.com"] {
            assert_eq!(check(slow).unwrap_err().kind(), io::ErrorKind::TimedOut, "{}", slow.escape_ascii());
        }
    }
}
