//! The policy compiler: takes the rules and the device's present state, and makes the contents of the policy maps.
//! Pure.
//!
//! The maps know nothing about selectors. All to whom the same rules can apply are in one class. For each pair of
//! classes to which a rule applies there are verdicts by protocol and port. Where no rule applies, the pools' settings
//! decide: [`default_verdict`].

mod classes;
mod compile;
mod confined;
mod default;
mod evaluate;
mod explain;
mod ports;
mod topology;

#[cfg(test)]
mod tests;

pub use compile::{Compiled, PairKey, PolicyError, RuleRef, Source, compile};
pub use confined::name_servers;
pub use default::{Place, Reason, default_verdict};
pub use evaluate::Evaluator;
pub use explain::{Party, SideError, is_link_local, party, port_and_proto, side};
pub use topology::{host_addresses, member};

use crate::model::{ContainerName, PoolName, Sockets};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A container as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: ContainerName,
    /// Its number in the maps, never zero.
    pub identity: u32,
    /// The pools that it has interfaces in.
    pub pools: BTreeSet<PoolName>,
    /// All of its addresses, including link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Its link-local addresses, each with the other address of its interface. A network selector that contains that
    /// address also matches the link-local one; otherwise a rule about a network could be evaded.
    pub link_local: Vec<LinkLocal>,
    /// The only sockets that it may have; any where this is none.
    pub sockets: Option<Arc<Sockets>>,
    /// Name servers that the networks of its pools' parents have given it.
    pub name_servers: Vec<IpAddr>,
}

/// A link-local address of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLocal {
    /// The address.
    pub addr: IpAddr,
    /// The interface's other address, IPv6 if it has one.
    pub beside: IpAddr,
    /// The pool in which it is valid.
    pub pool: PoolName,
}

/// The device's present state, as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Attached containers; no two share an identity.
    pub containers: Vec<Member>,
    /// The networks of all pools.
    pub networks: Vec<IpNetwork>,
    /// The device's own addresses.
    pub host: Vec<IpAddr>,
    /// The name servers of each pool's containers.
    pub name_servers: BTreeMap<PoolName, Vec<IpAddr>>,
}
