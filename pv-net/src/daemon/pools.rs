//! The bridges of the pools.

use super::Daemon;
use super::borrowed::Borrowed;
use super::execute::all_or_nothing;
use crate::failure::{Failure, Kind};
use crate::kernel::Kernel;
use crate::kernel::forwarding::listeners;
use crate::kernel::link::{host_if_name, knows_netkit};
use crate::kernel::netlink::NetError;
use crate::kernel::netlink::alias::{self, BorrowedAddress, BorrowedForwarding};
use crate::model::{ContainerName, IfName, Interface, Mac, PairKind, Pool, PoolName};
use crate::plan::{Borrowing, Bridge, Foreign, Link, Observed, Op, PoolLink, bridge, disturbs_listeners};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;

/// What is wrong with a pool of netkit links on a kernel without them.
pub(crate) const NO_NETKIT: &str = "link: this kernel has no netkit links that can be given a MAC: no container can be attached; set \
     it to \"auto\", or use Linux 6.12 or later with CONFIG_NETKIT";

/// The gateway addresses of a pool on its bridge.
fn gateways(pool: &Pool) -> Vec<BorrowedAddress> {
    let on = |link: &IfName| pool.gateways().map(|address| BorrowedAddress { link: link.clone(), address }).collect();
    pool.bridge().map(on).unwrap_or_default()
}

