//! The containers' ends of flows that were ended, so that the containers can be told.

use pv_net_common::flow::{FLOW_NEIGHBOUR, FLOW_STACK, FLOW_UPLINK};
use pv_net_common::{FlowEntry, FlowKey};
use std::net::SocketAddr;

/// One end of an ended flow, which is in a container.
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
    /// MAC of the pool's bridge: the source of frames to the container.
    pub gateway_mac: [u8; 6],
    /// The container's MAC.
    pub mac: [u8; 6],
}

impl Ended {
    /// The end to which this direction of the flow leads; `None` when that is outside or the host's stack.
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
