//! The daemon's requests to the lease book.

use super::{Daemon, lease_key};
use crate::config::Form;
use crate::failure::{Failure, Kind};
use crate::ipam::{Lease, LeaseKey};
use crate::lease::{LeaseError, LeaseHandle, Step, Wanted, undo};
use crate::model::{Attachment, Container, ContainerName, PoolName};
use futures_util::future::join_all;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

pub(super) fn missing(pool: &PoolName) -> Failure {
    Failure::new(Kind::Usage, format!("pool {pool}: no such pool"))
}

impl Daemon {
    /// The lease book, for services that give out addresses too.
    pub(crate) fn leases(&self) -> LeaseHandle {
        self.leases.clone()
    }

    /// The leases of a container's interfaces, in their order; those that the network has `given` are what they are. Leases
    /// of interfaces that it does not have any more end.
    ///
    /// # Errors
    /// Why the leases cannot be given; nothing is changed then.
    pub(super) async fn lease_all(
        &mut self,
        container: &Container,
        given: &[Option<Arc<Lease>>],
    ) -> Result<Vec<Arc<Lease>>, Failure> {
        let mut steps = Vec::new();
        for (interface, given) in container.interfaces.iter().zip(given) {
            if let Some(given) = given {
                steps.extend(self.learning(given.clone()));
                continue;
            }
            let pool = self.device.pools.get(&interface.pool).ok_or_else(|| missing(&interface.pool))?;
            let key = lease_key(&container.name, interface);
            let (ipv4, ipv6, mac) = (interface.ipv4, interface.ipv6, interface.mac);
            steps.push(Step::Assign(Wanted { pool: pool.clone(), key, ipv4, ipv6, mac }));
        }
        let keep: Vec<_> = container.interfaces.iter().map(|i| lease_key(&container.name, i)).collect();
        let over = self.leases.of(&container.name).into_iter().filter(|l| !keep.contains(&l.key));
        steps.extend(over.map(|l| Step::Release(l.key.clone())));
        let mut chosen = self.leases.change(steps).await?.into_iter();
        let all = given.iter().map(|given| given.clone().or_else(|| chosen.next())).collect::<Option<Vec<_>>>();
        all.ok_or_else(|| Failure::new(Kind::Internal, "the lease book gave too few leases"))
    }

    /// Ends the leases of a container and returns them.
    ///
    /// # Errors
    /// When the lease file cannot be written; nothing is changed then.
    pub(super) async fn release_all(&self, container: &ContainerName) -> Result<Vec<Arc<Lease>>, Failure> {
        let had = self.leases.of(container);
        self.leases.change(had.iter().map(|l| Step::Release(l.key.clone())).collect()).await?;
        Ok(had)
    }

    /// Restores exactly the leases that a container had `before`.
    ///
    /// # Errors
    /// When somebody else has one of the addresses by now, or the lease file cannot be written.
    pub(super) async fn restore_leases(&self, container: &ContainerName, before: &[Arc<Lease>]) -> Result<(), Failure> {
        self.leases.change(undo(before, &self.leases.of(container))).await?;
        Ok(())
    }

    /// Adds the leases of attached containers that the book lacks, because the daemon was killed between the writes of
    /// the two files, or the lease file was lost.
    pub(super) async fn learn_from_records(&mut self) -> Result<(), Failure> {
        let all: Vec<Attachment> =
            self.state.containers.values().flat_map(|record| record.attachments.iter().cloned()).collect();
        for (attachment, learned) in all.iter().zip(self.learn_all(&all).await?) {
            let Attachment { container, interface, .. } = attachment;
            match learned {
                Learned::Known => {}
                Learned::Again => self
                    .start_conditions
                    .push(format!("lease of {container} learned again from its interface {interface}")),
                Learned::Held(holder) => self
                    .start_conditions
                    .push(format!("container {container}: interface {interface}: its address is leased to {holder}")),
            }
        }
        Ok(())
    }

    /// Adds the leases of attachments, in their order.
    ///
    /// # Errors
    /// When the lease file cannot be written.
    pub(super) async fn learn_all(&self, attachments: &[Attachment]) -> Result<Vec<Learned>, Failure> {
        let all = self.leases.all();
        let known: HashMap<&LeaseKey, &Arc<Lease>> = all.iter().map(|l| (&l.key, l)).collect();
        let learn = async |attachment: &Attachment| {
            let lease = in_use(attachment);
            // What the network has given is in the book before it is in the record, which then follows.
            let is_newer = |old: &Lease| old.terms.is_some() && old.mac == lease.mac;
            if known.get(&lease.key).is_some_and(|old| is_same(old, &lease) || is_newer(old)) {
                return Ok(Learned::Known);
            }
            match self.leases.change(vec![Step::Learn(Arc::new(lease))]).await {
                Ok(_) => Ok(Learned::Again),
                Err(LeaseError::Held { holder, .. }) => Ok(Learned::Held(holder)),
                Err(e) => Err(Failure::from(e)),
            }
        };
        // All at the same time, so that they are written together.
        join_all(attachments.iter().map(learn)).await.into_iter().collect()
    }

