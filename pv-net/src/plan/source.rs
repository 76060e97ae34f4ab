//! The source address of a masqueraded flow: of the uplink's addresses the one that the kernel would choose. Pure.
//!
//! IPv6 follows RFC 6724 section 5, with the kernel's label table (`addrlabel.c`) and order of rules
//! (`ipv6_get_saddr_eval`). Only the addresses of the uplink are candidates (RFC 6724 section 4), since providers
//! filter foreign sources (BCP 38). IPv4 takes the address in the next hop's network if there is one, else the first
//! primary address (`inet_select_addr`).

use super::SourcePrefix;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use pv_net_common::endpoint::SOURCE_BITS;
use pv_net_common::{Ip, SourceKey};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address that flows may leave with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address, with its network's prefix length.
    pub address: IpNetwork,
    /// Deprecated or optimistic: chosen only when there is no other.
    pub avoided: bool,
    /// A temporary one (RFC 8981).
    pub temporary: bool,
    /// IPv4: it is not the first of its network, or its scope is the link.
    pub secondary: bool,
}

/// What masquerade uses on one uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkSources {
    /// IPv4.
    pub v4: Sources,
    /// IPv6.
    pub v6: Sources,
}

impl UplinkSources {
    /// Chooses among `candidates`, which are in the kernel's order. `prefer_temporary`: the sysctl `use_tempaddr` is 2.
    #[must_use]
    pub fn new(candidates: &[Candidate], prefer_temporary: bool) -> Self {
        Self { v4: sources4(candidates), v6: sources6(candidates, prefer_temporary) }
    }

    /// The entries of the `sources` map for the uplink `link`: destinations for which another address than the usual
    /// one is used.
    pub fn entries(&self, link: u32) -> impl Iterator<Item = (SourcePrefix, Ip)> {
        let entry = move |(net, source): &(IpNetwork, IpAddr)| {
            let outer = SOURCE_BITS - if net.is_ipv4() { 32 } else { 128 };
            ((outer + u32::from(net.prefix()), SourceKey { link, to: net.ip().into() }), Ip::from(*source))
        };
        self.v4.others.iter().chain(&self.v6.others).map(entry)
    }
}

/// Source addresses of one uplink and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// For destinations that are in none of the other networks.
    pub usual: Option<IpAddr>,
    /// For these networks; the longest prefix wins. With IPv4 the network is that of the next hop.
    pub others: Vec<(IpNetwork, IpAddr)>,
}

/// The kernel's table of labels: network, prefix length, label.
const LABELS: [(Ipv6Addr, u8, u8); 8] = [
    (Ipv6Addr::LOCALHOST, 128, 0),
    (Ipv6Addr::UNSPECIFIED, 0, 1),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, 2),
    (Ipv6Addr::UNSPECIFIED, 96, 3),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, 4),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, 5),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, 6),
    (Ipv6Addr::new(0x2001, 0x10, 0, 0, 0, 0, 0, 0), 28, 7),
];

/// Address scopes, numbered as in multicast addresses (RFC 4291 section 2.7). Unique local addresses have global scope
/// (RFC 4193).
const SITE: i32 = 5;
const GLOBAL: i32 = 14;

fn sources4(candidates: &[Candidate]) -> Sources {
    let of_v4 = |c: &Candidate| match c.address {
        IpNetwork::V4(net) => Some(net),
        IpNetwork::V6(_) => None,
    };
    let primary: Vec<Ipv4Network> = candidates.iter().filter(|c| !c.secondary).filter_map(of_v4).collect();
    let usual = primary.first().copied().or_else(|| candidates.iter().find_map(of_v4)).map(|net| net.ip());
    let mut others: Vec<(Ipv4Network, Ipv4Addr)> = Vec::new();
    for net in primary {
        // The first address whose network has the next hop is taken, even if a later one has a longer prefix.
        if !others.iter().any(|(first, _)| first.contains(net.network()) && first.prefix() <= net.prefix()) {
            others.push((net, net.ip()));
        }
    }
    if others.iter().all(|(_, addr)| Some(*addr) == usual) {
        others.clear();
    }
    let network = |net: Ipv4Network| Ipv4Network::new(net.network(), net.prefix()).unwrap_or(net);
    let others = others.into_iter().map(|(net, addr)| (network(net).into(), addr.into())).collect();
    Sources { usual: usual.map(IpAddr::from), others }
}

