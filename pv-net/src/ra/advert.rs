//! The contents of an advertisement, and their encoding.

use crate::dns::name;
use crate::model::{Mac, Pool, RaMode, RouterPreference};
use crate::snapshot::Snapshot;
use etherparse::icmpv6::{PrefixInformation, RouterAdvertisementHeader};
use ipnetwork::Ipv6Network;
use std::net::Ipv6Addr;

/// ICMPv6 type of an advertisement (RFC 4861 section 4.2).
pub const ADVERTISEMENT: u8 = 134;
/// Valid lifetime of the prefix, seconds. RFC 9096 section 3.4 has these short ones, so that hosts soon stop using a
/// prefix that the device does not have any more.
pub const VALID_SECS: u32 = 5400;
/// Preferred lifetime of the prefix, seconds.
pub const PREFERRED_SECS: u32 = 2700;
/// Hop limit for packets that hosts send (RFC 1700).
const HOPS: u8 = 64;

/// Options of RFC 4861 section 4.6, RFC 4191 section 2.3, RFC 8106 section 5.
mod option {
    pub const SOURCE: u8 = 1;
    pub const MTU: u8 = 5;
    pub const ROUTE: u8 = 24;
    pub const SERVERS: u8 = 25;
    pub const SEARCH: u8 = 31;
}

/// A network on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The network.
    pub net: Ipv6Network,
    /// How long new connections may use addresses of it, seconds.
    pub preferred_secs: u32,
    /// How long addresses of it may be used at all, seconds.
    pub valid_secs: u32,
}

/// The contents of an advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// How hosts get their addresses.
    pub mode: RaMode,
    /// How long the device is a default router, seconds; 0: it is none.
    pub router_secs: u16,
    /// Lifetime of routes and of the DNS server, seconds; 0: they end now.
    pub option_secs: u32,
    /// How hosts rank the device among several routers.
    pub preference: RouterPreference,
    /// The bridge's MAC.
    pub mac: Mac,
    /// The largest packet on the link, in bytes.
    pub mtu_bytes: u32,
    /// The pool's network, and networks that it had before.
    pub prefixes: Vec<Prefix>,
    /// Other networks that hosts reach through the device.
    pub routes: Vec<Ipv6Network>,
    /// The DNS server.
    pub server: Option<Ipv6Addr>,
    /// The search domain.
    pub domain: String,
}

impl Advert {
    /// What `pool` advertises now; `None` if its configuration does not ask for that, or if it has no bridge. While no
    /// uplink leads on over IPv6, the device is no default router (RFC 7084, L-4).
    #[must_use]
    pub fn of(snapshot: &Snapshot, pool: &Pool) -> Option<Self> {
        let (ra, subnet) = (pool.ra.as_ref()?, pool.v6.as_ref()?);
        let link = snapshot.pools.get(&pool.name)?.link.as_ref()?;
        Some(Self {
            mode: ra.mode,
            router_secs: if snapshot.has_way_out6 { ra.lifetime_secs } else { 0 },
            option_secs: ra.lifetime_secs.into(),
            preference: ra.preference,
            mac: link.mac,
            mtu_bytes: link.mtu,
            prefixes: vec![Prefix { net: subnet.net, preferred_secs: PREFERRED_SECS, valid_secs: VALID_SECS }],
            routes: ra.routes.clone(),
            server: pool.dns.as_ref().map(|_| subnet.gateway),
            domain: snapshot.device.domain.clone(),
        })
    }

    /// The last advertisement before the service stops (RFC 4861 section 6.2.5). It withdraws the default router, the
    /// routes and the DNS server. The prefix stays, so hosts keep their addresses.
    #[must_use]
    pub fn last(self) -> Self {
        Self { router_secs: 0, option_secs: 0, ..self }
    }

    /// The last advertisement of a pool that does not advertise any more: [`last`](Self::last), and the prefix is
    /// deprecated.
    #[must_use]
    pub fn withdrawn(self) -> Self {
        let old = |p: &Prefix| Prefix { preferred_secs: 0, ..*p };
        Self { prefixes: self.prefixes.iter().map(old).collect(), ..self.last() }
    }

    /// The ICMPv6 message. Its checksum is left to the kernel (RFC 3542 section 3.1).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = RouterAdvertisementHeader {
            cur_hop_limit: HOPS,
            managed_address_config: self.mode.is_managed(),
            other_config: self.mode.has_other(),
            router_lifetime: self.router_secs,
        };
        let mut head = header.to_bytes();
        // The preference of what is no default router must be zero (RFC 4191 section 2.2).
        head[1] |= if self.router_secs == 0 { 0 } else { preference(self.preference) };
        let mut out = vec![ADVERTISEMENT, 0, 0, 0];
        out.extend(head);
        // Reachable time and retransmission timer: unspecified, so hosts use their own.
        out.extend([0; 8]);
        out.extend([option::SOURCE, 1]);
        out.extend(self.mac.0);
        out.extend([option::MTU, 1, 0, 0]);
        out.extend(self.mtu_bytes.to_be_bytes());
        self.prefixes.iter().for_each(|p| out.extend(self.prefix(p).to_bytes()));
        self.routes.iter().for_each(|r| self.route(r, &mut out));
        if let Some(server) = self.server {
            out.extend([option::SERVERS, 3, 0, 0]);
            out.extend(self.option_secs.to_be_bytes());
            out.extend(server.octets());
            self.search(&mut out);
        }
        out
    }

    fn prefix(&self, of: &Prefix) -> PrefixInformation {
        PrefixInformation {
            prefix_length: of.net.prefix(),
            on_link: true,
            autonomous_address_configuration: self.mode.is_autonomous(),
            valid_lifetime: of.valid_secs,
            preferred_lifetime: of.preferred_secs.min(of.valid_secs),
            prefix: of.net.network().octets(),
        }
    }

    /// A route information option (RFC 4191 section 2.3). It has as much of the prefix as its length needs.
    fn route(&self, route: &Ipv6Network, out: &mut Vec<u8>) {
        let units = route.prefix().div_ceil(64);
        out.extend([option::ROUTE, 1 + units, route.prefix(), preference(self.preference)]);
        out.extend(self.option_secs.to_be_bytes());
        out.extend(&route.network().octets()[..usize::from(units) * 8]);
    }

    /// A DNS search list option (RFC 8106 section 5.2). The configuration has checked that the domain is one.
    fn search(&self, out: &mut Vec<u8>) {
        let Some(domain) = name::from_text(&self.domain) else { return };
        // At most 255 bytes and the eight before them.
        let units = u8::try_from((8 + name::wire_len(&domain)).div_ceil(8)).unwrap_or(u8::MAX);
        let end = out.len() + usize::from(units) * 8;
        out.extend([option::SEARCH, units, 0, 0]);
        out.extend(self.option_secs.to_be_bytes());
        for label in domain.iter() {
            // `from_text` gives labels of at most 63 bytes.
            out.push(label.len() as u8);
            out.extend(label);
        }
        // The root's empty label, and the padding.
        out.resize(end, 0);
    }
}

/// The two bits of RFC 4191 section 2.1, which are at the same place in the header and in a route.
const fn preference(of: RouterPreference) -> u8 {
    match of {
        RouterPreference::Low => 0b11 << 3,
        RouterPreference::Medium => 0,
        RouterPreference::High => 0b01 << 3,
    }
}
