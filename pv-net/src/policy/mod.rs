//! Policy: rules and the device as it is in, contents of the maps out. Pure.
//!
//! The maps know nothing of selectors. Everybody to whom the same rules can apply is one class, and for each pair of
//! classes of which a rule says something there is a verdict by protocol and port. What no rule is about is decided by
//! the pools' settings: [`default_verdict`].

mod classes;
mod compile;
mod default;
mod evaluate;
mod explain;
mod ports;
mod topology;

#[cfg(test)]
mod tests;

pub use compile::{Compiled, PairKey, PolicyError, RuleRef, compile};
pub use default::{Place, Reason, default_verdict};
pub use explain::{Party, SideError, is_link_local, party, port_and_proto, side};
pub use topology::{host_addresses, member};

use crate::model::{ContainerName, PoolName};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A container as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: ContainerName,
    /// Its number in the maps, never zero.
    pub identity: u32,
    /// The pools that it has interfaces in.
    pub pools: BTreeSet<PoolName>,
    /// Its own addresses, the link-local ones too.
    pub addresses: Vec<IpAddr>,
    /// Its link-local addresses, each with the address that its interface has beside it: networks that hold the one hold
    /// the other, or a rule about a network could be walked round.
    pub link_local: Vec<LinkLocal>,
}

/// A link-local address of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLocal {
    /// The address.
    pub addr: IpAddr,
    /// The interface's own, IPv6 where it has one.
    pub beside: IpAddr,
    /// Where it is valid.
    pub pool: PoolName,
}

/// The device as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Attached containers; no two share an identity.
    pub containers: Vec<Member>,
    /// The networks of all pools.
    pub networks: Vec<IpNetwork>,
    /// The device's own addresses.
    pub host: Vec<IpAddr>,
}
