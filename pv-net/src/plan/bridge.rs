//! A pool's bridge: its desired state, and the steps that lead there. Pure.

use super::{Link, LinkSysctl, Observed, Op};
use crate::model::{IfName, Mac, Pool, alias};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;

/// The least MTU of a link with IPv6, bytes (RFC 8200 section 5).
const LEAST_IPV6_MTU: u32 = 1280;

/// The desired state of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Gateway addresses with the pool's prefix length.
    pub gateways: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its MAC. It is set explicitly, since a bridge without one takes the MAC of one of its ports.
    pub mac: Mac,
    /// `ifalias` of a bridge that pv-net makes.
    pub alias: String,
}

/// A link has the bridge's name, but it is no bridge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("link {name}: exists already, as a {kind} that pv-net did not make")]
pub struct Foreign {
    /// The link.
    pub name: String,
    /// Its kind, as rtnetlink names it.
    pub kind: String,
}

/// The bridge that `pool` needs; `None` for a kind of pool without a bridge. `default_mtu` (bytes) is for pools that do
/// not set their own.
#[must_use]
pub fn bridge(pool: &Pool, default_mtu: u32) -> Option<Bridge> {
    let name = pool.bridge()?.clone();
    // A link whose MTU is below the minimum gets no IPv6 from the kernel (RFC 8200 section 5).
    let least = if pool.v6.is_some() { LEAST_IPV6_MTU } else { 0 };
    let v4 = pool.v4.as_ref().map(|s| Mac::from_ipv4(s.gateway));
    let mac = v4.or_else(|| pool.v6.as_ref().map(|s| Mac::from_ipv6(s.gateway)));
    Some(Bridge {
        name,
        gateways: pool.gateways().collect(),
        mtu: pool.mtu.unwrap_or(default_mtu.max(least)),
        mac: mac.unwrap_or(Mac([2, 0, 0, 0, 0, 1])),
        alias: alias::of_bridge(&pool.name),
    })
}

