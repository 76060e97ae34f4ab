//! The handle for requests to the lease book.

use super::lent::Clients;
use crate::ipam::store::StoreError;
use crate::ipam::{ClientKey, ClientLease, IpamError, Lease, LeaseKey, LendError, Request};
use crate::model::{ContainerName, Mac, Pool};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// A request for a lease; `None` leaves the choice to the book.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The pool, as it is configured at present.
    pub pool: Pool,
    /// The interface that the lease is for.
    pub key: LeaseKey,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC.
    pub mac: Option<Mac>,
}

impl Wanted {
    pub(super) fn request(&self) -> Request<'_> {
        Request { key: &self.key, ipv4: self.ipv4, ipv6: self.ipv6, mac: self.mac }
    }
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A lease is requested: the one that the key has if it fits, else a new one.
    Assign(Wanted),
    /// The key's lease ends, if it has one.
    Release(LeaseKey),
    /// This lease is in use: it is added, and replaces the one that its key has.
    Learn(Arc<Lease>),
    /// A client of DHCP gets this lease, in place of the one of that family that it has in the pool. If the address
    /// belongs to another client's lease that is over, an earlier step must end that one.
    Lend(Arc<ClientLease>),
    /// The lease of this client ends, if it has one.
    End(ClientKey),
}

/// Why leases were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaseError {
    /// No such lease can be given.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// Somebody else has the address that a client is to get.
    #[error(transparent)]
    Lend(#[from] LendError),
    /// A lease that is in use conflicts with another one.
    #[error("the lease of {}: its address or MAC is leased to {holder}", lease.key)]
    Held {
        /// The lease.
        lease: Arc<Lease>,
        /// Who has the address or MAC.
        holder: LeaseKey,
    },
    /// The lease file could not be written.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The book's thread panicked before the answer. It has started again from the file, or has ended.
    #[error("the lease book failed at this")]
    Failed,
    /// The book's thread has ended.
    #[error("the lease book has ended")]
    Ended,
}

/// The requested leases, in the order of the steps.
pub(super) type Changed = Result<Vec<Arc<Lease>>, LeaseError>;

/// A request to the book.
pub(super) enum Ask {
    /// Change leases.
    Change {
        /// The steps, which are all done in this order, or none of them.
        steps: Vec<Step>,
        /// The answer.
        answer: oneshot::Sender<Changed>,
    },
    /// Reserve addresses for declared containers.
    Reserve {
        /// All of them, each with the interface that it is for.
        wanted: Vec<(IpAddr, LeaseKey)>,
        /// For each of them, who else has it.
        answer: oneshot::Sender<Vec<Option<LeaseKey>>>,
    },
    /// From now on the device has these addresses.
    SetDevice {
        /// All of them that are in a pool's network.
        addresses: BTreeSet<IpAddr>,
    },
    /// Run this on the book's thread.
    #[cfg(test)]
    Test(Box<dyn FnOnce() + Send>),
}

/// The addresses that are containers': those that they have leases of, and those that declared ones have reserved.
#[derive(Clone, Debug)]
pub struct OfContainers {
    leases: Arc<[Arc<Lease>]>,
    reserved: Arc<[IpAddr]>,
}

impl OfContainers {
    /// Whether nothing has changed since `before`.
    #[must_use]
    pub fn is_as(&self, before: &Self) -> bool {
        Arc::ptr_eq(&self.leases, &before.leases) && Arc::ptr_eq(&self.reserved, &before.reserved)
    }

    /// The addresses; some may be there twice.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.leases.iter().flat_map(|lease| lease.addresses()).chain(self.reserved.iter().copied())
    }
}

/// A handle to the lease book; cheap to clone. The book ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct LeaseHandle {
    asks: mpsc::Sender<Ask>,
    leases: watch::Receiver<Arc<[Arc<Lease>]>>,
    reserved: watch::Receiver<Arc<[IpAddr]>>,
    clients: Clients,
    condition: watch::Receiver<Option<String>>,
}

