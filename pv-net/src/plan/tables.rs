//! The maps that describe to the programs what is around the containers: the device's addresses, its uplinks, the
//! pools' networks, published ports, and the uplinks' filter.

use super::Op;
use pv_net_common::endpoint::{PORT_MAP_PREFIX, PORT_MAP_SOMEWHERE, SOURCE_BITS, UPLINK_POOL};
use pv_net_common::{FilterRate, FilterSource, Ip, PortMapKey, PortMapTarget, SourceKey, UplinkInfo};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// A key of an LPM trie: how many of its bits count, and the bits.
pub type Prefix<K> = (u32, K);
/// A key of the `port_map` trie.
pub type PortMapPrefix = Prefix<PortMapKey>;
/// A key of the `sources` trie.
pub type SourcePrefix = Prefix<SourceKey>;
/// A key of the `networks` and `filter_sources` tries.
pub type NetworkPrefix = Prefix<FilterSource>;

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `locals`: an address of the device, with its kind.
    Local {
        /// The address.
        addr: Ip,
        /// `LOCAL_ADDRESS` or `LOCAL_BROADCAST`.
        kind: u32,
    },
    /// `networks`: a network of a pool.
    Network {
        /// The network.
        prefix: NetworkPrefix,
        /// Index of the pool's bridge, 0 for a pool without one.
        bridge: u32,
    },
    /// `sources`: destinations for which masquerade uses another address of an uplink than the usual one.
    Source {
        /// The uplink, and the destinations (IPv6) or next hops (IPv4).
        prefix: SourcePrefix,
        /// The address.
        addr: Ip,
    },
    /// `uplinks`: an uplink, or a pool's bridge.
    Uplink {
        /// Index of the link.
        index: u32,
        /// What the programs know about it.
        info: UplinkInfo,
    },
    /// `port_map`: published ports.
    Port {
        /// The device's address and ports.
        prefix: PortMapPrefix,
        /// The container's address and port.
        target: PortMapTarget,
    },
    /// `filter_sources`: sources that the uplinks' filter drops.
    Dropped {
        /// The sources.
        prefix: NetworkPrefix,
        /// Number of the drop reason that they are counted under.
        reason: u32,
    },
    /// `filter_rate`: how much each source outside may send.
    Rate(FilterRate),
}

/// The contents of the tables, present or desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Addresses of the device, with their kind.
    pub locals: BTreeMap<Ip, u32>,
    /// Source addresses of masquerade other than the uplinks' usual ones.
    pub networks: BTreeMap<NetworkPrefix, u32>,
    /// Masquerade's addresses beside the uplinks' usual ones.
    pub sources: BTreeMap<SourcePrefix, Ip>,
    /// Uplinks and pools' bridges, by index.
    pub uplinks: BTreeMap<u32, UplinkInfo>,
    /// Published ports.
    pub ports: BTreeMap<PortMapPrefix, PortMapTarget>,
    /// Sources that the uplinks' filter drops, with the number of the drop reason.
    pub dropped: BTreeMap<NetworkPrefix, u32>,
    /// How much each source outside may send.
    pub rate: FilterRate,
}

impl Tables {
    /// The entry that the tables have under the key of `entry`.
    #[must_use]
    pub fn get(&self, entry: &Entry) -> Option<Entry> {
        match *entry {
            Entry::Local { addr, .. } => self.locals.get(&addr).map(|kind| Entry::Local { addr, kind: *kind }),
            Entry::Network { prefix, .. } => {
                self.networks.get(&prefix).map(|bridge| Entry::Network { prefix, bridge: *bridge })
            }
            Entry::Source { prefix, .. } => self.sources.get(&prefix).map(|addr| Entry::Source { prefix, addr: *addr }),
            Entry::Uplink { index, .. } => self.uplinks.get(&index).map(|info| Entry::Uplink { index, info: *info }),
            Entry::Port { prefix, .. } => self.ports.get(&prefix).map(|target| Entry::Port { prefix, target: *target }),
            Entry::Dropped { prefix, .. } => {
                self.dropped.get(&prefix).map(|reason| Entry::Dropped { prefix, reason: *reason })
            }
            Entry::Rate(_) => (self.rate != FilterRate::default()).then_some(Entry::Rate(self.rate)),
        }
    }

