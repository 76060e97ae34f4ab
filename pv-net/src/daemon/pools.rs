//! The bridges of the pools.

use super::Daemon;
use super::borrowed::Borrowed;
use super::segments::segment_bytes;
use crate::failure::Failure;
use crate::kernel::netlink::alias::{self, BorrowedAddress, BorrowedForwarding};
use crate::kernel::netlink::{BridgeSpec, ensure_bridge};
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

impl Daemon {
    /// Makes or adopts the bridge of each pool, and removes those of pools that are no more. A pool whose bridge
    /// cannot be made is a condition, not the end of the others.
    pub(super) async fn ensure_pools(&mut self) -> Result<(), Failure> {
        self.pools.clear();
        self.pool_conditions.clear();
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
        let ensured = ensure_bridge(&self.net, &spec).await?;
        for address in ensured.borrowed {
            let borrowed = BorrowedAddress { link: bridge.clone(), address };
            if !self.state.borrowed.contains(&borrowed) {
                self.state.borrowed.push(borrowed);
            }
        }
        if ensured.raised && !self.state.raised.contains(bridge) {
            self.state.raised.push(bridge.clone());
        }
        for family in ensured.forwarded.families {
            self.state.forwarding.push(BorrowedForwarding { link: bridge.clone(), family });
        }
        if ensured.forwarded.listens && !self.state.listening.contains(bridge) {
            self.state.listening.push(bridge.clone());
        }
        let mac = ensured.link.mac.map_or(mac, Mac);
        let id = self.state.pool_id(&pool.name);
        let borrowed = !alias::is_ours(ensured.link.alias.as_deref());
        self.pools.insert(pool.name.clone(), PoolLink { index: ensured.link.index, mac, mtu, id, borrowed });
        Ok(())
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
