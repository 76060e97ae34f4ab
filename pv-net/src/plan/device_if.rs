//! The device's own interface beside the macvlan interfaces of containers: its desired state, and the steps that lead
//! there. Pure.
//!
//! The kernel passes no frame between a macvlan and its parent. So the device has a macvlan of its own on the parent, with
//! a route to each container of a pool of mode `bridge`.

use super::{Address, HookPoint, Link, LinkSysctl, Observed, Op, PoolLink, Ways, is_on_parent};
use crate::model::{Attachment, IfName, alias};
use ipnetwork::IpNetwork;
use pv_net_common::InterfaceInfo;
use pv_net_common::endpoint::{POOL_BRIDGED, POOL_DEVICE};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// `IN6_ADDR_GEN_MODE_NONE`: no link-local address.
const ADDR_GEN_MODE_NONE: &str = "1";

/// A route of the device to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// The container's address.
    pub to: IpAddr,
    /// Index of the link that it leads to.
    pub link: u32,
    /// The address with which the device sends. The kernel takes it off a route with the address itself; such a route is
    /// to be removed.
    pub from: Option<IpAddr>,
}

impl fmt::Display for HostRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route to {}", self.to)?;
        self.from.map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

/// The desired state of the device's own interface on a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceIf {
    /// Its name. It follows from the parent's.
    pub name: IfName,
    /// Index of the parent.
    pub parent: u32,
    /// Name of the parent, for people.
    pub parent_name: IfName,
    /// MTU in bytes: the least of the pools on the parent.
    pub mtu: u32,
    /// Its `ifalias`.
    pub alias: String,
    /// IPv6 addresses of the parent. A neighbour solicitation is answered only by a link that has the address (RFC 4861
    /// section 7.2.3), an ARP request by any link. So IPv4 addresses stay on the parent alone: one that is taken off the
    /// parent while no daemon runs is not the device's any more.
    pub addresses: Vec<IpNetwork>,
    /// The containers' addresses, each with that by which the device reaches it.
    pub routes: BTreeMap<IpAddr, IpAddr>,
}

/// The settings of such an interface that matter.
pub fn device_if_settings(link: &IfName) -> impl Iterator<Item = LinkSysctl> + use<> {
    let keys = [
        ("ipv4", "forwarding"),
        ("ipv6", "forwarding"),
        ("ipv6", "accept_ra"),
        ("ipv6", "autoconf"),
        ("ipv6", "accept_dad"),
        ("ipv6", "dad_transmits"),
        ("ipv6", "addr_gen_mode"),
        ("ipv6", "disable_ipv6"),
    ];
    let link = link.clone();
    keys.into_iter().map(move |(family, key)| LinkSysctl { family, link: link.clone(), key })
}

/// Whether containers may use this address of the parent to reach the device.
fn is_reached(address: &Address, parent: u32) -> bool {
    let temporary = address.address.is_ipv6() && address.secondary;
    address.link == parent && address.beyond_link && !address.avoided && !address.unusable && !temporary
}

/// The interfaces that the device needs to reach these interfaces of containers, each with its pool, and why it does not reach
/// some: an address must be in a network that the device has on that link, and nowhere else. To others a container answers by
/// its gateway, and who chooses addresses, a network too, does not lead away what the device sends elsewhere.
#[must_use]
pub fn device_ifs<'a>(
    reached: impl Iterator<Item = (&'a Attachment, &'a PoolLink)>,
    observed: &Observed,
    ways: &Ways,
) -> (Vec<DeviceIf>, Vec<String>) {
    let (mut all, mut refused) = (BTreeMap::<u32, DeviceIf>::new(), Vec::new());
    let ours: BTreeSet<u32> = observed.links.values().filter(|link| link.is_device_if()).map(|l| l.index).collect();
    for (attachment, pool) in reached {
        let Some(parent) = observed.link(pool.index) else { continue };
        let Ok(parent_name) = parent.name.parse::<IfName>() else { continue };
        let own: Vec<IpNetwork> =
            observed.addresses.iter().filter(|a| is_reached(a, pool.index)).map(|a| a.address).collect();
        let found = all.entry(pool.index).or_insert_with(|| new(pool.index, parent_name, pool.mtu, &own));
        found.mtu = found.mtu.min(pool.mtu);
        let to = attachment.ipv4.map(IpAddr::from).into_iter().chain(attachment.ipv6.map(IpAddr::from));
        for (to, from) in to.filter_map(|to| Some((to, source(to, &own)?))) {
            match is_on_parent(to, pool.index, &ours, &observed.addresses, ways) {
                Ok(()) => drop(found.routes.insert(to, from)),
                Err(why) => {
                    let Attachment { container, interface, .. } = attachment;
                    refused.push(format!("container {container}: interface {interface}: not reached at {to}: {why}"));
                }
            }
        }
    }
    (all.into_values().collect(), refused)
}