    /// Writes `entry`, replacing one with the same key.
    pub fn set(&mut self, entry: &Entry) {
        match *entry {
            Entry::Local { addr, kind } => drop(self.locals.insert(addr, kind)),
            Entry::Network { prefix, bridge } => drop(self.networks.insert(prefix, bridge)),
            Entry::Source { prefix, addr } => drop(self.sources.insert(prefix, addr)),
            Entry::Uplink { index, info } => drop(self.uplinks.insert(index, info)),
            Entry::Port { prefix, target } => drop(self.ports.insert(prefix, target)),
            Entry::Dropped { prefix, reason } => drop(self.dropped.insert(prefix, reason)),
            Entry::Rate(rate) => self.rate = rate,
        }
    }

    /// Removes the entry that has the key of `entry`.
    pub fn remove(&mut self, entry: &Entry) {
        match entry {
            Entry::Local { addr, .. } => drop(self.locals.remove(addr)),
            Entry::Network { prefix, .. } => drop(self.networks.remove(prefix)),
            Entry::Source { prefix, .. } => drop(self.sources.remove(prefix)),
            Entry::Uplink { index, .. } => drop(self.uplinks.remove(index)),
            Entry::Port { prefix, .. } => drop(self.ports.remove(prefix)),
            Entry::Dropped { prefix, .. } => drop(self.dropped.remove(prefix)),
            Entry::Rate(_) => self.rate = FilterRate::default(),
        }
    }

    /// The steps that bring the device's addresses and the pools' networks to `wanted`.
    #[must_use]
    pub fn address_steps(&self, wanted: &Self) -> Vec<Op> {
        let mut ops = steps(&self.locals, &wanted.locals, |addr, kind| Entry::Local { addr, kind });
        ops.extend(steps(&self.networks, &wanted.networks, |prefix, bridge| Entry::Network { prefix, bridge }));
        ops
    }

    /// The steps that bring the uplinks and masquerade's addresses to `wanted`. Entries of `sources` are added before
    /// an uplink gets the flag that it has some.
    #[must_use]
    pub fn uplink_steps(&self, wanted: &Self) -> Vec<Op> {
        let mut ops = steps(&self.sources, &wanted.sources, |prefix, addr| Entry::Source { prefix, addr });
        ops.extend(steps(&self.uplinks, &wanted.uplinks, |index, info| Entry::Uplink { index, info }));
        ops
    }

    /// The steps that bring the published ports to `wanted`.
    #[must_use]
    pub fn port_steps(&self, wanted: &Self) -> Vec<Op> {
        steps(&self.ports, &wanted.ports, |prefix, target| Entry::Port { prefix, target })
    }

    /// The steps that bring the uplinks' filter to `wanted`.
    #[must_use]
    pub fn filter_steps(&self, wanted: &Self) -> Vec<Op> {
        let mut ops = steps(&self.dropped, &wanted.dropped, |prefix, reason| Entry::Dropped { prefix, reason });
        ops.extend((self.rate != wanted.rate).then_some(Op::Set(Entry::Rate(wanted.rate))));
        ops
    }

    /// Published ports that `wanted` does not have, or that lead elsewhere there. Their flows have to end.
    #[must_use]
    pub fn lost_ports(&self, wanted: &Self) -> Vec<(PortMapPrefix, PortMapTarget)> {
        let is_lost = |(prefix, target): &(&PortMapPrefix, &PortMapTarget)| wanted.ports.get(*prefix) != Some(*target);
        self.ports.iter().filter(is_lost).map(|(prefix, target)| (*prefix, *target)).collect()
    }
}

