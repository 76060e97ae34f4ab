//! Limits how many requests are with the broker at a time: a fixed number, and one for each namespace.
//!
//! A request keeps its turn until the broker's child for it has ended, even if the asker has given up. So a namespace
//! that never answers takes up one turn, however often it is asked for, and leaves the others free.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most namespaces that are entered at a time. A child takes a few hundred KiB, for milliseconds unless its namespace
/// hangs.
pub(super) const NAMESPACES: usize = 64;
/// Most sockets whose owner is looked for at a time. The name is only for messages.
pub(super) const OWNERS: usize = 2;

/// All turns. Waiters are served in the order in which they came.
#[derive(Debug)]
pub(super) struct Turns {
    namespaces: Arc<Semaphore>,
    owners: Arc<Semaphore>,
    /// One semaphore for each namespace's file. Those that nobody holds are removed.
    places: Mutex<HashMap<PathBuf, Weak<Semaphore>>>,
}

/// A turn; it is released when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _place: Option<OwnedSemaphorePermit>,
    _child: OwnedSemaphorePermit,
}

/// Why acquiring cannot fail: the semaphores are never closed.
const OPEN: &str = "the semaphore is open for as long as it is there";

impl Turns {
    pub(crate) fn new() -> Self {
        Self {
            namespaces: Arc::new(Semaphore::new(NAMESPACES)),
            owners: Arc::new(Semaphore::new(OWNERS)),
            places: Mutex::default(),
        }
    }

    /// Waits for a turn to enter the namespace at `path`, first until no other request is about the same one.
    pub(crate) async fn enter(&self, path: &Path) -> Turn {
        let place = self.place(path).acquire_owned().await.expect(OPEN);
        let child = self.namespaces.clone().acquire_owned().await.expect(OPEN);
        Turn { _place: Some(place), _child: child }
    }

    /// Waits for a turn to look for a socket's owner.
    pub(crate) async fn look(&self) -> Turn {
        Turn { _place: None, _child: self.owners.clone().acquire_owned().await.expect(OPEN) }
    }

    /// Whether all turns for namespaces are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.namespaces.available_permits() == 0
    }

    fn place(&self, path: &Path) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| place.strong_count() > 0);
        if let Some(place) = places.get(path).and_then(Weak::upgrade) {
            return place;
        }
        let place = Arc::new(Semaphore::new(1));
        places.insert(path.to_owned(), Arc::downgrade(&place));
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_hangs_takes_one_turn_however_often_it_is_asked_for() {
        let turns = Turns::new();
        let stuck = turns.enter(Path::new("/stuck")).await;
        for _ in 0..NAMESPACES * 2 {
            assert!(timeout(SOON, turns.enter(Path::new("/stuck"))).await.is_err(), "two at a time");
        }
        let others: Vec<_> = (1..NAMESPACES).map(|n| PathBuf::from(format!("/{n}"))).collect();
        let mut held = Vec::new();
        for path in &others {
            held.push(timeout(SOON, turns.enter(path)).await.expect("its turn"));
        }
        assert!(turns.is_full());
        assert!(timeout(SOON, turns.enter(Path::new("/one-more"))).await.is_err(), "more than there are");
        drop(timeout(SOON, turns.look()).await.expect("sockets have turns of their own"));
        drop(stuck);
        timeout(SOON, turns.enter(Path::new("/stuck"))).await.expect("its turn");
        drop(held);
        drop(turns.place(Path::new("/x")));
        assert_eq!(turns.places.lock().expect("no panic").len(), 1, "what nobody asks about is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_served_first() {
        let turns = Arc::new(Turns::new());
        let first = turns.enter(Path::new("/a")).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..5 {
            let (turns, order) = (turns.clone(), order.clone());
            waiting.spawn(async move {
                let _turn = turns.enter(Path::new("/a")).await;
                order.lock().expect("no panic").push(n);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        waiting.join_all().await;
        assert_eq!(*order.lock().expect("no panic"), [0, 1, 2, 3, 4]);
    }
}