fn sources6(candidates: &[Candidate], prefer_temporary: bool) -> Sources {
    let usual = choose(candidates, Destination::ANY, prefer_temporary);
    let mut others: Vec<(Destination, Ipv6Addr)> = Vec::new();
    // The choice is the same for all destinations within a network that are in no longer one of these.
    for network in networks(candidates) {
        let Some(source) = choose(candidates, network, prefer_temporary) else { continue };
        let around = others.iter().filter(|(outer, _)| outer.has(network)).max_by_key(|(outer, _)| outer.length);
        if around.map(|(_, source)| *source).or(usual) != Some(source) {
            others.push((network, source));
        }
    }
    let others = others.into_iter().filter_map(|(network, source)| Some((network.network()?, source.into())));
    Sources { usual: usual.map(IpAddr::from), others: others.collect() }
}

/// A network of destinations. Shorter prefixes order before longer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Destination {
    length: u8,
    bits: u128,
}

impl Destination {
    const ANY: Self = Self { length: 0, bits: 0 };

    fn new(addr: Ipv6Addr, length: u8) -> Self {
        let bits = u128::from(addr);
        Self { length, bits: if length == 0 { 0 } else { bits >> (128 - length) << (128 - length) } }
    }

    fn has(self, other: Self) -> bool {
        self.length <= other.length && Self::new(other.bits.into(), self.length) == self
    }

    fn network(self) -> Option<IpNetwork> {
        Ipv6Network::new(self.bits.into(), self.length).ok().map(IpNetwork::V6)
    }
}

/// All networks at whose border the choice may change: those of the labels, and each prefix of a candidate.
fn networks(candidates: &[Candidate]) -> BTreeSet<Destination> {
    let labels = LABELS.iter().map(|(addr, length, _)| Destination::new(*addr, *length));
    let shared = |net: Ipv6Network| (1..=net.prefix()).map(move |length| Destination::new(net.ip(), length));
    labels.chain(of_v6(candidates).flat_map(|(net, _)| shared(net))).collect()
}

fn of_v6(candidates: &[Candidate]) -> impl Iterator<Item = (Ipv6Network, &Candidate)> {
    candidates.iter().filter_map(|c| match c.address {
        IpNetwork::V6(net) => Some((net, c)),
        IpNetwork::V4(_) => None,
    })
}

/// The source for destinations in `to`: the first of the best candidates.
fn choose(candidates: &[Candidate], to: Destination, prefer_temporary: bool) -> Option<Ipv6Addr> {
    let mut best = None;
    for (net, candidate) in of_v6(candidates) {
        let addr = net.ip();
        let scope = match (scope(addr), scope(to.bits.into())) {
            (own, wanted) if own >= wanted => -own,
            (own, _) => own - 128,
        };
        let score = (
            scope,
            !candidate.avoided,
            label(Destination::new(addr, 128)) == label(to),
            candidate.temporary == prefer_temporary,
            shared(addr, to).min(net.prefix()),
        );
        if best.is_none_or(|(other, _)| score > other) {
            best = Some((score, addr));
        }
    }
    best.map(|(_, addr)| addr)
}

fn scope(addr: Ipv6Addr) -> i32 {
    if addr.segments()[0] & 0xffc0 == 0xfec0 { SITE } else { GLOBAL }
}

fn label(of: Destination) -> u8 {
    let found = LABELS.iter().filter(|(net, length, _)| Destination::new(*net, *length).has(of));
    found.max_by_key(|(_, length, _)| *length).map_or(0, |(_, _, label)| *label)
}

/// How many leading bits an address has in common with all destinations in `to`.
fn shared(addr: Ipv6Addr, to: Destination) -> u8 {
    let common = (u128::from(addr) ^ to.bits).leading_zeros();
    u8::try_from(common).unwrap_or(128).min(to.length)
}

#[cfg(test)]
mod tests;
