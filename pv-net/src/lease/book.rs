//! The thread that keeps the lease book. It takes all waiting requests as one batch and writes them at once. If its own
//! code panics, the requests of that batch fail, and it starts again from the file, which has every lease that was ever
//! given.

use super::clock::unix_time;
use super::handle::{Ask, Changed, LeaseError, LeaseHandle, Step};
use super::journal::{self, Journal};
use super::lent::Lent;
use crate::ipam::store::{StoreError, failed};
use crate::ipam::{Before, Change, ClientLease, Ipam, Lease, LeaseKey};
use std::any::Any;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// How many requests may wait; further senders wait until there is room. It is also about the most that goes into one
/// batch.
const QUEUE: usize = 1024;
/// Stack size of the thread, bytes. It is address space; only the part in use takes memory.
const STACK: usize = 1 << 20;

/// Opens the lease book of `dir`. Leases that an earlier version kept in the state file, `moved`, replace those of the
/// book, since only such an earlier version can have written them later. The second value has conditions about the
/// file.
///
/// # Errors
/// When a file cannot be read or written, or the thread cannot be started.
pub fn open(dir: &Path, moved: Option<Ipam>) -> Result<(LeaseHandle, Vec<String>), StoreError> {
    let (journal, ipam, conditions) = match moved {
        Some(ipam) => {
            let mut journal = Journal::new(dir);
            journal.write_anew(&ipam)?;
            (journal, ipam, Vec::new())
        }
        None => journal::load(dir)?,
    };
    Ok((start(journal, ipam).map_err(failed("start the thread for", dir))?, conditions))
}

pub(super) fn start(journal: Journal, ipam: Ipam) -> std::io::Result<LeaseHandle> {
    let (asks, queue) = mpsc::channel(QUEUE);
    let (leases, readers) = watch::channel(ipam.leases().cloned().collect());
    let (declared, reserved) = watch::channel(Arc::default());
    let (clients, client_readers) = Lent::new(&ipam);
    let (told, condition) = watch::channel(None);
    let book = Book {
        ipam,
        journal,
        reserved: Vec::new(),
        of_device: BTreeSet::new(),
        declared,
        leases,
        clients,
        batch: Batch::default(),
    };
    let thread = std::thread::Builder::new().name("pv-net-leases".to_owned()).stack_size(STACK);
    thread.spawn(move || keep(book, queue, &told))?;
    Ok(LeaseHandle::new(asks, readers, reserved, client_readers, condition))
}

/// Keeps the book until the last handle is dropped. After a panic it starts again from the file. If that fails, the
/// thread and the queue end: requests get an error, and no address is given any more.
fn keep(mut book: Book, mut queue: mpsc::Receiver<Ask>, condition: &watch::Sender<Option<String>>) {
    while let Err(panic) = catch_unwind(AssertUnwindSafe(|| book.run(&mut queue))) {
        let why = text_of(panic.as_ref());
        match book.begin_anew() {
            Ok(()) => {
                tracing::error!(panic = why, "lease book: it panicked and was begun anew from the disk");
                let said = format!("lease book: it panicked, and was begun anew from the disk: {why}");
                condition.send_replace(Some(said));
            }
            Err(e) => {
                tracing::error!(panic = why, error = %e, "lease book: it panicked and cannot be begun anew");
                let said = format!("lease book: it panicked: {why}: no address can be given any more: {e}");
                condition.send_replace(Some(said));
                return;
            }
        }
    }
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

struct Book {
    ipam: Ipam,
    journal: Journal,
    /// Addresses reserved for declared containers. They are stored nowhere else.
    reserved: Vec<(IpAddr, LeaseKey)>,
    /// The device's own addresses in the pools' networks, which are stored nowhere either.
    of_device: BTreeSet<IpAddr>,
    /// Those that are reserved, as readers see them.
    declared: watch::Sender<Arc<[IpAddr]>>,
    /// What readers see: only leases that are on disk.
    leases: watch::Sender<Arc<[Arc<Lease>]>>,
    clients: Lent,
    batch: Batch,
}

/// The changes that are written next.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    /// What is needed to undo each of them.
    before: Vec<Before>,
    /// The requests that wait for the write, with their results.
    waiting: Vec<(oneshot::Sender<Changed>, Vec<Arc<Lease>>)>,
}

impl Book {
    fn run(&mut self, queue: &mut mpsc::Receiver<Ask>) {
        while let Some(ask) = queue.blocking_recv() {
            self.take(ask);
            for _ in 1..QUEUE {
                let Ok(ask) = queue.try_recv() else { break };
                self.take(ask);
            }
            self.commit();
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Change { steps, answer } => match self.make(steps) {
                Ok(leases) => self.batch.waiting.push((answer, leases)),
                Err(e) => drop(answer.send(Err(e))),
            },
            Ask::Reserve { wanted, answer } => {
                // A reservation must not be refused because of a lease that cannot be written, so the batch is written
                // first.
                self.commit();
                self.reserved.clone_from(&wanted);
                self.declared.send_replace(wanted.iter().map(|(address, _)| *address).collect());
                drop(answer.send(self.ipam.reserve(wanted)));
            }
            Ask::SetDevice { addresses } => {
                self.of_device.clone_from(&addresses);
                self.ipam.set_device(addresses);
            }
            #[cfg(test)]
            Ask::Test(work) => work(),
        }
    }

