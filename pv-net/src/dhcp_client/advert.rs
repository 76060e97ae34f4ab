//! What a client reads of router advertisements (RFC 4861 section 4.2, RFC 8106).

use super::domain;
use std::net::Ipv6Addr;

/// Octets before the options, without type, code and checksum.
const HEAD: usize = 12;
/// Options of one advertisement that are looked at.
const MOST_OPTIONS: usize = 64;
/// Prefixes and name servers that are kept.
const MOST_PREFIXES: usize = 16;
const MOST_SERVERS: usize = 3;

/// An advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Advert {
    /// How long the router is a gateway, seconds; 0: it is none.
    pub router_secs: u16,
    /// Addresses are to be had by DHCPv6.
    pub is_managed: bool,
    pub prefixes: Vec<Prefix>,
    pub dns: Vec<Ipv6Addr>,
    pub search: Vec<String>,
}

/// A network of which hosts make addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub net: Ipv6Addr,
    pub is_on_link: bool,
    /// Seconds; `u32::MAX` is for ever.
    pub valid_secs: u32,
    pub preferred_secs: u32,
}

/// Reads an advertisement without its first four octets; `None` when it is not valid (RFC 4861 section 6.1.2).
pub(super) fn read(body: &[u8]) -> Option<Advert> {
    let (head, mut options) = body.split_at_checked(HEAD)?;
    let mut advert = Advert {
        router_secs: u16::from_be_bytes([head[2], head[3]]),
        is_managed: head[1] & 0x80 != 0,
        ..Advert::default()
    };
    for _ in 0..MOST_OPTIONS {
        let Some((kind, units)) = options.first().zip(options.get(1)) else { break };
        let (option, rest) = options.split_at_checked(usize::from(*units) * 8)?;
        if option.is_empty() {
            return None;
        }
        match kind {
            3 => advert.prefixes.extend(prefix(option).filter(|_| advert.prefixes.len() < MOST_PREFIXES)),
            25 if lasts(option) => {
                let (all, _) = option.get(8..).unwrap_or_default().as_chunks::<16>();
                let all = all.iter().map(|octets| Ipv6Addr::from(*octets)).filter(|a| is_usable(*a));
                advert.dns.extend(all.take(MOST_SERVERS.saturating_sub(advert.dns.len())));
            }
            31 if lasts(option) => advert.search.extend(domain::list(option.get(8..).unwrap_or_default(), false)),
            _ => {}
        }
        options = rest;
    }
    advert.search.truncate(MOST_PREFIXES);
    Some(advert)
}

/// Whether the lifetime of an option for DNS is not over.
fn lasts(option: &[u8]) -> bool {
    option.get(4..8).is_some_and(|secs| secs != [0; 4])
}

/// Whether a host can have the address: a unicast one that is known beyond the link.
pub(super) fn is_usable(address: Ipv6Addr) -> bool {
    // Global unicast, and unique local.
    matches!(address.octets()[0] >> 5, 0b001) || address.octets()[0] & 0xfe == 0xfc
}

/// The network of a prefix option, if hosts are to make addresses of it (RFC 4862 section 5.5.3).
fn prefix(option: &[u8]) -> Option<Prefix> {
    let option: &[u8; 32] = option.try_into().ok()?;
    let word = |at: usize| u32::from_be_bytes([option[at], option[at + 1], option[at + 2], option[at + 3]]);
    let (bits, flags) = (option[2], option[3]);
    let (valid_secs, preferred_secs) = (word(4), word(8));
    let octets: [u8; 16] = std::array::from_fn(|i| if i < 8 { option[16 + i] } else { 0 });
    let net = Ipv6Addr::from(octets);
    // The identifiers of interfaces have 64 bits (RFC 4291 section 2.5.1).
    let is_for_hosts = bits == 64 && flags & 0x40 != 0 && preferred_secs <= valid_secs && is_usable(net);
    is_for_hosts.then_some(Prefix { net, is_on_link: flags & 0x80 != 0, valid_secs, preferred_secs })
}
