//! The device as the controller last left it: what everybody reads, and nobody waits for.
//!
//! A snapshot never changes. The controller publishes one after each thing that it does, and the newest counts: whoever
//! was away for some of them has missed nothing. Parts that stayed the same are those of the snapshot before, so that
//! one more container of a thousand costs one part and a list of references.

mod share;
#[cfg(test)]
mod tests;

pub use share::{share, share_all};

use crate::ipam::Lease;
use crate::ipam::store::ContainerRecord;
use crate::kernel::bpf::{Hook, Reader, Sweeping};
use crate::model::{Attachment, ContainerName, Device, IfName, Interface, PoolName, PortMapping};
use crate::plan::{PoolLink, Published};
use crate::policy::{Member, RuleRef, member};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The device at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// One more than that of the snapshot before.
    pub revision: u64,
    /// The configuration that is followed.
    pub device: Arc<Device>,
    /// The pools of the configuration.
    pub pools: Arc<BTreeMap<PoolName, PoolStatus>>,
    /// Attached and declared containers, by name.
    pub containers: Arc<[Arc<ContainerStatus>]>,
    /// Host-side links that are there, by index.
    pub interfaces: Arc<BTreeMap<u32, Place>>,
    /// All leases, in the order of their keys.
    pub leases: Arc<[Arc<Lease>]>,
    /// The policy in force.
    pub policy: Arc<PolicyStatus>,
    /// Uplinks in use, with their index.
    pub uplinks: Arc<BTreeMap<IfName, u32>>,
    /// What is not as it should be, but for what is in the containers.
    pub conditions: Arc<Vec<String>>,
    /// What the daemon found when it started.
    pub adopted: Adopted,
    /// The maps, for whoever reads them; none while nothing is loaded.
    pub plane: Option<Arc<Plane>>,
}

/// What a daemon took over from an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The maps were there.
    pub maps: bool,
    /// The programs were, the same that the daemon would have loaded.
    pub programs: bool,
    /// Host-side links that it put its programs on.
    pub links: usize,
    /// Containers that were attached.
    pub containers: usize,
}

/// A pool beside its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its bridge, when it is there.
    pub link: Option<PoolLink>,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// A container.
#[derive(Debug, PartialEq)]
pub struct ContainerStatus {
    /// Its name.
    pub name: ContainerName,
    /// Whether it was attached.
    pub phase: Phase,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// How far a container is.
#[derive(Debug, PartialEq)]
pub enum Phase {
    /// It has a `run.json`, with these interfaces, and was not attached yet.
    Declared(Vec<Interface>),
    /// It was attached. Its links may have gone since.
    Attached(Attached),
}

/// A container that was attached.
#[derive(Debug, PartialEq)]
pub struct Attached {
    /// Its number in the maps.
    pub identity: u32,
    /// What is remembered of it.
    pub record: Arc<ContainerRecord>,
    /// The host-side link of each attachment of the record, where it is there.
    pub links: Vec<Option<u32>>,
    /// Ports of the device that lead to it.
    pub ports: Vec<PortMapping>,
    /// JSON paths of settings of its `run.json` that are accepted and not acted on yet.
    pub inactive: Vec<String>,
}

/// Where a host-side link leads.
#[derive(Clone, Debug)]
pub struct Place {
    /// The container.
    pub container: Arc<ContainerStatus>,
    /// Which of its attachments.
    pub attachment: usize,
}

/// The rules, as far as they are in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The generation that the programs ask.
    pub generation: u32,
    /// It is what the configuration says.
    pub in_force: bool,
    /// Its rules by their numbers.
    pub rules: Arc<[RuleRef]>,
}

/// The data plane, for whoever reads what it writes.
pub struct Plane {
    /// How programs are attached.
    pub hook: Hook,
    /// A hold on the maps that can only read.
    pub reader: Reader,
    /// What a sweep of the flow tables needs.
    pub sweeping: Sweeping,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("hook", &self.hook).finish_non_exhaustive()
    }
}

