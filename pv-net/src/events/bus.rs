//! The bus that carries events to all listeners.

use super::EventView;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// How many events a listener may be behind before it misses some.
const BACKLOG: usize = 256;

/// Carries events; cheap to clone. Nobody waits for a slow listener: it misses the oldest events and is told how many.
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
    /// Sends an event to all listeners.
    pub fn publish(&self, event: EventView) {
        // An error means that there are no listeners.
        let _ = self.sender.send(event);
    }

    /// Whether there are listeners.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// A listener for events from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener { receiver: self.sender.subscribe(), missed: self.missed.clone() }
    }

    /// How many events were missed so far, over all listeners.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// Receives events.
pub struct Listener {
    receiver: broadcast::Receiver<EventView>,
    missed: Arc<AtomicU64>,
}

/// What a listener receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Something happened.
    Event(EventView),
    /// This many events were missed, because the listener was too slow.
    Missed(u64),
}

impl Listener {
    /// The next event; `None` when there will be no more.
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
