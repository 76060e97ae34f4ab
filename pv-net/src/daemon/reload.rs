//! Reading the configuration again, and what a reload refuses.

use super::{Daemon, Paths};
use crate::config::{Form, check_uplinks, load};
use crate::failure::{Failure, Kind};
use crate::kernel::kill_point;
use crate::kernel::netlink::Net;
use crate::model::{Device, PoolName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Faults that existed before a reload and are no reason to refuse it.
pub(super) struct KnownFaults {
    /// Pools that are not available.
    pub pools: BTreeSet<PoolName>,
    /// Steps that fail.
    pub steps: BTreeSet<String>,
}

impl Daemon {
    /// Reads the configuration again and applies it. A wrong file changes nothing; if the configuration cannot be
    /// applied, everything is restored.
    ///
    /// # Errors
    /// Every error of the file, or the conflict with attached containers; or why it cannot be applied, with what could
    /// not be restored.
    pub async fn reload(&mut self) -> Result<(), Failure> {
        let _points = kill_point::begin("reload");
        let revision = self.paths.running_revision().map(Arc::from);
        let device = load::device(&self.paths.config, self.paths.form())?;
        check_device(&self.paths, &self.net, &device).await?;
        self.check_attached(&device)?;
        self.check_policy(&device).await?;
        let resized = self.resized_pools(&device);
        let known = self.known_faults();
        let old = std::mem::replace(&mut self.device, Arc::new(device));
        if let Err(failure) = self.follow_config(&known).await {
            self.device = old;
            let not_restored = self.follow_config(&known).await.err();
            self.put_away_object();
            return Err(failure.not_restored(not_restored));
        }
        self.revision = revision;
        // What is said of another one is why it was not kept.
        let revision = self.revision.as_deref();
        self.not_followed.take_if(|not_followed| revision == Some(&not_followed.0));
        self.put_away_object();
        self.resize_segments(&resized).await;
        Ok(())
    }

    /// Reads the configuration again when another revision of Pantavisor runs: its containers may start before anybody has
    /// asked for a reload.
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub(super) async fn follow_revision(&mut self) -> Result<(), Failure> {
        let Some(running) = self.paths.running_revision().filter(|running| self.revision.as_deref() != Some(running))
        else {
            return Ok(());
        };
        let done = self.reload().await;
        if let Err(failure) = &done {
            self.not_followed = Some(Arc::new((running, failure.line())));
        }
        done
    }

    /// Brings everything to what the configuration says; the rules come last, by one write. `known` faults are no
    /// errors, since they existed before.
    pub(super) async fn follow_config(&mut self, known: &KnownFaults) -> Result<(), Failure> {
        self.read_declarations().await?;
        // A file that was wrong before may be right now.
        self.limit_learned();
        self.open_plane()?;
        self.reconcile().await?;
        self.take_over()?;
        self.free_taken().await;
        let new = self.pool_conditions.iter().filter(|(pool, _)| !known.pools.contains(*pool));
        let pools = new.map(|(pool, why)| Failure::new(Kind::Internal, format!("pool {pool}: {why}")));
        let steps = self.failed_steps.iter().filter(|why| !known.steps.contains(*why));
        let steps = steps.map(|why| Failure::new(Kind::Internal, why.clone()));
        if let Some(failure) = pools.chain(steps).reduce(Failure::and) {
            return Err(failure);
        }
        self.enforce_policy(true).await
    }

    /// Faults that exist before a reload and are no reason to refuse it.
    pub(super) fn known_faults(&self) -> KnownFaults {
        KnownFaults {
            pools: self.pool_conditions.keys().cloned().collect(),
            steps: self.failed_steps.iter().cloned().collect(),
        }
    }

    /// Refuses changes to pools that attached containers depend on.
    pub(super) fn check_attached(&self, new: &Device) -> Result<(), Failure> {
        let mut used: BTreeMap<&PoolName, BTreeSet<&str>> = BTreeMap::new();
        for (name, record) in &self.state.containers {
            for attachment in &record.attachments {
                used.entry(&attachment.pool).or_default().insert(name.as_str());
            }
        }
        for (pool, containers) in used {
            let (old, new) = (self.device.pools.get(pool), new.pools.get(pool));
            let what = match (old, new) {
                (None, _) => continue,
                (Some(_), None) => "cannot be removed",
                (Some(old), Some(new)) if old.v4 != new.v4 || old.v6 != new.v6 => "cannot change its networks",
                (Some(old), Some(new)) if old.kind != new.kind => "cannot change its kind or bridge",
                _ => continue,
            };
            let names = containers.into_iter().collect::<Vec<_>>().join(", ");
            let why = format!("network.pools.{pool}: {what} while containers have addresses in it: {names}");
            return Err(Failure::new(Kind::Conflict, why).help("detach them first: pv-net detach NAME"));
        }
        Ok(())
    }
}

/// Checks what the file alone does not show: conflicts with the networks of the uplinks, and in a revision of Pantavisor
/// the files of its containers.
pub(super) async fn check_device(paths: &Paths, net: &Net, device: &Device) -> Result<(), Failure> {
    check_revision(paths, device)?;
    check_networks(paths, net, device).await
}

/// Checks at a start what cannot come from outside the configuration. A network of an uplink may: a DHCP server has given
/// it since the file was read the last time, and it is a condition of the pool, as while the daemon runs. In a revision it
/// is refused, so that Pantavisor goes back to the one before.
pub(super) async fn check_at_start(paths: &Paths, net: &Net, device: &Device) -> Result<(), Failure> {
    if paths.form() == Form::Revision { check_device(paths, net, device).await } else { Ok(()) }
}

async fn check_networks(paths: &Paths, net: &Net, device: &Device) -> Result<(), Failure> {
    if device.pools.is_empty() || device.uplinks.is_empty() {
        return Ok(());
    }
    let links = net.links().await?;
    let addresses = net.addresses().await?;
    let mut networks = Vec::new();
    for (index, address) in addresses {
        let link = links.iter().find(|l| l.index == index);
        let Some(uplink) = link.and_then(|l| device.uplinks.iter().find(|u| u.as_str() == l.name)) else { continue };
        networks.push((uplink.clone(), address));
    }
    let errors = check_uplinks(&paths.config.display().to_string(), device, &networks);
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}

/// Checks the files of a revision's containers. In a directory of pv-net's own a wrong one is a condition, since it affects
/// no other container; a revision is taken as a whole or not at all, so that Pantavisor goes back to the one before.
fn check_revision(paths: &Paths, device: &Device) -> Result<(), Failure> {
    if paths.form() != Form::Revision {
        return Ok(());
    }
    let containers = load::containers(&paths.containers, Form::Revision)?;
    let errors = load::revision_errors(&containers, device);
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}