    /// Replaces what is in memory by what is on disk; waiting requests get an error. The file is written anew, since
    /// its end might not survive a power cut.
    ///
    /// # Errors
    /// When a file cannot be read or written, or lacks a lease that the book had: somebody uses that lease, and only
    /// the daemon's start can learn it from the attached containers.
    fn begin_anew(&mut self) -> Result<(), String> {
        let (mut journal, mut ipam, conditions) = journal::load(self.journal.dir()).map_err(|e| e.to_string())?;
        let has: Vec<_> = ipam.leases().cloned().collect();
        let has_all = self.leases.borrow().iter().all(|lease| has.contains(lease)) && self.clients.is_in(&ipam);
        if !conditions.is_empty() || !has_all {
            return Err(format!("leases are lost; the next start learns them again {}", conditions.join("; ")));
        }
        journal.write_anew(&ipam).map_err(|e| e.to_string())?;
        ipam.reserve(self.reserved.clone());
        ipam.set_device(self.of_device.clone());
        self.leases.send_replace(has.into());
        self.clients.replace(&ipam);
        (self.journal, self.ipam, self.batch) = (journal, ipam, Batch::default());
        Ok(())
    }

    /// Carries out all of the steps, or none.
    fn make(&mut self, steps: Vec<Step>) -> Changed {
        let begun = self.batch.before.len();
        let mut leases = Vec::new();
        for step in steps {
            match self.step(step) {
                Ok(lease) => leases.extend(lease),
                Err(e) => {
                    self.take_back(begun);
                    return Err(e);
                }
            }
        }
        Ok(leases)
    }

    /// Carries out one step. Returns the lease if one was requested.
    fn step(&mut self, step: Step) -> Result<Option<Arc<Lease>>, LeaseError> {
        let (before, change, lease) = match step {
            Step::Assign(wanted) => {
                let before = self.ipam.before(&wanted.key);
                let (lease, change) = self.ipam.assign(&wanted.pool, &wanted.request())?;
                (before, change, Some(lease))
            }
            Step::Release(key) => {
                let before = self.ipam.before(&key);
                let released = self.ipam.release(&key);
                (before, released.map(|_| Change::Released(key)), None)
            }
            Step::Learn(lease) if self.ipam.get(&lease.key) == Some(&lease) => return Ok(None),
            Step::Learn(lease) => {
                let before = self.ipam.before(&lease.key);
                let learned = self.ipam.learn(lease.clone());
                learned.map_err(|holder| LeaseError::Held { lease: lease.clone(), holder })?;
                (before, Some(Change::Learned(lease)), None)
            }
            Step::Lend(lease) => {
                let lease = self.with_its_name(lease);
                if self.ipam.client(&lease.key()) == Some(&lease) {
                    return Ok(None);
                }
                let before = self.ipam.before_client(&lease.key());
                self.ipam.lend(lease.clone())?;
                (before, Some(Change::Lent(lease)), None)
            }
            Step::End(key) => {
                let before = self.ipam.before_client(&key);
                (before, self.ipam.end(&key).map(|_| Change::Ended(key)), None)
            }
        };
        if let Some(change) = change {
            self.batch.changes.push(change);
            self.batch.before.push(before);
        }
        Ok(lease)
    }

    /// The lease without its name if another machine has that. Here alone is known what all pools have given in both
    /// families, so this is the one place that decides whose a name is; each server knows its own clients. The machine has
    /// the name when it renews the lease after the other's has ended.
    fn with_its_name(&self, lease: Arc<ClientLease>) -> Arc<ClientLease> {
        let now = unix_time();
        let is_others = |name: &String| !lease.is_over(now) && self.ipam.is_name_of_another(name, &lease, now);
        if lease.hostname.as_ref().is_some_and(is_others) {
            return Arc::new(ClientLease { hostname: None, ..ClientLease::clone(&lease) });
        }
        lease
    }

    /// Undoes the changes of the batch from number `begun` on, the newest first.
    fn take_back(&mut self, begun: usize) {
        self.batch.changes.truncate(begun);
        for before in self.batch.before.drain(begun..).rev() {
            self.ipam.take_back(before);
        }
    }

    /// Writes the batch to the disk, and answers its requests.
    fn commit(&mut self) {
        let written = self.journal.commit(&self.batch.changes, &self.ipam);
        match written {
            Ok(()) => {
                // Published before the answers, so that a requester sees its own lease.
                let is_client = |change: &Change| matches!(change, Change::Lent(_) | Change::Ended(_));
                if self.batch.changes.iter().any(|change| !is_client(change)) {
                    self.leases.send_replace(self.ipam.leases().cloned().collect());
                }
                if self.batch.changes.iter().any(is_client) {
                    let (old, keys) = (self.batch.before.iter(), self.batch.before.iter());
                    let new = keys.filter_map(|before| self.ipam.client(before.client()?.0));
                    self.clients.change(old.filter_map(|before| before.client()?.1), new);
                }
                let Batch { waiting, .. } = std::mem::take(&mut self.batch);
                for (answer, leases) in waiting {
                    // A requester that has hung up has its lease all the same.
                    drop(answer.send(Ok(leases)));
                }
            }
            Err(e) => {
                self.take_back(0);
                let why = LeaseError::Store(Arc::new(e));
                for (answer, _) in std::mem::take(&mut self.batch).waiting {
                    drop(answer.send(Err(why.clone())));
                }
                return;
            }
        }
        if self.journal.is_long()
            && let Err(e) = self.journal.write_anew(&self.ipam)
        {
            tracing::warn!(error = %e, "lease file not written anew: tried again with the next change");
        }
    }
}
