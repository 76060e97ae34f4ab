//! What the network of a parent gives to an interface: an address of each family that it has, for a time.

use super::Mac;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address, and what is needed to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given<A> {
    /// The address.
    pub address: A,
    /// Length of the prefix that is on the link.
    pub prefix: u8,
    /// The router, if there is one.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<A>,
    /// Name servers.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<A>,
    /// Domains in which names are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

#[cfg(test)]
impl<A> Given<A> {
    /// An address and perhaps a gateway, without names.
    pub(crate) const fn bare(address: A, prefix: u8, gateway: Option<A>) -> Self {
        Self { address, prefix, gateway, dns: Vec::new(), search: Vec::new() }
    }
}

const fn none<A>() -> Option<A> {
    None
}

/// What an interface has at present, without times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Given<Ipv4Addr>>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Given<Ipv6Addr>>,
}

/// A lease of a DHCPv4 server. Times are in seconds since 1970 (UTC); `u64::MAX` is never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms4 {
    /// The address.
    pub given: Given<Ipv4Addr>,
    /// The server's identifier.
    pub server: Ipv4Addr,
    /// The MAC that its answers come from: its own, or that of the router that passes them on.
    pub server_mac: Mac,
    /// When the server is asked to go on (T1).
    pub renew: u64,
    /// When any server is asked (T2).
    pub rebind: u64,
    /// When it ends.
    pub expires: u64,
}

/// An address that was made of an advertised prefix (SLAAC, RFC 4862). Times as in [`Terms4`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms6 {
    /// The address.
    pub given: Given<Ipv6Addr>,
    /// The router that has advertised the prefix.
    pub router: Ipv6Addr,
    /// When that router is no gateway any more.
    pub routes_until: u64,
    /// When the address ends.
    pub expires: u64,
    /// How many addresses of the prefix somebody else had.
    #[serde(default)]
    pub conflicts: u8,
}

/// What a network has given, each family by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Terms4>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Terms6>,
}

impl Terms {
    /// Whether it has no address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// The same without times.
    #[must_use]
    pub fn network(&self) -> Network {
        Network { v4: self.v4.as_ref().map(|t| t.given.clone()), v6: self.v6.as_ref().map(|t| t.given.clone()) }
    }

    /// When the first address ends, in seconds since 1970 (UTC); `None` when none does.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        let all = [self.v4.as_ref().map(|t| t.expires), self.v6.as_ref().map(|t| t.expires)];
        all.into_iter().flatten().filter(|end| *end != u64::MAX).min()
    }
}

impl Network {
    /// The name servers, IPv4 first.
    pub fn dns(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4.iter().flat_map(|g| g.dns.iter().map(|a| IpAddr::V4(*a)));
        v4.chain(self.v6.iter().flat_map(|g| g.dns.iter().map(|a| IpAddr::V6(*a))))
    }

    /// The search domains, each once.
    #[must_use]
    pub fn search(&self) -> Vec<&str> {
        let v4 = self.v4.iter().flat_map(|given| &given.search);
        let mut all: Vec<&str> = Vec::new();
        for domain in v4.chain(self.v6.iter().flat_map(|given| &given.search)) {
            if !all.contains(&domain.as_str()) {
                all.push(domain);
            }
        }
        all
    }
}

/// Who asks a network for addresses: an interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its MAC, by which servers know it.
    pub mac: Mac,
    /// The name that it gives itself.
    pub hostname: String,
}