/// Additions and changes come before removals, so that an address which moves from one entry to another is always
/// covered.
fn steps<K: Copy + Ord, V: Copy + PartialEq>(
    now: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    entry: impl Fn(K, V) -> Entry,
) -> Vec<Op> {
    let set = wanted.iter().filter(|(key, value)| now.get(key) != Some(value));
    let gone = now.iter().filter(|(key, _)| !wanted.contains_key(key));
    let set = set.map(|(key, value)| Op::Set(entry(*key, *value)));
    set.chain(gone.map(|(key, value)| Op::Remove(entry(*key, *value)))).collect()
}

/// A prefix of addresses in the usual notation; `head` is the number of key bits in front of the address.
fn network(bits: u32, head: u32, addr: Ip) -> String {
    let addr = IpAddr::from(addr);
    let bits = bits.saturating_sub(head);
    format!("{addr}/{}", if addr.is_ipv4() { bits.saturating_sub(96) } else { bits })
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { addr, .. } => write!(f, "address {} of the device", IpAddr::from(*addr)),
            Self::Network { prefix: (bits, source), .. } => {
                write!(f, "pool network {}", network(*bits, FilterSource::HEAD_BITS, source.addr))
            }
            Self::Source { prefix: (bits, key), addr } => {
                let to = network(*bits, SOURCE_BITS - 128, key.to);
                write!(f, "masquerade address {} to {to} by link {}", IpAddr::from(*addr), key.link)
            }
            Self::Uplink { index, info } if info.flags & UPLINK_POOL != 0 => {
                write!(f, "bridge {index} of pool number {}", info.pool_id)
            }
            Self::Uplink { index, .. } => write!(f, "uplink {index}"),
            Self::Port { prefix, target } => port(f, prefix, target),
            Self::Dropped { prefix: (bits, source), .. } => {
                write!(f, "filtered source {}", network(*bits, FilterSource::HEAD_BITS, source.addr))
            }
            Self::Rate(rate) if *rate == FilterRate::default() => write!(f, "no rate limit of sources outside"),
            Self::Rate(rate) => {
                write!(f, "rate limit of sources outside: {} packets a second", 1_000_000_000 / rate.packet_ns.max(1))
            }
        }
    }
}

