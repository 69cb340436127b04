//! Moves bytes between two connected TCP sockets, both ways, with splice: they never come into this process's memory
//! (but urgent data, which is carried in its place among the rest).
//!
//! Each direction is in one of three states. It reads only into an empty pipe, hence it never has to ask whether a
//! splice that would block found the socket empty or the pipe full, and a receiver that does not read stops its sender:
//!
//! ```text
//!            bytes read                end of data: the other side's write end is shut
//!  Reading ─────────────▶ Writing     Reading ─────▶ Done
//!     ▲                      │
//!     └── all bytes written ─┘
//! ```
//!
//! Polls only for what a state can use, so that a half-closed connection sleeps. Never closes or resets a socket. Splicing
//! to a socket that was reset raises SIGPIPE: the process must ignore it, which Rust's runtime sees to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use nix::unistd::{pipe2, write};

/// A connection that is closed on one side and carries nothing for this long has been forgotten by its owners.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60 * 60);

/// What is asked of one splice, and the size a pipe is given when a direction turns out to carry bulk. Measured on one
/// core: a third more than the default of 64 KiB, and 1 MiB is no better.
const BULK_PIPE_BYTES: i32 = 256 * 1024;

/// A read of this much is likely to have left more behind: it is worth reading again before asking poll.
const BULK_READ_BYTES: usize = 16 * 1024;

/// What is read at once where splice cannot: an empty pipe takes as much in one piece.
const COPY_BYTES: usize = 1024;

/// Reads before the other direction and the stop descriptor get their turn.
const READS_MAX: usize = 16;

/// Carries bytes both ways until both sides have ended in order. `ECANCELED`: `stop` became readable. `ETIMEDOUT`: it
/// was half closed and idle. Any other error is that of a socket; what it leaves behind must be reset, not closed.
pub(super) fn carry(client: BorrowedFd<'_>, target: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> nix::Result<()> {
    let half_closed_idle = PollTimeout::try_from(HALF_CLOSED_IDLE).unwrap_or(PollTimeout::MAX);
    let mut up = Direction::new(client, target);
    let mut down = Direction::new(target, client);
    while !(up.is_done() && down.is_done()) {
        let timeout = if up.is_done() || down.is_done() { half_closed_idle } else { PollTimeout::NONE };
        let client_wanted = up.wants_of_source() | down.wants_of_sink();
        let target_wanted = down.wants_of_source() | up.wants_of_sink();
        let mut fds = [
            PollFd::new(stop, PollFlags::POLLIN),
            // A socket shut both ways reports a hang-up at all times. One that is not wanted and that we have shut must
            // stay out, then; the stop descriptor, asked for nothing, fills its place.
            PollFd::new(if client_wanted.is_empty() && down.is_done() { stop } else { client }, client_wanted),
            PollFd::new(if target_wanted.is_empty() && up.is_done() { stop } else { target }, target_wanted),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
        }
        let [stopped, client_is, target_is] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::POLLERR));
        if !stopped.is_empty() {
            return Err(Errno::ECANCELED);
        }
        // Nothing was asked of it and our write end is open: only a reset, or a dead peer, makes it report anything.
        if (client_wanted.is_empty() && !client_is.is_empty()) || (target_wanted.is_empty() && !target_is.is_empty()) {
            return Err(Errno::ECONNRESET);
        }
        up.turn(client_is, target_is)?;
        down.turn(target_is, client_is)?;
    }
    Ok(())
}

/// One direction of a connection.
struct Direction<'a> {
    source: BorrowedFd<'a>,
    sink: BorrowedFd<'a>,
    /// Made when the first data comes: many connections never send anything one of the ways.
    pipe: Option<Pipe>,
    state: State,
}

enum State {
    /// The pipe is empty.
    Reading,
    /// The pipe holds this many bytes.
    Writing(usize),
    /// The source has ended, and the sink was told.
    Done,
}

impl<'a> Direction<'a> {
    fn new(source: BorrowedFd<'a>, sink: BorrowedFd<'a>) -> Direction<'a> {
        Direction { source, sink, pipe: None, state: State::Reading }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn wants_of_source(&self) -> PollFlags {
        if matches!(self.state, State::Reading) { PollFlags::POLLIN } else { PollFlags::empty() }
    }

    fn wants_of_sink(&self) -> PollFlags {
        if matches!(self.state, State::Writing(_)) { PollFlags::POLLOUT } else { PollFlags::empty() }
    }

    /// Does what it can, given what poll says of both sides.
    fn turn(&mut self, source_is: PollFlags, sink_is: PollFlags) -> nix::Result<()> {
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP;
        let ready = match self.state {
            State::Reading => source_is.intersects(PollFlags::POLLIN | broken),
            State::Writing(_) => sink_is.intersects(PollFlags::POLLOUT | broken),
            State::Done => false,
        };
        match if ready { self.advance() } else { Ok(()) } {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            other => other,
        }
    }

    /// Moves bytes until a side would block (`EAGAIN`), the source has ended, or it is time to ask poll again.
    fn advance(&mut self) -> nix::Result<()> {
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            none => none.insert(Pipe::new()?),
        };
        for _ in 0..READS_MAX {
            let read = match self.state {
                State::Reading => pipe.fill(self.source)?,
                State::Writing(left) => left,
                State::Done => return Ok(()),
            };
            if read == 0 {
                self.state = State::Done;
                // The pipe is empty and will stay so.
                self.pipe = None;
                return shutdown(self.sink.as_raw_fd(), Shutdown::Write);
            }
            self.state = State::Writing(read);
            while let State::Writing(left) = self.state {
                let left = left - pipe.drain(self.sink, left)?;
                self.state = if left == 0 { State::Reading } else { State::Writing(left) };
            }
            if read < BULK_READ_BYTES {
                return Ok(());
            }
            pipe.grow();
        }
        Ok(())
    }
}

/// A kernel pipe, which splice needs between two sockets.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    grown: bool,
}

impl Pipe {
    fn new() -> nix::Result<Pipe> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Pipe { read, write, grown: false })
    }

    fn fill(&self, source: BorrowedFd<'_>) -> nix::Result<usize> {
        match splice(source, None, self.write.as_fd(), None, BULK_PIPE_BYTES.unsigned_abs() as usize, flags()) {
            // In front of urgent data splice says so too, though poll says that there is something to read: ask again.
            Ok(0) | Err(Errno::EAGAIN) => self.copy(source),
            other => other,
        }
    }

    /// Fills the pipe without splice, which never gets past urgent data; reading does.
    fn copy(&self, source: BorrowedFd<'_>) -> nix::Result<usize> {
        let mut buffer = [0; COPY_BYTES];
        let read = recv(source.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if !bytes.is_empty() && write(&self.write, bytes)? != read {
            // Not to be expected of an empty pipe.
            return Err(Errno::EIO);
        }
        Ok(read)
    }

    fn drain(&self, sink: BorrowedFd<'_>, bytes: usize) -> nix::Result<usize> {
        match splice(self.read.as_fd(), None, sink, None, bytes, flags())? {
            // Not to be expected of a pipe that holds these bytes, and asking again might go on for ever.
            0 => Err(Errno::EIO),
            written => Ok(written),
        }
    }

    /// Makes room for bulk, once. A refusal (the user's pipes are over a system limit) only costs speed.
    fn grow(&mut self) {
        if !self.grown {
            self.grown = true;
            let _ = fcntl(&self.write, FcntlArg::F_SETPIPE_SZ(BULK_PIPE_BYTES));
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