impl Bridge {
    /// The link of the bridge's name, if there is one.
    ///
    /// # Errors
    /// [`Foreign`] when that link is no bridge.
    pub fn link<'a>(&self, observed: &'a Observed) -> Result<Option<&'a Link>, Foreign> {
        match observed.links.get(self.name.as_str()) {
            Some(link) if link.kind.as_deref() != Some("bridge") => {
                Err(Foreign { name: link.name.clone(), kind: link.kind.clone().unwrap_or_else(|| "device".to_owned()) })
            }
            link => Ok(link),
        }
    }

    fn sysctl(&self, family: &'static str, key: &'static str) -> LinkSysctl {
        LinkSysctl { family, link: self.name.clone(), key }
    }

    /// The families for which the bridge does not forward yet.
    fn switched_off(&self, observed: &Observed) -> Vec<&'static str> {
        let is_off =
            |family: &&'static str| observed.sysctls.get(&self.sysctl(family, "forwarding")).is_some_and(|v| v == "0");
        ["ipv4", "ipv6"].into_iter().filter(|family| is_off(family)).collect()
    }

    /// The steps that complete the bridge, where `link` is its present state. Of a bridge that pv-net did not make,
    /// only this is changed: missing addresses are added, it is set up, forwarding is switched on, and its present MAC
    /// is set, so that it no longer follows the MACs of its ports. Its MTU stays. `former` are the addresses that
    /// pv-net gave it earlier.
    ///
    /// Forwarding is needed because the programs look up routes as if a container's packet had come in on the bridge,
    /// and the kernel looks up no route for a link that does not forward.
    #[must_use]
    pub fn steps(&self, link: &Link, observed: &Observed, former: &BTreeSet<IpNetwork>) -> Vec<Op> {
        let (name, index) = (link.name.clone(), link.index);
        let link_name = || name.clone();
        let ours = alias::is_ours(link.alias.as_deref());
        let mut ops = Vec::new();
        let set = |key: &'static str, value: &str| Op::SetSysctl {
            sysctl: self.sysctl("ipv6", key),
            value: value.to_owned(),
        };
        let value = |key: &'static str| observed.sysctls.get(&self.sysctl("ipv6", key)).map(String::as_str);
        let mac = if ours { Some(self.mac) } else { link.mac.map(Mac) };
        // Containers have the gateway's MAC in their neighbour tables, so it must not change with the bridge's ports.
        let keeps = link.mac.map(Mac) == mac && (ours || observed.macs_held.contains(&index));
        ops.extend(mac.filter(|_| !keeps).map(|mac| Op::SetMac { link: link_name(), index, mac }));
        let mut accept_ra = value("accept_ra");
        if ours {
            if link.mtu != self.mtu {
                ops.push(Op::SetMtu { link: link_name(), index, mtu: self.mtu });
            }
            if link.alias.as_deref() != Some(&self.alias) {
                ops.push(Op::SetAlias { link: link_name(), index, alias: self.alias.clone() });
            }
            // The device is the router on this link: it must not accept router advertisements from containers.
            if accept_ra.is_some_and(|v| v != "0") {
                ops.push(set("accept_ra", "0"));
                accept_ra = Some("0");
            }
            if self.gateways.iter().any(IpNetwork::is_ipv6) && value("disable_ipv6") != Some("0") {
                ops.push(set("disable_ipv6", "0"));
            }
        }
        for family in self.switched_off(observed) {
            // A forwarding link accepts router advertisements only with `accept_ra` 2.
            if family == "ipv6" && accept_ra == Some("1") {
                ops.push(set("accept_ra", "2"));
            }
            ops.push(Op::SetSysctl { sysctl: self.sysctl(family, "forwarding"), value: "1".to_owned() });
        }
        let there = observed.addresses.iter().filter(|a| a.link == index).map(|a| a.address);
        let is_old = |address: &IpNetwork| {
            let same_ip = self.gateways.iter().any(|gateway| gateway.ip() == address.ip());
            !self.gateways.contains(address) && (former.contains(address) || ours && same_ip)
        };
        let old: Vec<IpNetwork> = there.filter(is_old).collect();
        // An IPv6 address can be on a link only once, whatever its prefix length, so the old one is removed first.
        ops.extend(old.into_iter().map(|address| Op::RemoveAddress { link: link_name(), index, address }));
        let missing = self.gateways.iter().filter(|gateway| !observed.has_address(index, **gateway));
        ops.extend(missing.map(|address| Op::AddAddress {
            link: link_name(),
            index,
            address: *address,
            deprecated: false,
        }));
        if !link.up {
            ops.push(Op::SetUp { link: link_name(), index });
        }
        ops
    }
}

/// What pv-net is about to change on a bridge that it did not make, and has to restore later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borrowing {
    /// Addresses that pv-net adds.
    pub addresses: Vec<IpNetwork>,
    /// The bridge is down, and pv-net sets it up.
    pub raises: bool,
    /// Families for which pv-net switches forwarding on.
    pub families: Vec<&'static str>,
    /// Its `accept_ra` is 1, and pv-net sets it to 2.
    pub listens: bool,
}

impl Borrowing {
    /// What `bridge` would change; nothing for a bridge that pv-net makes itself.
    #[must_use]
    pub fn of(bridge: &Bridge, observed: &Observed) -> Self {
        let link = observed.links.get(bridge.name.as_str()).filter(|l| l.kind.as_deref() == Some("bridge"));
        let Some(link) = link.filter(|l| !alias::is_ours(l.alias.as_deref())) else { return Self::default() };
        let lacks = |gateway: &&IpNetwork| !observed.has_address(link.index, **gateway);
        let families = bridge.switched_off(observed);
        let accept_ra = observed.sysctls.get(&bridge.sysctl("ipv6", "accept_ra"));
        Self {
            addresses: bridge.gateways.iter().filter(lacks).copied().collect(),
            raises: !link.up,
            listens: families.contains(&"ipv6") && accept_ra.is_some_and(|v| v == "1"),
            families,
        }
    }
}

