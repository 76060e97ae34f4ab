//! From whoever sees something to everybody who listens.

use super::EventView;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that a slow listener may be behind before it misses some.
const BACKLOG: usize = 256;

/// Carries events; cheap to clone. Nobody waits for a listener: who is too slow misses the oldest, and is told how many.
#[derive(Clone, Debug)]
pub struct Bus {
    sender: broadcast::Sender<EventView>,
    missed: Arc<AtomicU64>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0, missed: Arc::default() }
    }
}

impl Bus {
    /// Tells everybody who listens.
    pub fn publish(&self, event: EventView) {
        // Nobody listens: nothing is lost.
        let _ = self.sender.send(event);
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Events from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener { receiver: self.sender.subscribe(), missed: self.missed.clone() }
    }

    /// Events that listeners have missed so far, summed over all of them.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// Hears what happens.
pub struct Listener {
    receiver: broadcast::Receiver<EventView>,
    missed: Arc<AtomicU64>,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Something happened.
    Event(EventView),
    /// So many events happened that the listener was too slow for.
    Missed(u64),
}

impl Listener {
    /// The next event; none when there will be no more.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.receiver.recv().await {
            Ok(event) => Some(Heard::Event(event)),
            Err(RecvError::Lagged(n)) => {
                self.missed.fetch_add(n, Ordering::Relaxed);
                Some(Heard::Missed(n))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Change, ChangeEventView};

    fn event(n: usize) -> EventView {
        EventView::Change(ChangeEventView { time: n as f64, event: Change::Reloaded, container: None, text: None })
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_how_much_it_missed() {
        let bus = Bus::default();
        let (mut slow, mut late) = (bus.listen(), bus.listen());
        (0..BACKLOG + 3).for_each(|n| bus.publish(event(n)));
        assert_eq!(slow.next().await, Some(Heard::Missed(3)));
        assert_eq!(slow.next().await, Some(Heard::Event(event(3))));
        assert_eq!(late.next().await, Some(Heard::Missed(3)));
        assert_eq!(bus.missed(), 6);
    }
}
