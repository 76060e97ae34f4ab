//! Whether the device sends to the address of a container in a macvlan pool by its own interface on the parent. Pure.
//!
//! The network of a parent chooses addresses as it likes. A route to such an address takes what the device sends there
//! away from where it went before, so there is one only for addresses that are on the parent's link anyway.

use super::Address;
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A route of the device that is not a default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Where it leads to.
    pub to: IpNetwork,
    /// Index of its link.
    pub link: u32,
    /// The destination is on that link: there is no gateway.
    pub on_link: bool,
}

/// The routes of the device that somebody else than pv-net has made for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Those that are not default routes.
    pub routes: BTreeSet<Way>,
    /// The gateways of all routes.
    pub gateways: BTreeSet<IpAddr>,
}

/// Why the device does not send to the address `to` by its own interface on the link `parent`. `own` are the indexes of such
/// interfaces.
///
/// # Errors
/// The reason: the address is not on the parent's link, or the device reaches somebody else by it.
pub fn is_on_parent(
    to: IpAddr,
    parent: u32,
    own: &BTreeSet<u32>,
    addresses: &[Address],
    ways: &Ways,
) -> Result<(), String> {
    let holds = |net: &IpNetwork| net.is_ipv4() == to.is_ipv4() && net.contains(to);
    let is_own = |link: u32| own.contains(&link);
    let known = addresses.iter().filter(|a| a.link == parent && a.beyond_link).map(|a| a.address);
    let routes = || ways.routes.iter().filter(|way| holds(&way.to) && !is_own(way.link));
    let advertised = routes().filter(|way| way.link == parent && way.on_link).map(|way| way.to);
    let near = known.chain(advertised).filter(|net| holds(net) && net.ip() != to).map(|net| net.prefix()).max();
    let Some(near) = near else {
        return Err("it is in no network of the device on that link".to_owned());
    };
    if addresses.iter().any(|a| a.link != parent && !is_own(a.link) && holds(&a.address)) {
        return Err("it is in a network that the device has on another link".to_owned());
    }
    let other = routes().find(|way| way.to.prefix() >= near && (way.link != parent || !way.on_link));
    if let Some(other) = other {
        return Err(format!("the device has another route to {}", other.to));
    }
    if ways.gateways.contains(&to) {
        return Err("it is a gateway of the device".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: u32 = 5;
    const OTHER: u32 = 6;
    const OWN: u32 = 7;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("network")
    }

    fn refused(to: &str, ways: &Ways) -> String {
        let addresses = [
            Address::usual(PARENT, net("10.77.0.250/24")),
            Address::usual(PARENT, net("2001:db8:77::250/64")),
            Address::usual(PARENT, net("2001:db8:78::250/128")),
            Address { beyond_link: false, ..Address::usual(PARENT, net("10.80.0.1/24")) },
            Address::usual(OTHER, net("10.78.0.1/24")),
            Address::usual(OTHER, net("10.77.0.64/28")),
            Address::usual(OTHER, net("192.0.2.1/32")),
            Address::usual(OWN, net("2001:db8:77::250/128")),
        ];
        let to = to.parse().expect("address");
        is_on_parent(to, PARENT, &[OWN].into(), &addresses, ways).err().unwrap_or_default()
    }

    #[test]
    fn only_what_is_on_the_parents_link_is_sent_there() {
        let ways = Ways {
            routes: BTreeSet::from([
                Way { to: net("10.77.0.0/24"), link: PARENT, on_link: true },
                Way { to: net("10.0.0.0/8"), link: OTHER, on_link: false },
                Way { to: net("10.77.0.128/25"), link: OTHER, on_link: false },
                Way { to: net("10.77.0.9/32"), link: OTHER, on_link: true },
                Way { to: net("10.77.0.10/32"), link: PARENT, on_link: false },
                Way { to: net("10.77.0.50/32"), link: OWN, on_link: true },
                Way { to: net("2001:db8:78::/64"), link: PARENT, on_link: true },
                Way { to: net("2001:db8:79::/64"), link: PARENT, on_link: false },
                Way { to: net("2001:db8:77::/65"), link: OTHER, on_link: true },
            ]),
            gateways: BTreeSet::from(["10.77.0.1".parse().expect("address")]),
        };
        for (to, want) in [
            ("10.77.0.50", ""),
            ("2001:db8:77:0:8000::1", ""),
            // A prefix that is on the link although the device's address has another length.
            ("2001:db8:78::1", ""),
            ("10.80.0.2", "no network"),
            ("8.8.8.8", "no network"),
            ("192.0.2.1", "no network"),
            ("2001:db8:79::1", "no network"),
            ("2001:db8::1", "no network"),
            ("10.78.0.2", "no network"),
            ("10.77.0.65", "on another link"),
            ("10.77.0.129", "another route to 10.77.0.128/25"),
            ("10.77.0.9", "another route to 10.77.0.9/32"),
            ("10.77.0.10", "another route to 10.77.0.10/32"),
            ("2001:db8:77::1", "another route to 2001:db8:77::/65"),
            ("10.77.0.1", "a gateway"),
        ] {
            let why = refused(to, &ways);
            assert!(if want.is_empty() { why.is_empty() } else { why.contains(want) }, "{to}: {why}");
        }
        assert_eq!(refused("10.77.0.9", &Ways::default()), "");
    }
}
