//! Tells when some iptables of the older kind has run: each opens one lock file, and closes it when it is done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// The file that iptables locks, unless it is told otherwise.
const LOCK: &str = "/run/xtables.lock";

/// A watch on that file, for as long as it can be had.
pub struct Lock {
    inotify: Option<Inotify>,
    /// The file that is watched, by its device and inode.
    watched: Option<(WatchDescriptor, (u64, u64))>,
}

impl Lock {
    /// Watches from the next [`Lock::follow`] on.
    pub fn new() -> Lock {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        Lock { inotify: inotify.map_err(give_up).ok(), watched: None }
    }

    /// Whether iptables has ended since the last call.
    pub fn was_used(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        match inotify.read_events() {
            Ok(_) => true,
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(errno) => {
                give_up(errno);
                self.inotify = None;
                true
            }
        }
    }

    /// Looks whether it is still the same file. `true`: iptables may have run unseen; that is at every call when the
    /// file cannot be watched.
    pub fn follow(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return true };
        let file = match Path::new(LOCK).metadata() {
            Ok(metadata) => Some((metadata.dev(), metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                give_up(error);
                self.inotify = None;
                return true;
            }
        };
        if self.watched.map(|(_, file)| file) == file {
            return false;
        }
        if let Some((watch, _)) = self.watched.take() {
            // A file that is gone has taken its watch along.
            let _ = inotify.rm_watch(watch);
        }
        let Some(file) = file else { return true };
        match inotify.add_watch(LOCK, AddWatchFlags::IN_CLOSE) {
            Ok(watch) => self.watched = Some((watch, file)),
            Err(Errno::ENOENT) => {}
            Err(errno) => {
                give_up(errno);
                self.inotify = None;
            }
        }
        true
    }

    /// What can be read when [`Lock::was_used`] is to be asked.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }
}

/// Says so once: it is not tried again in this session.
fn give_up(error: impl std::fmt::Display) {
    log::warn!(
        "cannot watch {LOCK}: rules of iptables-legacy are read at every --nat-interval error={:?}",
        error.to_string()
    );
}