/// Adds those of `more` that are not in `all` yet.
fn add<T: PartialEq>(all: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

impl From<Foreign> for Failure {
    fn from(e: Foreign) -> Self {
        Self::new(Kind::Conflict, e.to_string()).help("rename or delete that link, or give the pool another bridge")
    }
}

/// Makes `bridge`, or completes the existing one, and updates `observed`. `former` are the addresses that pv-net gave
/// it earlier.
///
/// # Errors
/// When a link of that name is no bridge, or a step fails. Then the steps before it are undone, and a bridge made by
/// this call is removed.
async fn ensure_bridge(
    kernel: &mut impl Kernel,
    bridge: &Bridge,
    observed: &mut Observed,
    former: &BTreeSet<IpNetwork>,
) -> Result<Link, Failure> {
    let made = bridge.link(observed)?.is_none();
    if made {
        let held = std::mem::take(&mut observed.macs_held);
        kernel.apply(&Op::MakeBridge(Box::new(bridge.clone()))).await?;
        *observed = kernel.observe_device().await?;
        observed.macs_held = held;
    }
    let vanished = || Failure::new(Kind::Internal, format!("bridge {}: gone while it was set up", bridge.name));
    let finish = async {
        let link = bridge.link(observed)?.ok_or_else(vanished)?;
        let ops = bridge.steps(link, observed, former);
        all_or_nothing(kernel, &ops, observed).await?;
        ops.iter().for_each(|op| observed.apply(op));
        bridge.link(observed)?.cloned().ok_or_else(vanished)
    };
    match finish.await {
        Err(failure) if made => {
            let gone = kernel.apply(&Op::DeleteBridge { name: bridge.name.clone() }).await;
            Err(failure.not_restored(gone.err().map(Failure::from)))
        }
        done => done,
    }
}

impl Daemon {
    /// Makes or adopts the bridge of each pool, and removes those of former pools. A pool whose bridge cannot be made
    /// is a condition and does not affect the others.
    ///
    /// # Errors
    /// When the kernel cannot be observed; the known pools stay as they were.
    pub(super) async fn ensure_pools(&mut self) -> Result<(), Failure> {
        let pools = std::mem::take(&mut self.pools);
        let conditions = std::mem::take(&mut self.pool_conditions);
        let done = self.ensure_all().await;
        if done.is_err() {
            (self.pools, self.pool_conditions) = (pools, conditions);
        }
        done
    }

    async fn ensure_all(&mut self) -> Result<(), Failure> {
        self.in_the_way.clear();
        let mut observed = self.host().observe_device().await?;
        observed.macs_held = self.macs_held.clone();
        self.remove_old_bridges(&mut observed).await?;
        let default_mtu = match self.uplink_mtu {
            Some(mtu) => mtu,
            None => self.expected_mtu().await?,
        };
        self.uplink_mtu = Some(default_mtu);
        self.look_for_netkit();
        let device = self.device.clone();
        for pool in device.pools.values() {
            if let Err(failure) = self.ensure_pool(pool, default_mtu, &mut observed).await {
                tracing::error!(pool = %pool.name, error = %failure, "pool not available");
                self.pool_conditions.insert(pool.name.clone(), failure.line());
                observed = self.host().observe_device().await?;
                observed.macs_held = self.macs_held.clone();
            }
        }
        self.guard_parents(&observed);
        Ok(())
    }

    /// Notes the pools that are to have netkit links where the kernel has none. No container can be attached to them; those
    /// that are attached keep their links.
    fn look_for_netkit(&mut self) {
        self.no_links.clear();
        let pools = self.device.pools.values().filter(|pool| pool.bridge().is_some() && pool.link == PairKind::Netkit);
        let names: Vec<PoolName> = pools.map(|pool| pool.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        match knows_netkit() {
            Ok(true) => {}
            Ok(false) => self.no_links.extend(names.into_iter().map(|pool| (pool, NO_NETKIT.to_owned()))),
            // An attach says what the kernel has against it.
            Err(e) => tracing::warn!(error = %e, "whether the kernel has netkit"),
        }
    }

    /// Refuses new links of a kind that the kernel is known not to have, before leases and state are written for them.
    ///
    /// # Errors
    /// For the first such interface of `container`.
    pub(super) fn check_links(&self, container: &ContainerName, interfaces: &[Interface]) -> Result<(), Failure> {
        match interfaces.iter().find(|interface| self.no_links.contains_key(&interface.pool)) {
            Some(interface) => {
                Err(NetError::NoNetkit { name: host_if_name(container, &interface.name).to_string() }.into())
            }
            None => Ok(()),
        }
    }

    async fn ensure_pool(&mut self, pool: &Pool, default_mtu: u32, observed: &mut Observed) -> Result<(), Failure> {
        let Some(bridge) = bridge(pool, default_mtu) else { return self.ensure_parent(pool, observed) };
        if let Err(foreign) = bridge.link(observed) {
            self.in_the_way.insert(foreign.name.clone());
            return Err(foreign.into());
        }
        let meanwhile = self.note_borrowed(&bridge, observed).await?;
        let known = observed.links.get(bridge.name.as_str()).map(|link| link.index);
        let on_it = observed.addresses.iter().filter(|a| Some(a.link) == known);
        let before: BTreeSet<IpNetwork> = on_it.map(|a| a.address).collect();
        let former = self.former_gateways.get(&bridge.name).cloned().unwrap_or_default();
        let mut host = self.host();
        let ensured = ensure_bridge(&mut host, &bridge, observed, &former).await;
        self.state.listening.retain(|link| !meanwhile.contains(link));
        let link = ensured?;
        let borrowed = !alias::is_ours(link.alias.as_deref());
        if borrowed {
            self.macs_held.insert(link.index);
        } else {
            // On a bridge that pv-net did not make, only addresses recorded as borrowed may be removed.
            self.former_gateways.insert(bridge.name.clone(), bridge.gateways.iter().copied().collect());
        }
        if !self.is_rehearsing() {
            if !borrowed {
                self.resize_bridge(pool).await;
            }
            let added: Vec<IpNetwork> = bridge.gateways.iter().filter(|g| !before.contains(*g)).copied().collect();
            self.net.wait_until_received(link.index, &added).await;
        }
        let id = self.state.pool_id(&pool.name);
        let mac = link.mac.map_or(bridge.mac, Mac);
        self.pools.insert(
            pool.name.clone(),
            PoolLink { index: link.index, mac, mtu: bridge.mtu, id, borrowed, on_parent: false },
        );
        Ok(())
    }

    /// Stores what is about to be changed and is not pv-net's, so that `down` or the next start can restore it after a
    /// crash. Returns the links whose `accept_ra` is changed only while the bridge is made, and that were not recorded
    /// before.
    async fn note_borrowed(&mut self, bridge: &Bridge, observed: &Observed) -> Result<Vec<IfName>, Failure> {
        let Borrowing { addresses, raises, families, listens } = Borrowing::of(bridge, observed);
        let mut meanwhile: Vec<IfName> = if disturbs_listeners(bridge, observed) { listeners() } else { Vec::new() };
        meanwhile.retain(|link| *link != bridge.name);
        let link = || bridge.name.clone();
        let before = self.state.clone();
        let state = &mut self.state;
        add(&mut state.borrowed, addresses.into_iter().map(|address| BorrowedAddress { link: link(), address }));
        add(&mut state.raised, raises.then(link));
        let families = families.into_iter().map(ToOwned::to_owned);
        add(&mut state.forwarding, families.map(|family| BorrowedForwarding { link: link(), family }));
        add(&mut state.listening, listens.then(link));
        meanwhile.retain(|link| !state.listening.contains(link));
        add(&mut state.listening, meanwhile.iter().cloned());
        if self.state != before {
            self.save()?;
        }
        Ok(meanwhile)
    }

    /// Removes the bridges that pv-net made for pools that are gone or have another bridge now, and restores the
    /// bridges of others that such pools used.
    async fn remove_old_bridges(&mut self, observed: &mut Observed) -> Result<(), Failure> {
        let used: BTreeSet<PoolName> =
            self.state.containers.values().flat_map(|r| &r.attachments).map(|a| a.pool.clone()).collect();
        for link in observed.links.clone().into_values() {
            let Some(pool) = link.alias.as_deref().and_then(alias::bridge_pool) else { continue };
            let wanted = self.device.pools.get(&pool).and_then(Pool::bridge).is_some_and(|b| b.as_str() == link.name);
            if !wanted && !used.contains(&pool) {
                let op = Op::DeleteLink { link: link.name, index: link.index };
                self.host().apply(&op).await?;
                observed.apply(&op);
            }
        }
        if used.iter().any(|pool| !self.device.pools.contains_key(pool)) {
            // Attached containers are on a bridge that the configuration no longer names, and it could be any of these.
            return Ok(());
        }
        let pools: Vec<&Pool> = self.device.pools.values().collect();
        let kept: BTreeSet<BorrowedAddress> = pools.iter().flat_map(|p| gateways(p)).collect();
        let mut unused = Borrowed::of(&self.state);
        unused.addresses.retain(|b| !kept.contains(b));
        unused.raised.retain(|link| !pools.iter().any(|p| p.bridge() == Some(link)));
        unused.forwarding.retain(|f| !pools.iter().any(|p| p.bridge() == Some(&f.link)));
        unused.listening.retain(|link| !pools.iter().any(|p| p.bridge() == Some(link)));
        if !unused.is_empty() {
            let failures = unused.give_back(&mut self.host()).await;
            for failure in &failures {
                tracing::warn!(error = %failure, "not given back: tried again later");
            }
            *observed = self.host().observe_device().await?;
            observed.macs_held = self.macs_held.clone();
            if !failures.is_empty() {
                // The record stays: restoring what was restored already has no effect.
                return Ok(());
            }
        }
        self.state.borrowed.retain(|b| !unused.addresses.contains(b));
        self.state.raised.retain(|link| !unused.raised.contains(link));
        self.state.forwarding.retain(|f| !unused.forwarding.contains(f));
        self.state.listening.retain(|link| !unused.listening.contains(link));
        Ok(())
    }
}
