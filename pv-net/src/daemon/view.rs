//! Makes a snapshot of what the daemon knows.

use super::{Daemon, Declaration};
use crate::config::parse_run_named;
use crate::ipam::store::ContainerRecord;
use crate::model::{ContainerName, IfName, PairKind, PoolName};
use crate::snapshot::{
    Adopted, Attached, ContainerStatus, Phase, PolicyStatus, PoolStatus, Snapshot, places, share, share_all,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// What the daemon knows about a container.
struct Source<'a> {
    name: &'a ContainerName,
    /// If it is attached: its record, and its number in the maps.
    attached: Option<(&'a Arc<ContainerRecord>, u32)>,
    declared: Option<&'a Declaration>,
    conditions: Vec<&'a String>,
    /// Why it is not attached although its namespace exists.
    failure: Option<&'a String>,
    /// Conditions about interfaces that it has lost, while it still has others, and about addresses that are not its alone.
    lost: Vec<String>,
}

/// The index of each host-side link that exists, and its kind if it is one of a pair, by name.
type Links<'a> = HashMap<&'a IfName, (u32, Option<PairKind>)>;

fn links_of(record: &ContainerRecord, links: &Links<'_>) -> impl Iterator<Item = Option<u32>> {
    record.attachments.iter().map(|a| links.get(&a.host_if).map(|(index, _)| *index))
}

/// Conditions about the interfaces of a container that somebody has deleted, most likely the container itself. Where all
/// are gone, its namespace is.
fn lost(name: &ContainerName, record: &ContainerRecord, links: &Links<'_>) -> Vec<String> {
    let is_gone = |index: &Option<u32>| index.is_none();
    if record.attachments.len() < 2 || links_of(record, links).all(|index| index.is_none()) {
        return Vec::new();
    }
    let gone = record.attachments.iter().zip(links_of(record, links)).filter(|(_, index)| is_gone(index));
    let text = |interface: &IfName| {
        let remedy = format!("attach the container again, or pv-net detach {name} --interface {interface}");
        format!("interface {interface}: its link is gone: {remedy}")
    };
    gone.map(|(attachment, _)| text(&attachment.interface)).collect()
}

/// Conditions about addresses of a container that the device has, too: somebody has given it one after the attach.
fn shared(record: &ContainerRecord, own: &BTreeSet<IpAddr>) -> impl Iterator<Item = String> {
    let all =
        record.attachments.iter().flat_map(|a| a.ipv4.map(IpAddr::from).into_iter().chain(a.ipv6.map(IpAddr::from)));
    let text = |address: IpAddr| {
        format!(
            "{address}: the device has this address too, and answers in the container's place: take it off the device"
        )
    };
    all.filter(|address| own.contains(address)).map(text)
}

impl Source<'_> {
    /// Whether `before` says exactly this. Compared without parsing or copying.
    fn is(&self, before: &ContainerStatus, links: &Links<'_>) -> bool {
        let same = match (&before.phase, self.attached) {
            (Phase::Attached(old), Some((record, identity))) => {
                Arc::ptr_eq(&old.record, record)
                    && old.identity == identity
                    && links_of(record, links).eq(old.links.iter().copied())
            }
            (Phase::Declared { interfaces, aliases }, None) => self.declared.is_some_and(|d| {
                (&d.container.interfaces, &d.container.aliases) == (interfaces, aliases)
                    && d.container.startable.is_some() == before.is_startable
            }),
            _ => false,
        };
        same && self.all_conditions().eq(&before.conditions)
    }

    fn all_conditions(&self) -> impl Iterator<Item = &String> {
        self.conditions.iter().copied().chain(self.failure).chain(&self.lost)
    }

    fn status(&self, links: &Links<'_>) -> ContainerStatus {
        let (phase, is_startable) = match self.attached {
            Some((record, identity)) => {
                let run = parse_run_named("run", record.run.text(), Some(self.name));
                let (aliases, ports, inactive, is_startable) =
                    run.map(|run| (run.aliases, run.ports, run.inactive, run.startable.is_some())).unwrap_or_default();
                let pairs = record.attachments.iter().map(|a| links.get(&a.host_if)?.1).collect();
                let links = links_of(record, links).collect();
                let record = record.clone();
                let attached = Attached { identity, record, links, pairs, aliases, ports, inactive };
                (Phase::Attached(attached), is_startable)
            }
            None => {
                let both = self.declared.map(|d| (d.container.interfaces.clone(), d.container.aliases.clone()));
                let (interfaces, aliases) = both.unwrap_or_default();
                let is_startable = self.declared.is_some_and(|d| d.container.startable.is_some());
                (Phase::Declared { interfaces, aliases }, is_startable)
            }
        };
        let conditions = self.all_conditions().cloned().collect();
        ContainerStatus { name: self.name.clone(), phase, is_startable, conditions }
    }
}

