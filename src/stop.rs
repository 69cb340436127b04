//! Tells threads to end, wherever they wait: in a poll, in a pause, or in a library's blocking read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

type Hook = Box<dyn Fn() + Send>;

/// A stop sign, shared by whoever may raise it and the one thread that heeds it. Once raised it stays raised.
#[derive(Clone)]
pub struct Stop(Arc<Inner>);

struct Inner {
    /// Polls as hung up once `raised` is dropped.
    sign: OwnedFd,
    raised: Mutex<Option<OwnedFd>>,
    hook: Mutex<Option<Hook>>,
}

impl Stop {
    /// A stop sign that is not raised.
    pub fn new() -> std::io::Result<Stop> {
        let (sign, raised) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Stop(Arc::new(Inner { sign, raised: Mutex::new(Some(raised)), hook: Mutex::new(None) })))
    }

    /// Raises the sign: every wait ends, the hook runs.
    pub fn raise(&self) {
        drop(lock(&self.0.raised).take());
        self.run_hook();
    }

    fn run_hook(&self) {
        if let Some(hook) = lock(&self.0.hook).as_ref() {
            hook();
        }
    }

    /// Whether the sign is raised.
    pub fn is_raised(&self) -> bool {
        lock(&self.0.raised).is_none()
    }

    /// Waits that long. `true`: the sign was raised, at once or meanwhile.
    pub fn wait(&self, pause: Duration) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        match poll(&mut fds, timeout(pause)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => log::error!("waiting failed error={error:?}"),
        }
        self.is_raised()
    }

    /// Waits until `fd` can be read or the sign is raised. `false`: it was raised, or polling failed.
    pub fn readable(&self, fd: BorrowedFd<'_>) -> bool {
        self.wait_readable(&[fd], None)
    }

    /// Waits until one of `fds` can be read, the deadline has come, or the sign is raised. `false`: it was raised, or
    /// polling failed.
    pub fn wait_readable(&self, fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> bool {
        let mut polled = vec![PollFd::new(self.as_fd(), PollFlags::empty())];
        polled.extend(fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
        loop {
            let timeout =
                deadline.map_or(PollTimeout::NONE, |at| timeout(at.saturating_duration_since(Instant::now())));
            match poll(&mut polled, timeout) {
                Ok(_) => return !self.is_raised(),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    log::error!("waiting failed error={error:?}");
                    return false;
                }
            }
        }
    }

    /// Sets what to do, besides, when the sign is raised (at once if it is already): for a thread that blocks where
    /// no descriptor of ours can be polled. Replaces the hook before it.
    pub fn on_raise(&self, hook: impl Fn() + Send + 'static) {
        *lock(&self.0.hook) = Some(Box::new(hook));
        if self.is_raised() {
            self.run_hook();
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.sign.as_fd()
    }
}

/// Rounded up, so that a deadline has really passed when the wait ends.
fn timeout(pause: Duration) -> PollTimeout {
    PollTimeout::try_from(pause + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}

/// No code that holds these locks can leave what they guard half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn raising_ends_waits_and_runs_the_hook() {
        let stop = Stop::new().unwrap();
        let calls = Arc::new(AtomicU32::new(0));
        let seen = calls.clone();
        stop.on_raise(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        assert!(!stop.wait(Duration::from_millis(1)));
        let other = stop.clone();
        let begun = Instant::now();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        stop.raise();
        assert!(waiter.join().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let seen = calls.clone();
        stop.on_raise(move || {
            seen.fetch_add(10, Ordering::SeqCst);
        });
        assert_eq!(calls.load(Ordering::SeqCst), 11, "a hook set too late runs at once");
    }
}
