//! The cases, one a file.

mod attach;
mod dhcp;
mod dns;
mod east_west;
mod flow_table;
mod ipv6;
mod lxc;
mod masquerade;
mod policy;
mod programs;
mod published;
mod published_local;
mod scale;
mod start;

use crate::case::Case;

/// All of them, in the order in which they run.
pub fn all() -> Vec<Box<dyn Case>> {
    vec![
        Box::new(east_west::EastWest),
        Box::new(published::Published),
        Box::new(published_local::PublishedLocal),
        Box::new(masquerade::Masquerade),
        Box::new(ipv6::OverIpv6),
        Box::new(policy::Policy),
        Box::new(scale::Scale),
        Box::new(flow_table::FlowTable),
        Box::new(attach::Attach),
        Box::new(lxc::Lxc),
        Box::new(start::Start),
        Box::new(dhcp::Dhcp),
        Box::new(dns::Dns),
        Box::new(dns::DnsByTcp),
        Box::new(programs::Programs),
    ]
}