fn port(f: &mut fmt::Formatter<'_>, prefix: &PortMapPrefix, target: &PortMapTarget) -> fmt::Result {
    let (bits, key) = prefix;
    let first = u16::from_be(key.port_be);
    let last = first | ((1u32 << (16 - bits.saturating_sub(PORT_MAP_PREFIX).min(16))) - 1) as u16;
    let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
    let number = u16::from_be(key.proto_be);
    let proto = match number & !PORT_MAP_SOMEWHERE {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    if number & PORT_MAP_SOMEWHERE != 0 {
        return write!(f, "port {ports}/{proto} kept for a published address");
    }
    let host = std::net::SocketAddr::new(key.addr.into(), 0).ip();
    let to = first.wrapping_sub(target.first_port).wrapping_add(target.target_port);
    write!(f, "published port {} {ports}/{proto} to {} {to}", host, IpAddr::from(target.addr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Observed, Published, filter_sources, prefixes, reservations};
    use proptest::prelude::*;

    fn published(text: &str) -> Published {
        let (ipv4, ipv6) = (Some([10, 0, 3, 2].into()), Some("fd00::2".parse().expect("address")));
        Published { mapping: text.parse().expect("mapping"), identity: 7, ipv4, ipv6, direct: false }
    }

    fn ports(mappings: &[&str]) -> Tables {
        let all = mappings.iter().map(|text| published(text));
        let entries = all.flat_map(|p| prefixes(&p).into_iter().chain(reservations(&p)).collect::<Vec<_>>());
        Tables { ports: entries.collect(), ..Tables::default() }
    }

    fn text(ops: &[Op]) -> String {
        ops.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_new_comes_before_what_goes() {
        let (now, wanted) = (ports(&["8080:80"]), ports(&["127.0.0.1:8090-8091:90-91/udp"]));
        let want = "\
published port 127.0.0.1 8090-8091/udp to 10.0.3.2 90 set
port 8090-8091/udp kept for a published address set
published port 0.0.0.0 8080/tcp to 10.0.3.2 80 removed
published port :: 8080/tcp to fd00::2 80 removed";
        let mut lines: Vec<String> = text(&now.port_steps(&wanted)).lines().map(ToOwned::to_owned).collect();
        lines[..2].sort_by_key(|l| l.starts_with("port"));
        lines[2..].sort();
        assert_eq!(lines.join("\n"), want);
        assert_eq!(now.lost_ports(&wanted).len(), 2);
        assert_eq!(now.lost_ports(&now), []);
    }

    #[test]
    fn entries_say_what_they_are_about() {
        let text = r#"{"network": {"pools": {"p": {"subnet": "10.0.3.0/24", "subnet6": "fd00:3::/64"}},
            "uplink_filter": {"deny": ["203.0.113.0/24", "::/0"]}}}"#;
        let device = crate::config::parse_device("device.json", text).expect("valid");
        let filter = device.uplink_filter.expect("a filter");
        let wanted = Tables { dropped: filter_sources(&filter, device.pools.values()), ..Tables::default() };
        let said = super::tests::text(&Tables::default().filter_steps(&wanted));
        let want = "filtered source ::/0 set\nfiltered source fd00:3::/64 set\nfiltered source 10.0.3.0/24 set\n\
                    filtered source 203.0.113.0/24 set";
        assert_eq!(said, want);
    }

    fn tables() -> impl Strategy<Value = Tables> {
        let some = || proptest::collection::btree_map(0u8..6, 1u32..4, 0..6);
        (some(), some(), some(), 0u64..3).prop_map(|(locals, networks, uplinks, packet_ns)| {
            let ip = |n: u8| Ip::from(std::net::Ipv4Addr::new(10, 0, 0, n));
            let info = |mtu| UplinkInfo { mtu, ..UplinkInfo::default() };
            let prefix = |n: u8| (152, FilterSource::new(ip(n)));
            Tables {
                locals: locals.iter().map(|(n, kind)| (ip(*n), *kind)).collect(),
                networks: networks.iter().map(|(n, bridge)| (prefix(*n), *bridge)).collect(),
                sources: locals.keys().map(|n| ((160, SourceKey { link: 2, to: ip(*n) }), ip(1))).collect(),
                uplinks: uplinks.iter().map(|(n, mtu)| (u32::from(*n), info(*mtu))).collect(),
                dropped: uplinks.iter().map(|(n, reason)| (prefix(*n), *reason)).collect(),
                rate: FilterRate { packet_ns, ..FilterRate::default() },
                ports: BTreeMap::new(),
            }
        })
    }

    proptest! {
        /// Any tables can be changed into any others, each step can be done twice and undone, and afterwards there is
        /// nothing left to do.
        #[test]
        fn every_transition_lands(now in tables(), wanted in tables()) {
            let mut holds = Observed { tables: now.clone(), ..Observed::default() };
            let mut ops = now.address_steps(&wanted);
            ops.extend(now.uplink_steps(&wanted));
            ops.extend(now.port_steps(&wanted));
            ops.extend(now.filter_steps(&wanted));
            for op in ops {
                let before = holds.clone();
                holds.apply(&op);
                let once = holds.clone();
                holds.apply(&op);
                prop_assert_eq!(&holds, &once);
                for undo in op.undo(&before) {
                    holds.apply(&undo);
                }
                prop_assert_eq!(&holds, &before);
                holds = once;
            }
            prop_assert_eq!(&holds.tables, &wanted);
        }
    }
}
