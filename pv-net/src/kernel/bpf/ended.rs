//! The ends of flows that are over, for those who may have to be told.

use pv_net_common::flow::{FLOW_NEIGHBOUR, FLOW_STACK, FLOW_UPLINK};
use pv_net_common::{FlowEntry, FlowKey};
use std::net::SocketAddr;

/// The end of a flow that is in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The container's host-side link.
    pub link: u32,
    /// IP protocol number.
    pub proto: u32,
    /// The flow's other end, as the container sees it.
    pub peer: SocketAddr,
    /// The container's end.
    pub own: SocketAddr,
    /// Source MAC of what the container gets.
    pub gateway_mac: [u8; 6],
    /// The container's MAC.
    pub mac: [u8; 6],
}

impl Ended {
    /// The end that the direction leads to; none when it leads outside or to the stack.
    pub(super) fn inside(key: &FlowKey, entry: &FlowEntry) -> Option<Self> {
        let there = entry.flags & (FLOW_NEIGHBOUR | FLOW_UPLINK | FLOW_STACK) == 0 && entry.ifindex != 0;
        there.then(|| Self {
            link: entry.ifindex,
            proto: key.proto,
            peer: SocketAddr::new(entry.src.into(), u16::from_be(entry.sport_be)),
            own: SocketAddr::new(entry.dst.into(), u16::from_be(entry.dport_be)),
            gateway_mac: entry.src_mac,
            mac: entry.dst_mac,
        })
    }
}