    /// For each of these addresses, who else has it by now.
    fn holders(&self, wanted: &[(IpAddr, LeaseKey)]) -> Vec<Option<LeaseKey>> {
        let all = self.leases.all();
        let has = |lease: &Lease, addr: IpAddr| {
            lease.ipv4.map(IpAddr::V4) == Some(addr) || lease.ipv6.map(IpAddr::V6) == Some(addr)
        };
        let holder = |(addr, key): &(IpAddr, LeaseKey)| {
            all.iter().find(|lease| lease.key != *key && has(lease, *addr)).map(|lease| lease.key.clone())
        };
        wanted.iter().map(holder).collect()
    }

    /// Reserves static addresses of declared containers before others get leases.
    ///
    /// # Errors
    /// When the lease book does not answer.
    pub(super) async fn reserve_declared(&mut self) -> Result<(), Failure> {
        let wanted = self.reservations.clone();
        let list: Vec<(IpAddr, LeaseKey)> = wanted.iter().map(|r| (r.addr, r.key.clone())).collect();
        let holders = if self.is_rehearsing() { self.holders(&list) } else { self.leases.reserve(list).await? };
        let taken = wanted.into_iter().zip(holders).filter_map(|(Reservation { file, addr, .. }, holder)| {
            let holder = holder?;
            Some(Taken { why: format!("{file}: {addr} is taken by {holder}"), holder: holder.container })
        });
        self.taken = taken.collect();
        Ok(())
    }

    /// Looks again at declared addresses that somebody else has. A container of a former revision of Pantavisor, which is
    /// declared no more and has no link, is detached if it has one: nobody else would, and the next revision could never be
    /// in force as a whole.
    pub(super) async fn free_taken(&mut self) {
        if self.taken.is_empty() || self.is_rehearsing() {
            return;
        }
        if self.paths.form() == Form::Revision {
            let holders: BTreeSet<ContainerName> = self.taken.iter().map(|taken| taken.holder.clone()).collect();
            for name in holders.iter().filter(|name| !self.declared.contains_key(*name)).cloned().collect::<Vec<_>>() {
                if let Some(record) = self.state.containers.get(&name).cloned() {
                    self.detach_ended(&name, &record).await;
                }
            }
        }
        if let Err(e) = self.reserve_declared().await {
            tracing::warn!(error = %e, "declared addresses are not reserved: tried again at the next change");
        }
    }
}

/// A declared address that somebody else has.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    /// Who has it.
    pub holder: ContainerName,
    /// The condition.
    pub why: String,
}

/// The result of learning a lease that is in use.
pub(super) enum Learned {
    /// The book had it already.
    Known,
    /// The lease was added.
    Again,
    /// The book has given the address or MAC to somebody else.
    Held(LeaseKey),
}

/// An address that is kept for a declared container.
#[derive(Clone, Debug)]
pub(super) struct Reservation {
    /// The file that says so.
    pub file: String,
    /// The address.
    pub addr: IpAddr,
    /// The interface that it is for.
    pub key: LeaseKey,
}

/// The addresses that `container`, declared in `file`, asks for.
pub(super) fn reservations(file: &str, container: &Container) -> Vec<Reservation> {
    let mut all = Vec::new();
    for interface in &container.interfaces {
        for addr in interface.ipv4.map(IpAddr::V4).into_iter().chain(interface.ipv6.map(IpAddr::V6)) {
            all.push(Reservation { file: file.to_owned(), addr, key: lease_key(&container.name, interface) });
        }
    }
    all
}

fn in_use(attachment: &Attachment) -> Lease {
    Lease {
        key: LeaseKey::of(attachment),
        ipv4: attachment.ipv4,
        ipv6: attachment.ipv6,
        mac: attachment.mac,
        fixed: false,
        terms: None,
    }
}

/// Whether both have the same addresses and MAC, however they were chosen.
fn is_same(a: &Lease, b: &Lease) -> bool {
    (a.ipv4, a.ipv6, a.mac) == (b.ipv4, b.ipv6, b.mac)
}
