//! The leases of clients as readers see them: only those that are on disk.

use crate::ipam::{ClientLease, Ipam};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// By their addresses. A batch of leases changes the entries of that batch alone, however many there are: so many clients
/// can be given an address in a second that a copy of all for each batch would take most of the time.
type All = RwLock<BTreeMap<IpAddr, Arc<ClientLease>>>;

/// The side of the lease book.
pub(super) struct Lent {
    all: Arc<All>,
    changed: watch::Sender<()>,
}

/// The leases of clients that are on disk, also those that are over; every answered request is included.
#[derive(Clone, Debug)]
pub struct Clients {
    all: Arc<All>,
    changed: watch::Receiver<()>,
}

impl Lent {
    /// Those of `ipam`, and a reader.
    pub fn new(ipam: &Ipam) -> (Self, Clients) {
        let (all, (changed, follow)) = (Arc::default(), watch::channel(()));
        let lent = Self { all, changed };
        lent.replace(ipam);
        let clients = Clients { all: lent.all.clone(), changed: follow };
        (lent, clients)
    }

    /// All of them are those of `ipam`.
    pub fn replace(&self, ipam: &Ipam) {
        let all = ipam.clients().map(|lease| (lease.address, lease.clone())).collect();
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
        self.changed.send_replace(());
    }

    /// Those of a batch are others: `old` were before, and `new` are now.
    pub fn change<'a>(
        &self,
        old: impl Iterator<Item = &'a Arc<ClientLease>>,
        new: impl Iterator<Item = &'a Arc<ClientLease>>,
    ) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        old.for_each(|lease| drop(all.remove(&lease.address)));
        new.for_each(|lease| drop(all.insert(lease.address, lease.clone())));
        drop(all);
        self.changed.send_replace(());
    }

    /// Whether `ipam` has all that a reader sees.
    pub fn is_in(&self, ipam: &Ipam) -> bool {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().all(|lease| ipam.client(&lease.key()) == Some(lease))
    }
}

impl Clients {
    /// All of them, in the order of their keys.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ClientLease>> {
        let mut all: Vec<_> = self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_cached_key(|lease| lease.key());
        all
    }

    /// Whether there are none, not even leases that are over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Those that have names and are not over at `now` (seconds since 1970, UTC), in the order of their keys.
    #[must_use]
    pub fn named(&self, now: u64) -> Vec<Arc<ClientLease>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut named: Vec<_> =
            all.values().filter(|lease| lease.hostname.is_some() && !lease.is_over(now)).cloned().collect();
        drop(all);
        named.sort_by_cached_key(|lease| lease.key());
        named
    }

    /// Waits for a change since the last call, or since this reader was made.
    ///
    /// # Errors
    /// When the book has ended.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.changed.changed().await
    }
}
