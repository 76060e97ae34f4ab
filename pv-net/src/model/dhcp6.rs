//! DHCPv6 of a pool.

use std::net::Ipv6Addr;

/// DHCPv6 of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDhcp6 {
    /// Addresses for hosts that are no containers, first and last. Containers never get one of these.
    pub range: Option<(Ipv6Addr, Ipv6Addr)>,
    /// Addresses of the range that clients behind one port of the bridge may have at once.
    pub leases_per_port: u32,
    /// How long an address is leased for, in seconds.
    pub lease_secs: u32,
    /// Time servers that clients are told of.
    pub ntp: Vec<Ipv6Addr>,
}
