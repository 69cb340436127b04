//! The socket's file: made so that nobody else can ever connect, taken over from an agent that died, and removed at the end.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;

/// Clients that may wait to be let in.
const BACKLOG: i32 = 128;

/// How long another agent that starts is waited for, and how often it is looked whether it is done.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The file of a socket that is ours.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: somebody may have put another one there.
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes it, where it still is ours.
    pub(super) fn remove(&self) {
        if identity(&self.path).ok() == Some(self.identity) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove the control socket path={:?} reason={:?}", self.path, error.to_string());
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Keeps others from making or taking over a socket in that directory. Waits a little for who does just that, and then goes on
/// without.
fn lock(directory: &Path) -> Option<Flock<File>> {
    let mut file = File::open(directory).ok()?;
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((same, Errno::EWOULDBLOCK)) if Instant::now() < end => file = same,
            Err(_) => return None,
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Listens there. Directories that are not there are made, and are ours alone.
pub(super) fn open(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // Of two that find what a dead agent left, one would remove what the other has just made.
    let _lock = directory.and_then(lock);
    let addr = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let new = || socket(AddressFamily::Unix, SockType::Stream, flags, None);
    let listener = new()?;
    // Linux makes the file with the mode that the socket has when it is bound: it is never wider, and other threads' files
    // do not suffer from a umask of ours.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    match bind(listener.as_raw_fd(), &addr) {
        Err(Errno::EADDRINUSE) => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    "there is something that is no socket, which stays",
                ));
            }
            match connect(new()?.as_raw_fd(), &addr) {
                // Of an agent that has not ended as it should.
                Err(Errno::ECONNREFUSED) => fs::remove_file(path)?,
                Err(Errno::ENOENT) => {}
                // Who has no room for another client answers, too.
                Ok(()) | Err(Errno::EAGAIN) => {
                    return Err(io::Error::new(ErrorKind::AddrInUse, "another agent answers there"));
                }
                Err(error) => return Err(error.into()),
            }
            bind(listener.as_raw_fd(), &addr)?;
        }
        other => other?,
    }
    let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok((UnixListener::from(listener), file))
}

/// Whether who has connected is root, or who the agent runs as.
pub(super) fn may_ask(stream: &UnixStream) -> bool {
    let peer = getsockopt(stream, sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
