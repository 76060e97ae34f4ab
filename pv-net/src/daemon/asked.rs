//! Interfaces whose addresses the network on their pool's parent chooses: what it is asked for before an attach changes
//! anything, and what is given back to it.

use super::{Daemon, lease_key};
use crate::command::Halt;
use crate::failure::{Failure, Kind};
use crate::ipam::{Lease, LeaseKey};
use crate::kernel::asking::PATIENCE;
use crate::kernel::errand::{Asked, Errand, Found};
use crate::kernel::link::host_if_name;
use crate::lease::{Step, unix_time};
use crate::model::{Asker, ContainerName, Interface, Mac, Network, PoolIpam, Terms};
use pv_net_common::Ip;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;

/// The MAC of an interface on the link with the MAC `parent`: the same every time, and another one than on another device
/// of that network with the same containers.
fn mac_of(parent: Mac, key: &LeaseKey) -> Mac {
    let mut hash = Sha256::new();
    hash.update(b"pv-net macvlan");
    hash.update(parent.0);
    for part in [key.pool.as_str(), key.container.as_str(), key.interface.as_str()] {
        hash.update(part);
        hash.update([0]);
    }
    let hash = hash.finalize();
    // Unicast, and locally administered.
    Mac([hash[0] & 0xfc | 2, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

impl Daemon {
    /// The leases that the network gives to these interfaces of a container, in their order; `None` for those whose pools
    /// choose addresses themselves.
    ///
    /// # Errors
    /// Why it gives none. Or errands that ask it, whose results must be in `found`.
    pub(super) async fn ask_for(
        &self,
        name: &ContainerName,
        interfaces: &[Interface],
        found: &Found,
    ) -> Result<Vec<Option<Arc<Lease>>>, Halt> {
        let (mut given, mut needed) = (Vec::new(), Vec::new());
        for interface in interfaces {
            let Some((key, asked)) = self.asked(name, interface)? else {
                given.push(None);
                continue;
            };
            match found.terms(&asked) {
                None => needed.push(Errand::Ask(asked)),
                Some(Ok(terms)) => {
                    let mut terms = terms.clone();
                    self.leave_out_gateways(&key, &mut terms).await;
                    let network = terms.network();
                    let about = |failure: Failure| failure.about(format!("container {name}"));
                    self.check_given(&network).map_err(about)?;
                    given.push(Some(Arc::new(Lease {
                        key,
                        ipv4: network.v4.map(|given| given.address),
                        ipv6: network.v6.map(|given| given.address),
                        mac: asked.asker.mac,
                        fixed: false,
                        terms: Some(Arc::new(terms)),
                    })));
                }
                Some(Err(why)) => {
                    let Interface { name: interface, pool, .. } = interface;
                    let secs = PATIENCE.as_secs();
                    let why = format!("container {name}: interface {interface}: no address in {secs} seconds: {why}");
                    let help = format!(
                        "pool {pool} leaves addresses to the network of its parent: look there for the DHCP server and the \
                         router, or choose addresses here (\"subnet\")"
                    );
                    return Err(Failure::new(Kind::Internal, why).help(help).into());
                }
            }
        }
        if needed.is_empty() { Ok(given) } else { Err(Halt::Needs(needed)) }
    }

    /// What the network is asked for an interface, if it chooses its address.
    fn asked(&self, name: &ContainerName, interface: &Interface) -> Result<Option<(LeaseKey, Asked)>, Failure> {
        let asks = self.device.pools.get(&interface.pool).is_some_and(|pool| pool.ipam == PoolIpam::Dhcp);
        if !asks {
            return Ok(None);
        }
        let Some(link) = self.pools.get(&interface.pool) else {
            let why = self.pool_conditions.get(&interface.pool).cloned().unwrap_or_default();
            return Err(Failure::new(Kind::Internal, format!("pool {}: not available: {why}", interface.pool)));
        };
        let key = lease_key(name, interface);
        let before = self.leases.of(name).into_iter().find(|lease| lease.key == key);
        let mac = interface.mac.or(before.as_ref().map(|lease| lease.mac));
        let mac = mac.unwrap_or_else(|| mac_of(link.mac, &key));
        // What another MAC had is another client's.
        let known = before.filter(|lease| lease.mac == mac).and_then(|lease| lease.terms.as_deref().cloned());
        let asker = Asker { mac, hostname: name.to_string() };
        Ok(Some((key, Asked { link: link.index, asker, known: known.unwrap_or_default() })))
    }

    /// Checks addresses that a network gives: none may be in a network of a pool of this device, or another's.
    ///
    /// # Errors
    /// When one is.
    pub(super) fn check_given(&self, network: &Network) -> Result<(), Failure> {
        let v4 = network.v4.as_ref().map(|given| IpAddr::V4(given.address));
        let given = v4.into_iter().chain(network.v6.as_ref().map(|given| IpAddr::V6(given.address)));
        for address in given {
            let holds = |pool: &&crate::model::Pool| pool.own_networks().any(|net| net.contains(address));
            if let Some(pool) = self.device.pools.values().find(holds) {
                let why =
                    format!("the network of its pool's parent gives it {address}, which is of pool {}", pool.name);
                return Err(Failure::new(Kind::Conflict, why).help("choose another network for that pool"));
            }
        }
        Ok(())
    }

    /// Leaves out gateways that are an address of the device or of another container: neither forwards anything for this one.
    pub(super) async fn leave_out_gateways(&self, key: &LeaseKey, terms: &mut Terms) {
        let parent = self.pools.get(&key.pool).map(|link| link.index);
        let devices = match self.net.addresses().await {
            Ok(all) => all,
            Err(e) => return tracing::warn!(error = %e, "the device's addresses, to compare a gateway with"),
        };
        let leases = self.leases.all();
        let others = leases.iter().filter(|lease| lease.key != *key);
        let is_taken = |address: IpAddr| {
            let is_on_link = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
            devices.iter().any(|(link, own)| own.ip() == address && (!is_on_link || Some(*link) == parent))
                || others.clone().any(|lease| has(lease, address))
        };
        for gateway in without_gateways(terms, is_taken) {
            tracing::warn!(container = %key.container, interface = %key.interface, %gateway, "no gateway: it is of this device");
        }
    }

    /// The steps by which the book learns `lease`. Addresses that the network had given to others before, which have no link
    /// now, are these others' no more: a stopped container's lease stays in the book, and the server's newer word wins.
    pub(super) fn learning(&self, lease: Arc<Lease>) -> Vec<Step> {
        let mut steps = Vec::new();
        for other in self.leases.all().iter().filter(|other| other.key != lease.key) {
            let Some(terms) = other.terms.as_deref() else { continue };
            let over4 = other.ipv4.is_some() && other.ipv4 == lease.ipv4;
            let over6 = other.ipv6.is_some() && other.ipv6 == lease.ipv6;
            if !over4 && !over6 || self.link_index(&host_if_name(&other.key.container, &other.key.interface)).is_some()
            {
                continue;
            }
            let (v4, v6) = (terms.v4.clone().filter(|_| !over4), terms.v6.clone().filter(|_| !over6));
            steps.push(Step::Learn(Arc::new(Lease {
                ipv4: other.ipv4.filter(|_| !over4),
                ipv6: other.ipv6.filter(|_| !over6),
                terms: Some(Arc::new(Terms { v4, v6 })),
                ..Lease::clone(other)
            })));
        }
        steps.push(Step::Learn(lease));
        steps
    }

    /// Has leases given back to the networks that they are of. One that is over may be somebody else's by now.
    pub(super) fn give_back(&mut self, leases: &[Arc<Lease>]) {
        for lease in leases {
            let terms = lease.terms.as_deref().filter(|terms| is_to_be_given_back(terms, unix_time()));
            let link = self.pools.get(&lease.key.pool).filter(|link| link.on_parent);
            let (Some(terms), Some(link)) = (terms, link) else { continue };
            let asker = Asker { mac: lease.mac, hostname: lease.key.container.to_string() };
            self.errands.add(Errand::GiveBack(Asked { link: link.index, asker, known: terms.clone() }));
        }
    }
}

/// Whether there is a lease of a server that lasts longer than until the time `unix`.
fn is_to_be_given_back(terms: &Terms, unix: u64) -> bool {
    terms.v4.as_ref().is_some_and(|v4| v4.expires > unix)
}

/// Whether an interface with this lease has the address.
fn has(lease: &Lease, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => lease.ipv4 == Some(a),
        IpAddr::V6(a) => lease.ipv6 == Some(a) || Ip::link_local(lease.mac.0) == Ip::from(a),
    }
}

/// Takes gateways that are taken out of `terms`, and returns them.
fn without_gateways(terms: &mut Terms, is_taken: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let (v4, v6) = (terms.v4.as_mut().map(|t| &mut t.given), terms.v6.as_mut().map(|t| &mut t.given));
    let v4 = v4.and_then(|given| given.gateway.take_if(|gateway| is_taken((*gateway).into()))).map(IpAddr::from);
    let v6 = v6.and_then(|given| given.gateway.take_if(|gateway| is_taken((*gateway).into()))).map(IpAddr::from);
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Given, Terms4, Terms6};

    #[test]
    fn a_gateway_of_this_device_is_left_out_and_a_lease_that_is_over_is_not_given_back() {
        let given4 = Given::bare([192, 0, 2, 50].into(), 24, Some([192, 0, 2, 1].into()));
        let (address6, gateway6) = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50].into(), [0xfe80, 0, 0, 0, 0, 0, 0, 1].into());
        let given6 = Given::bare(address6, 64, Some(gateway6));
        let server = [192, 0, 2, 1].into();
        let (renew, rebind, expires) = (u64::MAX, u64::MAX, u64::MAX);
        let v4 = Terms4 { given: given4, server, server_mac: Mac([2; 6]), renew, rebind, expires };
        let router = [0xfe80, 0, 0, 0, 0, 0, 0, 1].into();
        let v6 = Terms6 { given: given6, router, routes_until: expires, expires, conflicts: 0 };
        let all = Terms { v4: Some(v4), v6: Some(v6) };
        let left = |taken: fn(IpAddr) -> bool| {
            let mut terms = all.clone();
            let gone = without_gateways(&mut terms, taken).len();
            let network = terms.network();
            (gone, network.v4.and_then(|g| g.gateway).is_some(), network.v6.and_then(|g| g.gateway).is_some())
        };
        assert_eq!(left(|_| false), (0, true, true));
        assert_eq!(left(|a| a.is_ipv4()), (1, false, true));
        assert_eq!(left(|a| a.is_ipv6()), (1, true, false));
        assert!(is_to_be_given_back(&all, 1000));
        let v4 = all.v4.clone().map(|v4| Terms4 { expires: 1000, ..v4 });
        for (unix, want) in [(999, true), (1000, false), (1001, false)] {
            assert_eq!(is_to_be_given_back(&Terms { v4: v4.clone(), ..all.clone() }, unix), want, "{unix}");
        }
        assert!(!is_to_be_given_back(&Terms { v4: None, ..all.clone() }, 1000), "nobody has given it that");
        let lease = Lease {
            key: LeaseKey {
                pool: "lan".parse().expect("name"),
                container: "web".parse().expect("name"),
                interface: "eth0".parse().expect("name"),
            },
            ipv4: Some([192, 0, 2, 9].into()),
            ipv6: None,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            fixed: false,
            terms: None,
        };
        for (address, want) in
            [("192.0.2.9", true), ("192.0.2.8", false), ("fe80::ff:fe00:9", true), ("fe80::1", false)]
        {
            assert_eq!(has(&lease, address.parse().expect("address")), want, "{address}");
        }
    }

    #[test]
    fn a_mac_is_the_same_every_time_and_nobody_elses() {
        let key = |pool: &str, container: &str, interface: &str| LeaseKey {
            pool: pool.parse().expect("name"),
            container: container.parse().expect("name"),
            interface: interface.parse().expect("name"),
        };
        let parent = Mac([0, 1, 2, 3, 4, 5]);
        let own = mac_of(parent, &key("lan", "web", "eth0"));
        assert_eq!(own, mac_of(parent, &key("lan", "web", "eth0")));
        assert_eq!(own.0[0] & 3, 2, "unicast, and locally administered");
        for other in [key("lan", "web", "eth1"), key("lan", "db", "eth0"), key("wan", "web", "eth0")] {
            assert_ne!(own, mac_of(parent, &other), "{other}");
        }
        assert_ne!(own, mac_of(Mac([0, 1, 2, 3, 4, 6]), &key("lan", "web", "eth0")));
    }
}
