//! Snapshots: the device's state after the controller's last operation. Everybody reads them without waiting.
//!
//! A snapshot never changes. The controller publishes one after each operation, and only the newest counts, so a reader
//! that skipped some has missed nothing. Parts that did not change are shared with the snapshot before, so with a
//! thousand containers one more costs one new part and a list of references.

mod share;
#[cfg(test)]
mod tests;

pub use share::{share, share_all};

use crate::ipam::Lease;
use crate::ipam::store::ContainerRecord;
use crate::kernel::bpf::{Hook, Reader, Sweeping};
use crate::kernel::netns::NetnsId;
use crate::model::{
    Attachment, ContainerName, DefaultRoutes, Device, IfName, Interface, Offer, PairKind, PoolName, PortMapping,
    main_interface,
};
use crate::plan::{PoolLink, Published};
use crate::policy::{Member, RuleRef, member};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The state of the device at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// One more than the revision of the snapshot before.
    pub revision: u64,
    /// The configuration in use.
    pub device: Arc<Device>,
    /// The pools of the configuration.
    pub pools: Arc<BTreeMap<PoolName, PoolStatus>>,
    /// Attached and declared containers, by name.
    pub containers: Arc<[Arc<ContainerStatus>]>,
    /// Declared containers that are attached as soon as their namespace exists.
    pub awaited: Arc<BTreeMap<ContainerName, Awaited>>,
    /// What declared containers offer.
    pub offers: Arc<BTreeMap<ContainerName, Vec<Offer>>>,
    /// Host-side links that exist, by index.
    pub interfaces: Arc<BTreeMap<u32, Place>>,
    /// All leases, in the order of their keys.
    pub leases: Arc<[Arc<Lease>]>,
    /// The policy in force.
    pub policy: Arc<PolicyStatus>,
    /// Uplinks in use, with their index.
    pub uplinks: Arc<BTreeMap<IfName, u32>>,
    /// An uplink has an IPv6 address beyond its own link, or an IPv6 default route.
    pub has_way_out6: bool,
    /// Conditions, except those of containers.
    pub conditions: Arc<Vec<String>>,
    /// Those of them because of which the configuration is not in force as a whole.
    pub unmet: Arc<Vec<String>>,
    /// The revision of Pantavisor whose configuration is in use.
    pub of_revision: Option<Arc<str>>,
    /// A revision of Pantavisor that an attach could not put in force, and why.
    pub not_followed: Option<Arc<(String, String)>>,
    /// What the daemon took over at its start.
    pub adopted: Adopted,
    /// Read-only access to the maps; `None` while the data plane is not loaded.
    pub plane: Option<Arc<Plane>>,
}

/// What a daemon took over from an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The maps were kept.
    pub maps: bool,
    /// The programs were kept, because they are the ones that this daemon would have loaded.
    pub programs: bool,
    /// Host-side links on which the programs are attached.
    pub links: usize,
    /// Containers that were attached.
    pub containers: usize,
}

/// The state of a pool, in addition to its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its bridge, if it exists.
    pub link: Option<PoolLink>,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// A container.
#[derive(Debug, PartialEq)]
pub struct ContainerStatus {
    /// Its name.
    pub name: ContainerName,
    /// Whether it was ever attached.
    pub phase: Phase,
    /// Its `run.json` names a runtime by which the runner can start it.
    pub is_startable: bool,
    /// What is wrong with it.
    pub conditions: Vec<String>,
}

/// A declared container that somebody else starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The path of its namespace, which need not exist yet.
    pub path: PathBuf,
    /// Its `run.json`.
    pub run: Arc<str>,
    /// The namespace in which it was detached by hand. In that namespace it is not attached again automatically.
    pub detached_in: Option<NetnsId>,
}

/// Whether a container was ever attached.
#[derive(Debug, PartialEq)]
pub enum Phase {
    /// It has a `run.json`, and was not attached yet.
    Declared {
        /// The interfaces that it is to have.
        interfaces: Vec<Interface>,
        /// More names that it is to be found by.
        aliases: Vec<String>,
    },
    /// It was attached. Its links may be gone by now.
    Attached(Attached),
}

