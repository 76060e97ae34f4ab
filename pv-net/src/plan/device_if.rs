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

/// An interface of a container in a pool of mode `bridge`.
#[derive(Clone, Copy, Debug)]
pub struct Reached<'a> {
    /// The interface.
    pub attachment: &'a Attachment,
    /// Its pool.
    pub pool: &'a PoolLink,
    /// The parent's network has chosen its addresses.
    pub is_given: bool,
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

/// The interfaces that the device needs to reach these interfaces of containers, and why it does not reach some: an address
/// that the parent's network has chosen must be on that link, as far as the device knows by its addresses and other routes.
#[must_use]
pub fn device_ifs<'a>(
    reached: impl Iterator<Item = Reached<'a>>,
    observed: &Observed,
    ways: &Ways,
) -> (Vec<DeviceIf>, Vec<String>) {
    let (mut all, mut refused) = (BTreeMap::<u32, DeviceIf>::new(), Vec::new());
    let ours: BTreeSet<u32> = observed.links.values().filter(|link| link.is_device_if()).map(|l| l.index).collect();
    for Reached { attachment, pool, is_given } in reached {
        let Some(parent) = observed.link(pool.index) else { continue };
        let Ok(parent_name) = parent.name.parse::<IfName>() else { continue };
        let own: Vec<IpNetwork> =
            observed.addresses.iter().filter(|a| is_reached(a, pool.index)).map(|a| a.address).collect();
        let found = all.entry(pool.index).or_insert_with(|| new(pool.index, parent_name, pool.mtu, &own));
        found.mtu = found.mtu.min(pool.mtu);
        let to = attachment.ipv4.map(IpAddr::from).into_iter().chain(attachment.ipv6.map(IpAddr::from));
        for (to, from) in to.filter_map(|to| Some((to, source(to, &own)?))) {
            match is_on_parent(to, pool.index, &ours, &observed.addresses, ways) {
                Err(why) if is_given => {
                    let Attachment { container, interface, .. } = attachment;
                    refused.push(format!("container {container}: interface {interface}: not reached at {to}: {why}"));
                }
                _ => drop(found.routes.insert(to, from)),
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

/// The address with which the device sends to `to`: one in the same network, else any of the family.
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
mod tests {
    use super::*;
    use crate::model::Mac;
    use crate::plan::fixture;

    const POOL: PoolLink = PoolLink { index: 5, mac: Mac([2; 6]), mtu: 1400, id: 1, borrowed: true, on_parent: true };

    /// A device whose link `wan0` has these addresses.
    fn device(addresses: &[&str]) -> Observed {
        let mut observed = fixture::links(&[7], true);
        let mut parent = observed.links.remove("pv7").expect("there");
        (parent.name, parent.index, parent.kind, parent.alias) = ("wan0".to_owned(), 5, None, None);
        observed.links.insert("wan0".to_owned(), parent);
        observed.addresses = addresses.iter().map(|a| Address::usual(5, a.parse().expect("address"))).collect();
        observed
    }

    fn wanted(numbers: &[u8], observed: &Observed) -> Vec<DeviceIf> {
        let attachment = |n: &u8| Attachment {
            ipv6: Some([0x2001, 0xdb8, 0, 0, 0, 0, 0, (*n).into()].into()),
            ..fixture::attachment(*n)
        };
        let attachments: Vec<Attachment> = numbers.iter().map(attachment).collect();
        let reached = attachments.iter().map(|attachment| Reached { attachment, pool: &POOL, is_given: false });
        device_ifs(reached, observed, &Ways::default()).0
    }

    #[test]
    fn an_address_that_is_not_on_the_parents_link_gets_no_route_if_the_network_has_chosen_it() {
        let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
        let near = fixture::attachment(7);
        let far = Attachment { ipv4: Some([8, 8, 8, 8].into()), ..fixture::attachment(8) };
        let ways = |observed: &Observed, is_given: bool| {
            let reached = [&near, &far].map(|attachment| Reached { attachment, pool: &POOL, is_given });
            let (all, refused) = device_ifs(reached.into_iter(), observed, &Ways::default());
            (all[0].routes.keys().map(ToString::to_string).collect::<Vec<_>>().join(" "), refused)
        };
        assert_eq!(ways(&observed, false), ("8.8.8.8 10.0.3.7".to_owned(), Vec::new()));
        let (routes, refused) = ways(&observed, true);
        assert_eq!(routes, "10.0.3.7");
        let want =
            "container c8: interface eth0: not reached at 8.8.8.8: it is in no network of the device on that link";
        assert_eq!(refused, [want]);
        // The same network on another link: the device reaches others there.
        observed.addresses.push(Address::usual(6, "10.0.3.2/24".parse().expect("address")));
        assert_eq!(ways(&observed, true).0, "");
    }

    /// Brings the kernel to what these containers need, and returns the steps. The same again changes nothing, and the
    /// steps can be undone.
    fn follow(numbers: &[u8], observed: &mut Observed) -> String {
        let before = observed.clone();
        let (mut done, mut back) = (Vec::new(), Vec::new());
        let mut carry_out = |ops: Vec<Op>, observed: &mut Observed| {
            for op in ops {
                back.push(op.undo(observed));
                observed.apply(&op);
                let once = observed.clone();
                observed.apply(&op);
                assert_eq!(*observed, once, "{op} is not idempotent");
                done.push(op);
            }
        };
        let all = wanted(numbers, observed);
        carry_out(device_if_gone(&all, observed), observed);
        for own in &all {
            if own.link(observed).is_none() {
                carry_out(vec![Op::MakeDeviceIf(Box::new(own.clone()))], observed);
            }
            let link = own.link(observed).expect("made").clone();
            let (ops, routes) = own.steps(&link, observed);
            carry_out(ops, observed);
            carry_out(routes, observed);
            let left = own.steps(own.link(observed).expect("there"), observed);
            assert_eq!(left, (Vec::new(), Vec::new()), "there is nothing left to do");
        }
        if !done.iter().any(|op| matches!(op, Op::DeleteLink { .. })) {
            let (mut now, mut before) = (observed.clone(), before);
            back.into_iter().rev().flatten().for_each(|op| now.apply(&op));
            for state in [&mut now, &mut before] {
                state.addresses.sort_by_key(|a| (a.link, a.address));
            }
            assert_eq!(now, before, "not undone");
        }
        done.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn it_comes_with_the_first_container_and_goes_with_the_last() {
        let mut observed = device(&["10.0.3.1/24", "192.0.2.1/24", "2001:db8::1/64"]);
        assert_eq!(follow(&[], &mut observed), "");
        let before = observed.clone();
        let made = follow(&[7], &mut observed);
        let name = wanted(&[7], &observed)[0].name.clone();
        let want = "\
NAME made, the device's interface on wan0
net.ipv4.conf.NAME.forwarding = 0
net.ipv6.conf.NAME.forwarding = 0
net.ipv6.conf.NAME.accept_ra = 0
net.ipv6.conf.NAME.autoconf = 0
net.ipv6.conf.NAME.accept_dad = 0
net.ipv6.conf.NAME.dad_transmits = 0
net.ipv6.conf.NAME.addr_gen_mode = 0
net.ipv6.conf.NAME.disable_ipv6 = 0
interface 6 (NAME) guarded
programs on the device's interface NAME
NAME address 2001:db8::1/128 added
NAME up
NAME route to 10.0.3.7 from 10.0.3.1 added
NAME route to 2001:db8::7 from 2001:db8::1 added";
        assert_eq!(made.replace(name.as_str(), "NAME"), want);
        let more = follow(&[7, 8], &mut observed).replace(name.as_str(), "NAME");
        assert_eq!(more.lines().count(), 2, "{more}");
        let gone = follow(&[], &mut observed).replace(name.as_str(), "NAME");
        let want = "NAME deleted\ninterface 6 removed\nprograms on the device's interface NAME removed";
        assert_eq!(gone, want);
        assert_eq!((observed.links, observed.interfaces), (before.links, before.interfaces));
    }

    #[test]
    fn it_follows_the_parents_addresses() {
        let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
        follow(&[7], &mut observed);
        let name = wanted(&[7], &observed)[0].name.clone();
        observed.addresses.retain(|a| a.link != 5);
        observed.addresses.push(Address::usual(5, "10.0.3.2/24".parse().expect("address")));
        // Of a deprecated address, a temporary one and one that is not usable yet there is no copy.
        let of = |text: &str| Address::usual(5, text.parse().expect("address"));
        observed.addresses.push(Address { avoided: true, ..of("2001:db8::2/64") });
        observed.addresses.push(Address { secondary: true, ..of("2001:db8::3/64") });
        observed.addresses.push(Address { unusable: true, ..of("2001:db8::4/64") });
        let want = "\
net.ipv6.conf.NAME.addr_gen_mode = 1
NAME route to 10.0.3.7 from 10.0.3.1 removed
NAME route to 2001:db8::7 from 2001:db8::1 removed
NAME address 2001:db8::1/128 removed
NAME route to 10.0.3.7 from 10.0.3.2 added";
        assert_eq!(follow(&[7], &mut observed).replace(name.as_str(), "NAME"), want);
    }

    #[test]
    fn a_route_that_has_lost_its_source_goes() {
        let mut observed = device(&["10.0.3.1/24", "2001:db8::1/64"]);
        follow(&[7], &mut observed);
        let name = wanted(&[7], &observed)[0].name.clone();
        // As it is when the address was removed, and the daemon was killed then.
        let (mine, others): (BTreeSet<HostRoute>, _) = observed.host_routes.iter().partition(|r| r.to.is_ipv6());
        observed.host_routes = others;
        observed.host_routes.extend(mine.into_iter().map(|route| HostRoute { from: None, ..route }));
        let want = "\
NAME route to 2001:db8::7 removed
NAME route to 2001:db8::7 from 2001:db8::1 added";
        assert_eq!(follow(&[7], &mut observed).replace(name.as_str(), "NAME"), want);
    }

    #[test]
    fn without_ipv6_of_the_parent_there_is_none() {
        let mut observed = device(&["10.0.3.1/24"]);
        let steps = follow(&[7], &mut observed);
        assert!(!steps.contains("addr_gen_mode") && !steps.contains("disable_ipv6"), "{steps}");
        let none = observed.sysctls.iter().filter(|(sysctl, value)| sysctl.key == "addr_gen_mode" && *value == "1");
        assert_eq!(none.count(), 1);
        observed.addresses.push(Address::usual(5, "2001:db8::1/64".parse().expect("address")));
        let steps = follow(&[7], &mut observed);
        assert!(steps.contains("addr_gen_mode = 0") && steps.contains("disable_ipv6 = 0"), "{steps}");
    }

    #[test]
    fn a_copy_of_an_address_is_not_preferred() {
        let mut observed = device(&["2001:db8::1/64"]);
        follow(&[7], &mut observed);
        let copy = observed.addresses.iter_mut().find(|a| a.link != 5).expect("a copy");
        assert!(copy.avoided, "{copy:?}");
        copy.avoided = false;
        let steps = follow(&[7], &mut observed);
        assert_eq!(steps.lines().count(), 2, "{steps}");
    }

    #[test]
    fn one_that_is_open_without_its_programs_is_set_down_first() {
        let mut observed = device(&["10.0.3.1/24"]);
        follow(&[7], &mut observed);
        observed.hooked.clear();
        let steps = follow(&[7], &mut observed);
        let at = |what: &str| steps.lines().position(|line| line.contains(what)).expect("a step");
        assert!(at(" down") < at("programs") && at("programs") < at(" up") && at(" up") < at("route"), "{steps}");
    }
}
