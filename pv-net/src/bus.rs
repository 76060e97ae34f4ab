//! A bus that carries what happens to all listeners.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// How many messages a listener may be behind before it misses some, unless the bus is made with another number.
const BACKLOG: usize = 256;

/// Carries messages; cheap to clone. Nobody waits for a slow listener: it misses the oldest messages and is told how
/// many.
#[derive(Clone, Debug)]
pub struct Bus<T> {
    sender: broadcast::Sender<T>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// How many listen. The channel knows it too, but behind a lock.
    listeners: AtomicUsize,
    missed: AtomicU64,
}

impl<T: Clone> Default for Bus<T> {
    fn default() -> Self {
        Self::with_backlog(BACKLOG)
    }
}

impl<T: Clone> Bus<T> {
    /// A bus on which a listener may be `backlog` messages behind before it misses some.
    #[must_use]
    pub fn with_backlog(backlog: usize) -> Self {
        Self { sender: broadcast::channel(backlog).0, counts: Arc::default() }
    }

    /// Sends a message to all listeners.
    pub fn publish(&self, message: T) {
        // An error means that there are no listeners.
        let _ = self.sender.send(message);
    }

    /// Whether there are listeners: one atomic read.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.counts.listeners.load(Ordering::Relaxed) > 0
    }

    /// A listener for messages from now on.
    #[must_use]
    pub fn listen(&self) -> Listener<T> {
        let listener = Listener { receiver: self.sender.subscribe(), counts: self.counts.clone() };
        self.counts.listeners.fetch_add(1, Ordering::Relaxed);
        listener
    }

    /// How many messages were missed so far, over all listeners.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.counts.missed.load(Ordering::Relaxed)
    }
}

/// Receives messages.
pub struct Listener<T> {
    receiver: broadcast::Receiver<T>,
    counts: Arc<Counts>,
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.counts.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a listener receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard<T> {
    /// A message.
    Message(T),
    /// This many messages were missed, because the listener was too slow.
    Missed(u64),
}

impl<T: Clone> Listener<T> {
    /// The next message; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Heard<T>> {
        match self.receiver.recv().await {
            Ok(message) => Some(Heard::Message(message)),
            Err(RecvError::Lagged(n)) => {
                self.counts.missed.fetch_add(n, Ordering::Relaxed);
                Some(Heard::Missed(n))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_too_slow_is_told_how_much_it_missed() {
        let bus = Bus::default();
        assert!(!bus.is_heard());
        let (mut slow, mut late) = (bus.listen(), bus.listen());
        (0..BACKLOG + 3).for_each(|n| bus.publish(n));
        assert_eq!(slow.next().await, Some(Heard::Missed(3)));
        assert_eq!(slow.next().await, Some(Heard::Message(3)));
        assert_eq!(late.next().await, Some(Heard::Missed(3)));
        assert_eq!(bus.missed(), 6);
        drop((slow, late));
        assert!(!bus.is_heard());
    }
}