/// A container that was attached.
#[derive(Debug, PartialEq)]
pub struct Attached {
    /// Its number in the maps.
    pub identity: u32,
    /// Its record in the state.
    pub record: Arc<ContainerRecord>,
    /// The index of the host-side link of each attachment in the record, if the link exists.
    pub links: Vec<Option<u32>>,
    /// The kind of each of these links, if it is one of a pair.
    pub pairs: Vec<Option<PairKind>>,
    /// More names that it is found by, in the device's domain.
    pub aliases: Vec<String>,
    /// Ports of the device that lead to it.
    pub ports: Vec<PortMapping>,
    /// JSON paths of settings in its `run.json` that are accepted but have no effect yet.
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

/// The policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The generation that the programs use.
    pub generation: u32,
    /// Whether it is what the configuration says.
    pub in_force: bool,
    /// Its rules by their numbers.
    pub rules: Arc<[RuleRef]>,
}

/// Read-only access to the data plane.
pub struct Plane {
    /// How programs are attached.
    pub hook: Hook,
    /// Handles to the maps that can only read.
    pub reader: Reader,
    /// What a sweeper of the flow tables needs.
    pub sweeping: Sweeping,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("hook", &self.hook).finish_non_exhaustive()
    }
}

impl Attached {
    /// Its attachments, each with the index of its host-side link if that exists.
    pub fn attachments(&self) -> impl Iterator<Item = (&Attachment, Option<u32>)> {
        self.record.attachments.iter().zip(self.links.iter().copied())
    }

    /// Which of its interfaces have the default routes: of those that are there, unless none is.
    #[must_use]
    pub fn default_routes(&self) -> DefaultRoutes {
        let none = self.links.iter().all(Option::is_none);
        DefaultRoutes::of_those(self.attachments().map(|(a, link)| (a, none || link.is_some())))
    }

    /// The interface that counts as the container's: that with the default route, else the first one.
    #[must_use]
    pub fn main(&self) -> Option<&Attachment> {
        main_interface(&self.record.attachments)
    }
}

impl Attached {
    /// Whether all of its links exist.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.links.iter().all(Option::is_some)
    }
}

impl ContainerStatus {
    /// Its state since it was attached; `None` when it never was.
    #[must_use]
    pub const fn attached(&self) -> Option<&Attached> {
        match &self.phase {
            Phase::Attached(attached) => Some(attached),
            Phase::Declared { .. } => None,
        }
    }

    /// More names that it is found by, in the device's domain, or will be when it is attached.
    #[must_use]
    pub fn aliases(&self) -> &[String] {
        match &self.phase {
            Phase::Attached(attached) => &attached.aliases,
            Phase::Declared { aliases, .. } => aliases,
        }
    }
}

impl Place {
    /// The attachment that the link belongs to.
    #[must_use]
    pub fn attachment(&self) -> Option<&Attachment> {
        self.container.attached()?.record.attachments.get(self.attachment)
    }
}

impl Snapshot {
    /// The container with this name.
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
            let published = |mapping: &PortMapping| {
                let (mapping, attachments) = (mapping.clone(), &attached.record.attachments);
                Published::new(mapping, attached.identity, attachments, &self.device.pools)
            };
            attached.ports.iter().map(move |mapping| (&container.name, published(mapping)))
        })
    }

    /// What containers publish that have a link. The port of another stays its own, and leads nowhere.
    pub fn reachable(&self) -> impl Iterator<Item = (&ContainerName, Published)> {
        let is_there = |name: &ContainerName| {
            let attached = self.container(name).and_then(|container| container.attached());
            attached.is_some_and(|attached| attached.links.iter().any(Option::is_some))
        };
        self.published().filter(move |(name, _)| is_there(name))
    }

    /// The attached containers as rules see them.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.attached().map(|(c, a)| member(&c.name, a.identity, &a.record.attachments, a.record.sockets.clone()))
    }

    /// This snapshot with the next `revision`; `None` when nothing differs from `before`.
    #[must_use]
    pub fn after(self, before: &Self) -> Option<Self> {
        let same = Arc::ptr_eq(&self.device, &before.device)
            && Arc::ptr_eq(&self.pools, &before.pools)
            && Arc::ptr_eq(&self.containers, &before.containers)
            && Arc::ptr_eq(&self.awaited, &before.awaited)
            && Arc::ptr_eq(&self.leases, &before.leases)
            && Arc::ptr_eq(&self.policy, &before.policy)
            && Arc::ptr_eq(&self.uplinks, &before.uplinks)
            && Arc::ptr_eq(&self.conditions, &before.conditions)
            && Arc::ptr_eq(&self.unmet, &before.unmet)
            && (&self.of_revision, &self.not_followed) == (&before.of_revision, &before.not_followed)
            && self.has_way_out6 == before.has_way_out6
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
