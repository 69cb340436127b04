//! A bounded queue between threads: what `std::sync::mpsc` does, in a tenth of its code for each type that is sent.
//!
//! Nothing is lost: a full queue makes its senders wait, or refuses. What is queued when the last sender goes is still
//! received; what is queued when the receiver goes is dropped. Errors are those of `std::sync::mpsc`.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, SendError, TrySendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A queue that holds `limit` items, at least one.
pub fn bounded<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), limit, senders: 1, received: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), left: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

/// Puts items in. Clones put them into the same queue.
pub struct Sender<T>(Arc<Shared<T>>);

/// Takes items out, in the order in which they came.
pub struct Receiver<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    /// There is an item more, or no sender any more.
    changed: Condvar,
    /// There is an item less, or no receiver any more.
    left: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    limit: usize,
    senders: usize,
    /// Whether the receiver is still there.
    received: bool,
}

impl<T> Shared<T> {
    /// No code that holds the lock can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    /// Queues an item; waits while the queue is full. Fails when the receiver has gone.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        let mut state = self.0.lock();
        while state.received && state.items.len() >= state.limit {
            state = self.0.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.received {
            return Err(SendError(item));
        }
        state.items.push_back(item);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Queues an item if there is room for it now.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        // Nobody else fills the room meanwhile: one lock for both.
        let mut state = self.0.lock();
        if !state.received {
            return Err(TrySendError::Disconnected(item));
        }
        if state.items.len() >= state.limit {
            return Err(TrySendError::Full(item));
        }
        state.items.push_back(item);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next item; waits that long for it, or without end. `Disconnected`: the queue is empty, and nobody can fill it.
    pub fn recv(&self, timeout: Option<Duration>) -> Result<T, RecvTimeoutError> {
        // A time that is too far off to be told is without end.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                self.0.left.notify_one();
                return Ok(item);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(RecvTimeoutError::Timeout),
                Some(rest) => self.0.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.changed.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.received = false;
        // Dropped only once the lock is free: an item may hold a sender of its own.
        let items = std::mem::take(&mut state.items);
        drop(state);
        self.0.left.notify_all();
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LONG: Option<Duration> = Some(Duration::from_secs(30));

    #[test]
    fn senders_wait_for_room_and_nothing_is_lost() {
        let (sender, receiver) = bounded(2);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || (0..1_000).for_each(|n| sender.send((thread, n)).unwrap()))
            })
            .collect();
        drop(sender);
        let mut next = [0; 4];
        while let Ok((thread, n)) = receiver.recv(LONG) {
            assert_eq!(n, next[thread], "in the order of its sender");
            next[thread] += 1;
            assert!(receiver.0.lock().items.len() <= 2);
        }
        assert_eq!(next, [1_000; 4]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn says_why_there_is_nothing() {
        let (sender, receiver) = bounded(1);
        assert_eq!(receiver.recv(Some(Duration::ZERO)), Err(RecvTimeoutError::Timeout));
        let begun = Instant::now();
        assert_eq!(receiver.recv(Some(Duration::from_millis(5))), Err(RecvTimeoutError::Timeout));
        assert!(begun.elapsed() >= Duration::from_millis(5));
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        drop(sender);
        assert_eq!(receiver.recv(None), Ok(1), "what is queued is received");
        assert_eq!(receiver.recv(None), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_receiver_that_goes_frees_those_who_wait() {
        let (sender, receiver) = bounded(1);
        let (reply, answer) = bounded::<()>(1);
        assert!(sender.send(Some(reply)).is_ok());
        let blocked = sender.clone();
        let waiter = thread::spawn(move || blocked.send(None).is_err());
        drop(receiver);
        assert!(waiter.join().unwrap());
        assert_eq!(answer.recv(LONG), Err(RecvTimeoutError::Disconnected), "the item went with it");
        assert!(matches!(sender.try_send(None), Err(TrySendError::Disconnected(None))));
    }

    #[test]
    fn a_sender_that_goes_ends_the_wait() {
        let (sender, receiver) = bounded::<()>(1);
        let waiter = thread::spawn(move || receiver.recv(None));
        drop(sender);
        assert_eq!(waiter.join().unwrap(), Err(RecvTimeoutError::Disconnected));
    }
}