/// Whether making or completing `bridge` switches IPv6 forwarding on for a link. The kernel then drops the default
/// routes that routers advertised on other links.
#[must_use]
pub fn disturbs_listeners(bridge: &Bridge, observed: &Observed) -> bool {
    !observed.links.contains_key(bridge.name.as_str()) || bridge.switched_off(observed).contains(&"ipv6")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture;

    fn text(ops: &[Op]) -> String {
        ops.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn wanted() -> Bridge {
        let mut bridge = bridge(&fixture::pool(true), 1500).expect("a bridge");
        bridge.gateways.push("fd00::1/64".parse().expect("net"));
        bridge
    }

    fn complete(bridge: &Bridge, observed: &mut Observed, former: &[&str]) -> String {
        let former = former.iter().map(|a| a.parse().expect("net")).collect();
        let link = bridge.link(observed).expect("a bridge").expect("there").clone();
        let ops = bridge.steps(&link, observed, &former);
        ops.iter().for_each(|op| observed.apply(op));
        let link = observed.links[bridge.name.as_str()].clone();
        assert_eq!(bridge.steps(&link, observed, &former), [], "there is nothing left to do");
        text(&ops)
    }

    #[test]
    fn one_that_is_made_forwards_and_has_its_addresses_before_it_is_up() {
        let (bridge, mut observed) = (wanted(), Observed::default());
        assert_eq!(bridge.link(&observed), Ok(None));
        let make = Op::MakeBridge(Box::new(bridge.clone()));
        observed.apply(&make);
        assert_eq!(make.to_string(), "bridge pvbr0 made, MTU 1500");
        let want = "\
net.ipv6.conf.pvbr0.accept_ra = 0
net.ipv6.conf.pvbr0.disable_ipv6 = 0
net.ipv4.conf.pvbr0.forwarding = 1
net.ipv6.conf.pvbr0.forwarding = 1
pvbr0 address 10.0.3.1/24 added
pvbr0 address fd00::1/64 added
pvbr0 up";
        assert_eq!(complete(&bridge, &mut observed, &[]), want);
        let undone = make.undo(&Observed::default());
        undone.iter().for_each(|op| observed.apply(op));
        assert_eq!(observed, Observed::default());
    }

    #[test]
    fn another_network_takes_the_place_of_the_one_before() {
        let (mut bridge, mut observed) = (wanted(), Observed::default());
        observed.apply(&Op::MakeBridge(Box::new(bridge.clone())));
        complete(&bridge, &mut observed, &[]);
        bridge.gateways = ["10.0.4.1/24", "fd00::1/48"].map(|a| a.parse().expect("net")).to_vec();
        let want = "\
pvbr0 address 10.0.3.1/24 removed
pvbr0 address fd00::1/64 removed
pvbr0 address 10.0.4.1/24 added
pvbr0 address fd00::1/48 added";
        assert_eq!(complete(&bridge, &mut observed, &["10.0.3.1/24", "fd00::1/64"]), want);
    }

    #[test]
    fn of_somebody_elses_nothing_changes_but_what_is_needed() {
        let (bridge, mut observed) = (wanted(), Observed::default());
        observed.apply(&Op::MakeBridge(Box::new(bridge.clone())));
        let link = observed.links.get_mut("pvbr0").expect("there");
        (link.alias, link.mtu, link.mac) = (None, 9000, Some([2, 0, 0, 0, 0, 9]));
        observed.macs_held.clear();
        let borrowed = Borrowing::of(&bridge, &observed);
        let gateways = bridge.gateways.clone();
        let all = Borrowing { addresses: gateways, raises: true, families: vec!["ipv4", "ipv6"], listens: true };
        assert_eq!(borrowed, all);
        let want = "\
pvbr0 MAC 02:00:00:00:00:09
net.ipv4.conf.pvbr0.forwarding = 1
net.ipv6.conf.pvbr0.accept_ra = 2
net.ipv6.conf.pvbr0.forwarding = 1
pvbr0 address 10.0.3.1/24 added
pvbr0 address fd00::1/64 added
pvbr0 up";
        assert_eq!(complete(&bridge, &mut observed, &[]), want);
        assert_eq!(Borrowing::of(&bridge, &observed), Borrowing::default());
    }

    #[test]
    fn what_is_no_bridge_is_left_alone() {
        let bridge = wanted();
        let mut observed = fixture::links(&[7], true);
        let mut link = observed.links.remove("pv7").expect("there");
        link.name = "pvbr0".to_owned();
        observed.links.insert("pvbr0".to_owned(), link);
        let why = bridge.link(&observed).expect_err("no bridge").to_string();
        assert_eq!(why, "link pvbr0: exists already, as a veth that pv-net did not make");
    }
}
