//! The bridges of the pools.

use super::Daemon;
use super::borrowed::Borrowed;
use super::segments::segment_bytes;
use crate::failure::Failure;
use crate::ipam::store;
use crate::kernel::netlink::alias::{self, BorrowedAddress, BorrowedForwarding};
use crate::kernel::netlink::{Borrowing, BridgeSpec, NetError, ensure_bridge, to_borrow};
use crate::model::{IfName, Mac, Pool, PoolName};
use crate::plan::PoolLink;
use std::collections::BTreeSet;

/// What every link of IPv6 has.
const LEAST_IPV6_MTU: u32 = 1280;

/// The addresses that a pool has on its bridge.
fn gateways(pool: &Pool) -> Vec<BorrowedAddress> {
    let on = |link: &IfName| pool.gateways().map(|address| BorrowedAddress { link: link.clone(), address }).collect();
    pool.bridge().map(on).unwrap_or_default()
}

/// Adds what is not there yet.
fn add<T: PartialEq>(all: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

impl Daemon {
    /// Makes or adopts the bridge of each pool, and removes those of pools that are no more. A pool whose bridge
    /// cannot be made is a condition, not the end of the others.
    pub(super) async fn ensure_pools(&mut self) -> Result<(), Failure> {
        self.pools.clear();
        self.pool_conditions.clear();
        self.in_the_way.clear();
        self.remove_old_bridges().await?;
        let default_mtu = match self.uplink_mtu {
            Some(mtu) => mtu,
            None => self.expected_mtu().await?,
        };
        self.uplink_mtu = Some(default_mtu);
        let pools: Vec<Pool> = self.device.pools.values().cloned().collect();
        for pool in pools {
            if let Err(failure) = self.ensure_pool(&pool, default_mtu).await {
                tracing::error!(pool = %pool.name, error = %failure, "pool not available");
                self.pool_conditions.insert(pool.name, failure.line());
            }
        }
        Ok(())
    }

    async fn ensure_pool(&mut self, pool: &Pool, default_mtu: u32) -> Result<(), Failure> {
        // Other kinds have no link of their own; containers cannot be attached to them yet.
        let Some(bridge) = pool.bridge() else { return Ok(()) };
        // Below its least MTU there is no IPv6 on a link (RFC 8200 section 5).
        let mtu = pool.mtu.unwrap_or(if pool.v6.is_some() { default_mtu.max(LEAST_IPV6_MTU) } else { default_mtu });
        let mac = pool
            .v4
            .as_ref()
            .map(|s| Mac::from_ipv4(s.gateway))
            .or_else(|| pool.v6.as_ref().map(|s| Mac::from_ipv6(s.gateway)))
            .unwrap_or(Mac([2, 0, 0, 0, 0, 1]));
        let spec = BridgeSpec {
            name: bridge.clone(),
            gateways: pool.gateways().collect(),
            mtu,
            segment_bytes: segment_bytes(pool),
            mac,
            alias: alias::of_bridge(&pool.name),
        };
        let meanwhile = self.note_borrowed(&spec).await?;
        let ensured = ensure_bridge(&self.net, &spec).await;
        self.state.listening.retain(|link| !meanwhile.contains(link));
        if let Err(NetError::Foreign { name, .. }) = &ensured {
            self.in_the_way.insert(name.clone());
        }
        let ensured = ensured?;
        let mac = ensured.mac.map_or(mac, Mac);
        let id = self.state.pool_id(&pool.name);
        let borrowed = !alias::is_ours(ensured.alias.as_deref());
        self.pools.insert(pool.name.clone(), PoolLink { index: ensured.index, mac, mtu, id, borrowed });
        Ok(())
    }

    /// Writes down what is about to be changed and is somebody else's: whoever dies after it leaves what `down` and the
    /// next start can give back. The links that are another way only while the bridge is made, and were not before.
    async fn note_borrowed(&mut self, spec: &BridgeSpec) -> Result<Vec<IfName>, Failure> {
        let Borrowing { addresses, raises, forwarded, mut meanwhile } = to_borrow(&self.net, spec).await?;
        let link = || spec.name.clone();
        let before = self.state.clone();
        let state = &mut self.state;
        add(&mut state.borrowed, addresses.into_iter().map(|address| BorrowedAddress { link: link(), address }));
        add(&mut state.raised, raises.then(link));
        let families = forwarded.families.into_iter();
        add(&mut state.forwarding, families.map(|family| BorrowedForwarding { link: link(), family }));
        add(&mut state.listening, forwarded.listens.then(link));
        meanwhile.retain(|link| !state.listening.contains(link));
        add(&mut state.listening, meanwhile.iter().cloned());
        if self.state != before {
            store::save(&self.paths.state_dir, &self.state)?;
        }
        Ok(meanwhile)
    }

    /// Removes the bridges that pv-net made for pools that are no more, or have another bridge now; gives back what such
    /// pools had of bridges of others.
    async fn remove_old_bridges(&mut self) -> Result<(), Failure> {
        let used: BTreeSet<PoolName> =
            self.state.containers.values().flat_map(|r| &r.attachments).map(|a| a.pool.clone()).collect();
        for link in self.net.links().await? {
            let Some(pool) = link.alias.as_deref().and_then(alias::bridge_pool) else { continue };
            let wanted = self.device.pools.get(&pool).and_then(Pool::bridge).is_some_and(|b| b.as_str() == link.name);
            if !wanted && !used.contains(&pool) {
                self.net.delete_link(&link.name, link.index).await?;
            }
        }
        if used.iter().any(|pool| !self.device.pools.contains_key(pool)) {
            // Containers are on a bridge that the configuration no longer names: it could be any of these.
            return Ok(());
        }
        let pools: Vec<&Pool> = self.device.pools.values().collect();
        let kept: BTreeSet<BorrowedAddress> = pools.iter().flat_map(|p| gateways(p)).collect();
        let mut unused = Borrowed::of(&self.state);
        unused.addresses.retain(|b| !kept.contains(b));
        unused.raised.retain(|link| !pools.iter().any(|p| p.bridge() == Some(link)));
        unused.forwarding.retain(|f| !pools.iter().any(|p| p.bridge() == Some(&f.link)));
        unused.listening.retain(|link| !pools.iter().any(|p| p.bridge() == Some(link)));
        for failure in unused.give_back(&self.net).await {
            tracing::warn!(error = %failure, "not given back");
        }
        self.state.borrowed.retain(|b| !unused.addresses.contains(b));
        self.state.raised.retain(|link| !unused.raised.contains(link));
        self.state.forwarding.retain(|f| !unused.forwarding.contains(f));
        self.state.listening.retain(|link| !unused.listening.contains(link));
        Ok(())
    }
}
