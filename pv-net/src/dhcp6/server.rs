//! What a server knows of its pool.

use crate::model::{PoolDhcp6, PoolName};
use ipnetwork::Ipv6Network;
use std::net::Ipv6Addr;

/// What a pool's server knows.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// Its identity.
    pub duid: &'a [u8],
    /// The pool.
    pub pool: &'a PoolName,
    /// The pool's network.
    pub net: Ipv6Network,
    /// The settings.
    pub settings: &'a PoolDhcp6,
    /// The DNS server.
    pub dns: Option<Ipv6Addr>,
    /// The search domain.
    pub domain: &'a str,
    /// `Some` if the sender is a container: the IPv6 address of its lease, if it has one.
    pub container: Option<Option<Ipv6Addr>>,
}

/// The message is not answered: it is not for this server, or a lease of its client is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored;