fn new(parent: u32, parent_name: IfName, mtu: u32, own: &[IpNetwork]) -> DeviceIf {
    let hash = Sha256::digest(parent_name.as_str());
    let name = format!("pvdev-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    let mirrored = own.iter().filter(|a| a.is_ipv6()).filter_map(|a| IpNetwork::new(a.ip(), 128).ok());
    DeviceIf {
        name: name.parse().expect("6 letters and a dash and 8 digits are an interface name"),
        parent,
        alias: alias::of_device_if(&parent_name),
        parent_name,
        mtu,
        addresses: mirrored.collect(),
        routes: BTreeMap::new(),
    }
}

/// The address with which the device sends to `to`: one in the same network, else any of the family, since networks are
/// advertised, too, of which the device has no address.
fn source(to: IpAddr, own: &[IpNetwork]) -> Option<IpAddr> {
    let mut family = own.iter().filter(|a| a.is_ipv6() == to.is_ipv6());
    let first = family.clone().next();
    family.find(|a| a.contains(to)).or(first).map(|a| a.ip())
}

impl DeviceIf {
    /// The interface as it is.
    #[must_use]
    pub fn link<'a>(&self, observed: &'a Observed) -> Option<&'a Link> {
        let link = observed.links.get(self.name.as_str()).filter(|link| link.is_device_if())?;
        (link.other_end == Some(self.parent) && link.other_ns.is_none()).then_some(link)
    }

    /// What its settings are to be. The device listens to no router there, and nobody else on the link has its addresses.
    /// Without addresses to copy it gets no link-local one either, and IPv6 is not switched on for it.
    fn settings(&self) -> impl Iterator<Item = (LinkSysctl, &'static str)> {
        let v6 = !self.addresses.is_empty();
        device_if_settings(&self.name).filter_map(move |sysctl| match sysctl.key {
            "addr_gen_mode" if !v6 => Some((sysctl, ADDR_GEN_MODE_NONE)),
            "disable_ipv6" if !v6 => None,
            _ => Some((sysctl, "0")),
        })
    }

    fn info(&self, mac: [u8; 6]) -> InterfaceInfo {
        InterfaceInfo {
            // No pool has this number, so nobody's link-local address is known here.
            pool_id: u32::MAX,
            pool_flags: POOL_DEVICE | POOL_BRIDGED,
            mtu: self.mtu,
            bridge: self.parent,
            mac,
            ..InterfaceInfo::default()
        }
    }

    /// The steps that remove it, where `link` is its present state.
    #[must_use]
    pub fn removal(&self, link: &Link) -> [Op; 3] {
        let index = link.index;
        [
            Op::DeleteDeviceIf { name: self.name.clone() },
            Op::RemoveInterface { index },
            Op::Unhook { at: HookPoint::DeviceIf, link: link.name.clone(), index },
        ]
    }

    /// The steps that complete the interface, where `link` is its present state, and those that add routes then. Its programs
    /// and its entry in the map `interfaces` are there before it is up, and it is up before there are routes. A route goes
    /// before its address does, since without it the kernel keeps the route.
    #[must_use]
    pub fn steps(&self, link: &Link, observed: &Observed) -> (Vec<Op>, Vec<Op>) {
        let index = link.index;
        let name = || link.name.clone();
        let hooked = observed.is_hooked(HookPoint::DeviceIf, index);
        let is_open = link.up && !hooked;
        let mut ops = Vec::new();
        if is_open {
            ops.push(Op::SetDown { link: name(), index });
        }
        if link.mtu != self.mtu {
            ops.push(Op::SetMtu { link: name(), index, mtu: self.mtu });
        }
        let wrong =
            |(sysctl, want): &(LinkSysctl, &str)| observed.sysctls.get(sysctl).is_some_and(|value| value != want);
        let settings = self.settings().filter(wrong);
        ops.extend(settings.map(|(sysctl, want)| Op::SetSysctl { sysctl, value: want.to_owned() }));
        let info = self.info(link.mac.unwrap_or_default());
        if observed.interfaces.get(&index) != Some(&info) {
            ops.push(Op::SetInterface { host_if: name(), index, info: Box::new(info) });
        }
        if !hooked {
            ops.push(Op::Hook { at: HookPoint::DeviceIf, link: self.name.clone(), index });
        }
        let wanted: BTreeSet<HostRoute> =
            self.routes.iter().map(|(to, from)| HostRoute { to: *to, link: index, from: Some(*from) }).collect();
        let there = observed.host_routes.iter().filter(|route| !is_open && route.link == index);
        let there: BTreeSet<HostRoute> = there.copied().collect();
        ops.extend(there.difference(&wanted).map(|route| Op::RemoveRoute { link: name(), route: *route }));
        // The addresses are deprecated (RFC 4862 section 5.5.4), so that the device does not prefer them for connections
        // by other links (RFC 6724 section 5).
        let is_copy = |a: &Address| a.avoided && self.addresses.contains(&a.address);
        let is_old = |a: &&Address| {
            let own6 = a.address.is_ipv6() && a.beyond_link;
            a.link == index && (own6 || a.address.is_ipv4()) && !is_copy(a)
        };
        let old = observed.addresses.iter().filter(is_old);
        ops.extend(old.map(|a| Op::RemoveAddress { link: name(), index, address: a.address }));
        // The kernel removes routes and IPv6 addresses of a link that is set down.
        let has = |address: &IpNetwork| {
            observed.addresses.iter().any(|a| a.link == index && a.address == *address && is_copy(a))
        };
        let missing = self.addresses.iter().filter(|address| is_open || !has(address));
        ops.extend(missing.map(|a| Op::AddAddress { link: name(), index, address: *a, deprecated: true }));
        if !link.up || is_open {
            ops.push(Op::SetUp { link: name(), index });
        }
        let routes = wanted.difference(&there).map(|route| Op::AddRoute { link: name(), route: *route });
        (ops, routes.collect())
    }
}