impl Attached {
    /// Its attachments, each with its host-side link where that is there.
    pub fn attachments(&self) -> impl Iterator<Item = (&Attachment, Option<u32>)> {
        self.record.attachments.iter().zip(self.links.iter().copied())
    }

    /// The interface with the default route, else the first: whose addresses are those of the container.
    #[must_use]
    pub fn main(&self) -> Option<&Attachment> {
        let all = &self.record.attachments;
        all.iter().find(|a| a.default_route).or(all.first())
    }
}

impl ContainerStatus {
    /// What is known of it since it was attached.
    #[must_use]
    pub const fn attached(&self) -> Option<&Attached> {
        match &self.phase {
            Phase::Attached(attached) => Some(attached),
            Phase::Declared(_) => None,
        }
    }
}

impl Place {
    /// The attachment that the link is of.
    #[must_use]
    pub fn attachment(&self) -> Option<&Attachment> {
        self.container.attached()?.record.attachments.get(self.attachment)
    }
}

impl Snapshot {
    /// The container of this name.
    #[must_use]
    pub fn container(&self, name: &ContainerName) -> Option<&Arc<ContainerStatus>> {
        let at = self.containers.binary_search_by(|c| c.name.cmp(name)).ok()?;
        self.containers.get(at)
    }

    /// The containers that were attached.
    pub fn attached(&self) -> impl Iterator<Item = (&ContainerStatus, &Attached)> {
        self.containers.iter().filter_map(|c| Some((&**c, c.attached()?)))
    }

    /// The container with this number in the maps.
    #[must_use]
    pub fn with_identity(&self, identity: u32) -> Option<&ContainerName> {
        self.attached().find(|(_, a)| a.identity == identity).map(|(c, _)| &c.name)
    }

    /// The uplink with this index.
    #[must_use]
    pub fn uplink_at(&self, index: u32) -> Option<&IfName> {
        self.uplinks.iter().find(|(_, i)| **i == index).map(|(name, _)| name)
    }

    /// What attached containers publish.
    pub fn published(&self) -> impl Iterator<Item = (&ContainerName, Published)> {
        self.attached().flat_map(|(container, attached)| {
            let main = attached.main();
            let published = move |mapping: &PortMapping| Published {
                mapping: mapping.clone(),
                identity: attached.identity,
                ipv4: main.and_then(|a| a.ipv4),
                ipv6: main.and_then(|a| a.ipv6),
            };
            attached.ports.iter().map(move |mapping| (&container.name, published(mapping)))
        })
    }

    /// The attached containers as rules see them.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.attached().map(|(c, a)| member(&c.name, a.identity, &a.record.attachments))
    }

    /// The same with `revision`, when something is another than in `before`.
    #[must_use]
    pub fn after(self, before: &Self) -> Option<Self> {
        let same = Arc::ptr_eq(&self.device, &before.device)
            && Arc::ptr_eq(&self.pools, &before.pools)
            && Arc::ptr_eq(&self.containers, &before.containers)
            && Arc::ptr_eq(&self.leases, &before.leases)
            && Arc::ptr_eq(&self.policy, &before.policy)
            && Arc::ptr_eq(&self.uplinks, &before.uplinks)
            && Arc::ptr_eq(&self.conditions, &before.conditions)
            && self.adopted == before.adopted
            && self.plane.as_ref().map(Arc::as_ptr) == before.plane.as_ref().map(Arc::as_ptr);
        (!same).then(|| Self { revision: before.revision + 1, ..self })
    }
}

/// The host-side links of `containers`.
#[must_use]
pub fn places(containers: &[Arc<ContainerStatus>]) -> BTreeMap<u32, Place> {
    let mut places = BTreeMap::new();
    for container in containers {
        let links = container.attached().map(|a| a.links.as_slice()).unwrap_or_default();
        for (attachment, index) in links.iter().enumerate().filter_map(|(at, index)| Some((at, (*index)?))) {
            places.insert(index, Place { container: container.clone(), attachment });
        }
    }
    places
}
