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

#[cfg(test)]
mod tests;

pub use compile::{Compiled, PairKey, PolicyError, RuleRef, compile};
pub use default::{Place, Reason, default_verdict};
pub use explain::{Party, SideError, party, port_and_proto, side};

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
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
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