impl Daemon {
    /// A snapshot of the present state. Parts that did not change are shared with `before`.
    pub(crate) fn snapshot(&self, before: &Snapshot) -> Snapshot {
        let containers = self.container_statuses(&before.containers);
        let interfaces = if Arc::ptr_eq(&containers, &before.containers) {
            before.interfaces.clone()
        } else {
            Arc::new(places(&containers))
        };
        Snapshot {
            revision: before.revision,
            device: self.device.clone(),
            pools: share(&before.pools, self.pool_statuses()),
            containers,
            awaited: self.awaited.all(),
            offers: self.offers.clone(),
            interfaces,
            leases: self.leases.all(),
            policy: share(&before.policy, self.policy_status(before.policy.generation)),
            uplinks: share(&before.uplinks, self.uplinks.clone()),
            has_way_out6: self.has_way_out6,
            conditions: Arc::new(self.conditions()),
            unmet: share(&before.unmet, self.unmet()),
            of_revision: self.revision.clone(),
            not_followed: self.not_followed.clone(),
            adopted: Adopted {
                maps: self.adopted.maps,
                programs: self.adopted.programs,
                links: self.adopted.links,
                containers: self.adopted_containers,
            },
            plane: self.shared_plane.clone(),
        }
    }

    fn container_statuses(&self, before: &Arc<[Arc<ContainerStatus>]>) -> Arc<[Arc<ContainerStatus>]> {
        let state = &self.state;
        let links: Links<'_> =
            self.links.iter().map(|(index, (_, name))| (name, (*index, self.pairs.get(index).copied()))).collect();
        let source = |name, attached, declared, lost| {
            let unpublished = self.unpublished.get(name).into_iter().flatten();
            let lacks = self.lacks.get(name).into_iter().flat_map(BTreeMap::values);
            let conditions = self.container_conditions.of(name).chain(unpublished).chain(lacks).collect();
            Source { name, attached, declared, conditions, failure: self.awaited.failure(name), lost }
        };
        let attached = state.containers.iter().map(|(name, record)| {
            let identity = state.identities.get(name).copied().unwrap_or_default();
            let lost = lost(name, record, &links).into_iter().chain(shared(record, &self.own_addresses)).collect();
            source(name, Some((record, identity)), None, lost)
        });
        let declared = self.declared.iter().filter(|(name, _)| !state.containers.contains_key(*name));
        let mut all: Vec<_> =
            attached.chain(declared.map(|(name, d)| source(name, None, Some(d), Vec::new()))).collect();
        all.sort_by_key(|source| source.name);
        share_all(
            before,
            all,
            |old, new| old.name.cmp(new.name),
            |old, new| new.is(old, &links),
            |new| new.status(&links),
        )
    }

    fn pool_statuses(&self) -> BTreeMap<PoolName, PoolStatus> {
        let status = |name: &PoolName| PoolStatus {
            link: self.pools.get(name).cloned(),
            conditions: self.conditions_of_pool(name).cloned().collect(),
        };
        self.device.pools.keys().map(|name| (name.clone(), status(name))).collect()
    }

    fn conditions_of_pool(&self, pool: &PoolName) -> impl Iterator<Item = &String> {
        let overlaps = self.pool_overlaps.get(pool).into_iter().flatten();
        self.pool_conditions.get(pool).into_iter().chain(overlaps).chain(self.no_links.get(pool))
    }

    /// The policy in force. If the generation cannot be read, it is taken as unchanged.
    fn policy_status(&self, before: u32) -> PolicyStatus {
        let generation = self.plane.as_ref().map_or(Ok(0), crate::kernel::bpf::DataPlane::generation);
        let generation = generation.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "policy generation not read");
            before
        });
        PolicyStatus { generation, in_force: self.policy_is_in_force(), rules: self.policy.refs.clone() }
    }

    /// The conditions because of which the configuration is not in force as a whole. Links that the kernel lacks are one
    /// only for a pool that a container is to be in. Overlaps are none: a reload refuses those with the networks of named
    /// uplinks, and networks come and go with the place that the device is in.
    fn unmet(&self) -> Vec<String> {
        let interfaces = || self.declared.values().flat_map(|declared| &declared.container.interfaces);
        let is_used = |pool: &PoolName| interfaces().any(|interface| interface.pool == *pool);
        let no_links = self.no_links.iter().filter(|(pool, _)| is_used(pool));
        let pools = self.pool_conditions.iter().chain(no_links).map(|(pool, why)| format!("pool {pool}: {why}"));
        let others = self.declared_conditions.iter().chain(self.policy.conditions()).chain(&self.failed_steps);
        let taken = self.taken.iter().map(|taken| taken.why.clone());
        others.cloned().chain(taken).chain(pools).collect()
    }

    fn conditions(&self) -> Vec<String> {
        let mut conditions = self.start_conditions.clone();
        conditions.extend(self.leases.condition());
        conditions.extend(self.uplink_conditions.iter().cloned());
        conditions.extend(self.held.values().map(|(_, why)| why.clone()).chain(self.failed_steps.iter().cloned()));
        conditions.extend(self.port_conditions.iter().cloned().chain(self.holder_conditions()));
        conditions.extend(self.declared_conditions.iter().chain(self.policy.conditions()).cloned());
        conditions.extend(self.taken.iter().map(|taken| taken.why.clone()));
        conditions.extend(self.filter_conditions.iter().chain(&self.firewall_conditions).cloned());
        conditions.extend(self.device_if_conditions.iter().cloned());
        for pool in self.device.pools.keys() {
            conditions.extend(self.conditions_of_pool(pool).map(|why| format!("pool {pool}: {why}")));
        }
        conditions.extend(self.device.inactive.iter().map(|p| format!("{p}: accepted, not acted on yet")));
        conditions
    }
}