impl LeaseHandle {
    pub(super) fn new(
        asks: mpsc::Sender<Ask>,
        leases: watch::Receiver<Arc<[Arc<Lease>]>>,
        reserved: watch::Receiver<Arc<[IpAddr]>>,
        clients: Clients,
        condition: watch::Receiver<Option<String>>,
    ) -> Self {
        Self { asks, leases, reserved, clients, condition }
    }

    /// The condition of the book; from its first failure on it stays for as long as the daemon runs.
    #[must_use]
    pub fn condition(&self) -> Option<String> {
        self.condition.borrow().clone()
    }

    /// Runs `work` on the book's thread, after the requests before it.
    #[cfg(test)]
    pub(super) async fn test(&self, work: impl FnOnce() + Send + 'static) {
        assert!(self.asks.send(Ask::Test(Box::new(work))).await.is_ok(), "the book has ended");
    }

    /// Changes leases: all of the steps, or none. Returns the requested leases in the order of their steps, after they
    /// were written to disk.
    ///
    /// # Errors
    /// The first step that is impossible, or the failure of the disk. Or a panic of the book; then it is unknown
    /// whether the changes are on disk.
    pub async fn change(&self, steps: Vec<Step>) -> Result<Vec<Arc<Lease>>, LeaseError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Change { steps, answer }).await.map_err(|_| LeaseError::Ended)?;
        answered.await.map_err(|_| LeaseError::Failed)?
    }

    /// Reserves each address for its key, and ends all earlier reservations; no other key gets a reserved address. This
    /// is not stored, since the declaring files are read again at the next start.
    ///
    /// Returns, for each of them, who else has it.
    ///
    /// # Errors
    /// When the book has ended, or panicked meanwhile.
    pub async fn reserve(&self, wanted: Vec<(IpAddr, LeaseKey)>) -> Result<Vec<Option<LeaseKey>>, LeaseError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Reserve { wanted, answer }).await.map_err(|_| LeaseError::Ended)?;
        answered.await.map_err(|_| LeaseError::Failed)
    }

    /// From now on nobody is given these addresses, which the device has itself.
    ///
    /// # Errors
    /// When the book has ended.
    pub async fn set_device(&self, addresses: BTreeSet<IpAddr>) -> Result<(), LeaseError> {
        self.asks.send(Ask::SetDevice { addresses }).await.map_err(|_| LeaseError::Ended)
    }

    /// All leases that are on disk, in the order of their keys; every answered request is included. Waits for nobody.
    #[must_use]
    pub fn all(&self) -> Arc<[Arc<Lease>]> {
        self.leases.borrow().clone()
    }

    /// The addresses that no client may be given because they are containers', attached or not. Waits for nobody.
    #[must_use]
    pub fn of_containers(&self) -> OfContainers {
        OfContainers { leases: self.all(), reserved: self.reserved.borrow().clone() }
    }

    /// A reader of the clients' leases, which can wait for their next change.
    #[must_use]
    pub fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// The leases of one container.
    #[must_use]
    pub fn of(&self, container: &ContainerName) -> Vec<Arc<Lease>> {
        self.leases.borrow().iter().filter(|l| l.key.container == *container).cloned().collect()
    }
}

/// The steps that lead from the leases `now` back to those of `before`. New leases are released first, since addresses
/// may have been exchanged.
#[must_use]
pub fn undo(before: &[Arc<Lease>], now: &[Arc<Lease>]) -> Vec<Step> {
    let old: HashMap<&LeaseKey, &Arc<Lease>> = before.iter().map(|l| (&l.key, l)).collect();
    let kept: HashMap<&LeaseKey, &Arc<Lease>> = now.iter().map(|l| (&l.key, l)).collect();
    let gone = now.iter().filter(|l| old.get(&l.key) != Some(l)).map(|l| Step::Release(l.key.clone()));
    let again = before.iter().filter(|l| kept.get(&l.key) != Some(l)).map(|l| Step::Learn(l.clone()));
    gone.chain(again).collect()
}
