//! What should exist, and the steps from what is there to that. Pure: the same input gives the same plan.
//!
//! A plan is about the maps, programs and links of containers; what it needs of the kernel is in [`Observed`].

mod desired;
mod diff;
mod firewall;
mod observed;
mod op;
mod own_ports;
mod port_map;
mod source;
mod uplink_filter;
mod uplinks;

pub use desired::{Desired, Endpoint, PoolLink, addresses, endpoint, misplaced};
pub use diff::{diff, endpoint_ops, forget};
pub use firewall::{Bridged, DroppingChain, kept_by_firewall, strict_filters};
pub use observed::{Link, Observed};
pub use op::Op;
pub use own_ports::{PortSet, nat_range, reserved};
pub use port_map::{Published, prefixes, range_of, reservations};
pub use source::{Candidate, Sources, UplinkSources};
pub use uplink_filter::{filter_rate, filter_sources};
pub use uplinks::{
    LinkState, Unseen, apart, fitting, locals, networks, overlaps, set_down, unfit, uplink_infos, ways_out,
};

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
