//! What should exist, and the steps from what is there to that. Pure: the same input gives the same plan.
//!
//! A plan is about the maps, programs and links of containers; what it needs of the kernel is in [`Observed`].

mod desired;
mod firewall;
mod op;
mod own_ports;
mod port_map;
mod source;
mod uplink_filter;
mod uplinks;

pub use desired::{Desired, Endpoint, PoolLink, endpoint};
pub use firewall::{Bridged, DroppingChain, kept_by_firewall, strict_filters};
pub use op::{Observed, ObservedLink, Op, diff, endpoint_ops};
pub use own_ports::{PortSet, nat_range, reserved};
pub use port_map::{Published, prefixes, range_of, reservations};
pub use source::{Candidate, Sources, UplinkSources};
pub use uplink_filter::{filter_rate, filter_sources};
pub use uplinks::{
    LinkState, Unseen, apart, fitting, locals, networks, overlaps, set_down, unfit, uplink_infos, ways_out,
};

#[cfg(test)]
mod tests;
