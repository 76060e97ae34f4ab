//! What should exist, and the steps from what is there to that. Pure: the same input gives the same plan.
//!
//! A plan is about the maps, programs and links of containers; what it needs of the kernel is in [`Observed`].

mod desired;
mod firewall;
mod op;
mod outside;
mod own_ports;
mod services;
mod source;
mod uplink_filter;

pub use desired::{Desired, Endpoint, PoolLink, endpoint};
pub use firewall::{Bridged, DroppingChain, kept_by_firewall, strict_filters};
pub use op::{Observed, ObservedLink, Op, diff, endpoint_ops};
pub use outside::{
    LinkState, Unseen, apart, fitting, locals, networks, overlaps, set_down, unfit, uplink_infos, ways_out,
};
pub use own_ports::{PortSet, nat_range, reserved};
pub use services::{Published, prefixes, range_of, reservations};
pub use source::{Candidate, Sources, UplinkSources};
pub use uplink_filter::{filter_rate, filter_sources};

#[cfg(test)]
mod tests;
