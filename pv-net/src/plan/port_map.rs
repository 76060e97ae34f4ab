//! Published ports as entries of the `port_map` map.

use super::PortMapPrefix;
use crate::model::{Attachment, Pool, PoolName, PortMapping, Transport, reached_at};
use pv_net_common::endpoint::{PORT_MAP_PREFIX, PORT_MAP_SOMEWHERE};
use pv_net_common::{Ip, PortMapKey, PortMapTarget};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// A port mapping, and the container that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The mapping.
    pub mapping: PortMapping,
    /// The container's identity.
    pub identity: u32,
    /// The container's IPv4 address that it leads to.
    pub ipv4: Option<Ipv4Addr>,
    /// The container's IPv6 address that it leads to.
    pub ipv6: Option<Ipv6Addr>,
    /// The outside reaches the container's own addresses, and none of the device: it has a macvlan interface.
    pub direct: bool,
}

impl Published {
    /// A mapping of the container with this identity and these interfaces, on a device with these pools.
    #[must_use]
    pub fn new(
        mapping: PortMapping,
        identity: u32,
        attachments: &[Attachment],
        pools: &BTreeMap<PoolName, Pool>,
    ) -> Self {
        let (ipv4, ipv6) = reached_at(attachments, mapping.interface.as_ref());
        let leads_to = |a: &&Attachment| a.ipv4.is_some() && a.ipv4 == ipv4 || a.ipv6.is_some() && a.ipv6 == ipv6;
        let pool = attachments.iter().find(leads_to).and_then(|a| pools.get(&a.pool));
        Self { mapping, identity, ipv4, ipv6, direct: pool.is_some_and(|pool| pool.parent().is_some()) }
    }

    /// The addresses that the mapping is for, the device's unless it is direct, each with the container's address of
    /// the same family. The unspecified address of a family stands for all of the device's addresses.
    pub fn pairs(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let own = self.ipv4.map(IpAddr::from).into_iter().chain(self.ipv6.map(IpAddr::from));
        let hosts = match self.mapping.host {
            _ if self.direct => own.collect(),
            Some(host) => vec![host],
            None => any.to_vec(),
        };
        let target = |host: &IpAddr| match host {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::from),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::from),
        };
        hosts.into_iter().filter_map(move |host| Some((host, target(&host)?))).collect::<Vec<_>>().into_iter()
    }
}

/// The IP protocol number as in the keys of `port_map`.
fn proto(transport: Transport) -> u16 {
    transport.number().into()
}

/// The fewest prefixes that cover `ports`: first port, and how many of its bits count. At most 30.
fn cover(ports: &RangeInclusive<u16>) -> Vec<(u16, u32)> {
    let (mut first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    let mut all = Vec::new();
    while first <= last {
        let aligned = if first == 0 { 16 } else { first.trailing_zeros().min(16) };
        let fits = (last - first + 1).ilog2();
        let free = aligned.min(fits);
        all.push((first as u16, 16 - free));
        first += 1 << free;
    }
    all
}

/// The entries of `port_map` for one mapping.
#[must_use]
pub fn prefixes(published: &Published) -> Vec<(PortMapPrefix, PortMapTarget)> {
    let mapping = &published.mapping;
    let mut entries = Vec::new();
    for (host, target) in published.pairs() {
        for (port, bits) in cover(&mapping.host_ports) {
            let key =
                PortMapKey { addr: Ip::from(host), proto_be: proto(mapping.transport).to_be(), port_be: port.to_be() };
            let target = PortMapTarget {
                addr: Ip::from(target),
                first_port: *mapping.host_ports.start(),
                target_port: mapping.container_port,
                identity: published.identity,
            };
            entries.push(((PORT_MAP_PREFIX + bits, key), target));
        }
    }
    entries
}

/// The entries that keep a socket on all addresses from binding a port that is published on one address; between two
/// sockets the kernel would refuse that too.
#[must_use]
pub fn reservations(published: &Published) -> Vec<(PortMapPrefix, PortMapTarget)> {
    let mapping = &published.mapping;
    let mut entries = Vec::new();
    if published.direct {
        return entries;
    }
    for (host, _) in published.pairs().filter(|(host, _)| !host.is_unspecified()) {
        let all = if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        let proto_be = (proto(mapping.transport) | PORT_MAP_SOMEWHERE).to_be();
        for (port, bits) in cover(&mapping.host_ports) {
            let key = PortMapKey { addr: Ip::from(all), proto_be, port_be: port.to_be() };
            // The target has no address, so no flow ever matches the entry.
            entries.push((
                (PORT_MAP_PREFIX + bits, key),
                PortMapTarget { identity: published.identity, ..PortMapTarget::default() },
            ));
        }
    }
    entries
}

/// The device's ports that an entry covers.
#[must_use]
pub fn range_of((bits, key): &PortMapPrefix) -> RangeInclusive<u16> {
    let first = u16::from_be(key.port_be);
    let free = 16 - bits.saturating_sub(PORT_MAP_PREFIX).min(16);
    first..=first | ((1u32 << free) - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn published(text: &str) -> Published {
        Published {
            mapping: text.parse().expect("mapping"),
            identity: 7,
            ipv4: Some([10, 0, 3, 2].into()),
            ipv6: Some("fd00::2".parse().expect("address")),
            direct: false,
        }
    }

    #[test]
    fn a_port_on_all_addresses_is_an_entry_a_family() {
        let entries = prefixes(&published("8080:80/tcp"));
        assert_eq!(entries.len(), 2);
        assert!(entries.iter().all(|((bits, _), s)| *bits == 160 && s.first_port == 8080 && s.target_port == 80));
    }

    #[test]
    fn a_family_that_the_container_lacks_has_no_entry() {
        let mut v4_only = published("8080:80/tcp");
        v4_only.ipv6 = None;
        assert_eq!(prefixes(&v4_only).len(), 1);
        assert_eq!(prefixes(&published("127.0.0.1:8080:80")).len(), 1);
    }

    #[test]
    fn a_port_on_one_address_is_reserved_for_its_family() {
        assert!(reservations(&published("8080:80/tcp")).is_empty());
        for (text, all) in [("127.0.0.1:8080:80", "0.0.0.0"), ("[::1]:8080:80", "::")] {
            let entries = reservations(&published(text));
            let [((bits, key), target)] = entries.as_slice() else { panic!("{entries:?}") };
            assert_eq!(
                (*bits, IpAddr::from(key.addr).to_string(), key.proto_be),
                (160, all.to_owned(), 0x206_u16.to_be())
            );
            assert_eq!((target.addr, target.identity), (Ip::UNSPECIFIED, 7));
        }
        assert_eq!(reservations(&published("127.0.0.1:8081-8082:81-82/udp")).len(), 2);
    }

    proptest! {
        #[test]
        fn prefixes_cover_a_range_exactly(a: u16, b: u16) {
            let range = a.min(b).max(1)..=a.max(b).max(1);
            let text = format!("127.0.0.1:{}-{}:{}-{}/udp", range.start(), range.end(), range.start(), range.end());
            let entries = prefixes(&published(&text));
            prop_assert!(entries.len() <= 30);
            let mut covered: Vec<u32> = Vec::new();
            for (prefix, _) in &entries {
                covered.extend(range_of(prefix).map(u32::from));
            }
            let wanted: Vec<u32> = range.map(u32::from).collect();
            prop_assert_eq!(covered, wanted);
        }
    }
}