/// The steps that remove the interfaces, entries and pins that are not `wanted`.
#[must_use]
pub fn device_if_gone(wanted: &[DeviceIf], observed: &Observed) -> Vec<Op> {
    let kept: BTreeSet<u32> = wanted.iter().filter_map(|own| own.link(observed)).map(|link| link.index).collect();
    let mut ops = Vec::new();
    for link in observed.links.values().filter(|link| link.is_device_if() && !kept.contains(&link.index)) {
        ops.push(Op::DeleteLink { link: link.name.clone(), index: link.index });
    }
    let entries = observed.interfaces.iter().filter(|(_, info)| info.pool_flags & POOL_DEVICE != 0);
    let stale = entries.filter(|(index, _)| !kept.contains(index));
    ops.extend(stale.map(|(index, _)| Op::RemoveInterface { index: *index }));
    let pinned = observed.hooked.keys().filter(|(at, index)| *at == HookPoint::DeviceIf && !kept.contains(index));
    ops.extend(pinned.map(|(at, index)| Op::Unhook { at: *at, link: observed.name_of(*index), index: *index }));
    ops
}

/// Indexes of all such interfaces of which there is anything: the link, its entry, or its programs' pins.
pub fn device_if_traces(observed: &Observed) -> impl Iterator<Item = u32> {
    let links = observed.links.values().filter(|link| link.is_device_if()).map(|link| link.index);
    let entries = observed.interfaces.iter().filter(|(_, info)| info.pool_flags & POOL_DEVICE != 0).map(|(i, _)| *i);
    let pinned = observed.hooked.keys().filter(|(at, _)| *at == HookPoint::DeviceIf).map(|(_, index)| *index);
    links.chain(entries).chain(pinned)
}

#[cfg(test)]
mod tests;
