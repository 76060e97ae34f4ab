//! What a pool's server knows of the pool: made from a snapshot, and never changed.

use super::hostname;
use crate::ipam::ClientLease;
use crate::lease::Step;
use crate::model::{Device, Mac, Pool, PoolDhcp, PoolName};
use crate::snapshot::Snapshot;
use ipnetwork::Ipv4Network;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// A pool whose gateway is a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The pool.
    pub pool: PoolName,
    /// Index of its bridge.
    pub link: u32,
    /// Its network.
    pub net: Ipv4Network,
    /// Its gateway, which is the server and the router.
    pub server: Ipv4Addr,
    /// First and last address for clients that are not managed; they get none where there is no range.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// What is configured.
    pub settings: Arc<PoolDhcp>,
    /// The gateway answers questions for names.
    pub has_dns: bool,
    /// Domain of the device.
    pub domain: String,
    /// MTU of the bridge in bytes.
    pub mtu: u32,
    /// Containers' interfaces in the pool, by their MAC.
    pub managed: HashMap<Mac, Interface>,
}

/// A container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The address that it has.
    pub address: Ipv4Addr,
    /// The container's name, where that can be a host's.
    pub hostname: Option<String>,
    /// Its default route leads to this pool's gateway.
    pub has_default_route: bool,
}

impl Config {
    /// Those of a device: of each pool that has DHCP, IPv4, and a bridge that is there.
    #[must_use]
    pub fn all(snapshot: &Snapshot) -> Vec<Self> {
        let mut all: Vec<Self> =
            snapshot.device.pools.values().filter_map(|pool| Self::without_containers(pool, snapshot)).collect();
        if all.is_empty() {
            return all;
        }
        for (container, attached) in snapshot.attached() {
            let hostname =
                hostname::label(container.name.as_str().as_bytes()).filter(|l| *l == container.name.as_str());
            let routes = attached.default_routes();
            for (place, (attachment, link)) in attached.attachments().enumerate() {
                let config = all.iter_mut().find(|config| config.pool == attachment.pool);
                let (Some(config), Some(address), Some(_)) = (config, attachment.ipv4, link) else { continue };
                let has_default_route = routes.ipv4 == Some(place);
                let interface = Interface { address, hostname: hostname.clone(), has_default_route };
                config.managed.insert(attachment.mac, interface);
            }
        }
        all
    }

    fn without_containers(pool: &Pool, snapshot: &Snapshot) -> Option<Self> {
        let (settings, v4) = (pool.dhcp.clone()?, pool.v4.as_ref()?);
        let link = snapshot.pools.get(&pool.name)?.link.as_ref()?;
        Some(Self {
            pool: pool.name.clone(),
            link: link.index,
            net: v4.net,
            server: v4.gateway,
            range: v4.dhcp_range,
            settings,
            has_dns: pool.dns.is_some(),
            domain: snapshot.device.domain.clone(),
            mtu: link.mtu,
            managed: HashMap::new(),
        })
    }

    /// Whether a client may have `address`.
    #[must_use]
    pub fn is_in_range(&self, address: Ipv4Addr) -> bool {
        self.range.is_some_and(|(first, last)| (first..=last).contains(&address))
    }
}

/// Whether no pool of `device` has the address of `lease` for clients.
#[must_use]
pub fn is_outside(device: &Device, lease: &ClientLease) -> bool {
    let Some(pool) = device.pools.get(&lease.pool) else { return true };
    let is_inside = match lease.address {
        IpAddr::V4(address) => {
            let range = pool.v4.as_ref().and_then(|v4| v4.dhcp_range).filter(|_| pool.dhcp.is_some());
            range.is_some_and(|(first, last)| (first..=last).contains(&address))
        }
        IpAddr::V6(address) => {
            let range = pool.dhcp6.as_ref().and_then(|dhcp6| dhcp6.range);
            range.is_some_and(|(first, last)| (first..=last).contains(&address))
        }
    };
    !is_inside
}

/// Steps that end the leases which are over at `now`, in seconds since 1970 (UTC), and whose address no pool of
/// `device` has for clients any more: the configuration is another one than when they were given.
#[must_use]
pub fn stale(device: &Device, clients: &[Arc<ClientLease>], now: u64) -> Vec<Step> {
    clients
        .iter()
        .filter(|lease| lease.is_over(now) && is_outside(device, lease))
        .map(|lease| Step::End(lease.key()))
        .collect()
}
