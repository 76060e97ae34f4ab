//! The flow table: one entry a direction holds the whole decision for a packet of a known flow.

use crate::Ip;

/// A packet's 5-tuple as seen at a hook, and the link it was seen on.
///
/// ICMP and ICMPv6 echo carry their identifier in both ports; protocols without ports have zero in both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port, network byte order.
    pub sport_be: u16,
    /// Destination port, network byte order.
    pub dport_be: u16,
    /// Link that the packet came in on.
    pub ifindex: u32,
    /// IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 44);

impl FlowKey {
    /// The key of the replies, that come in on link `ifindex`. Twice is the same again.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self, ifindex: u32) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport_be: self.dport_be,
            dport_be: self.sport_be,
            ifindex,
            proto: self.proto,
        }
    }
}

/// The packet is routed: MACs are rewritten and TTL or hop limit decreases.
pub const FLOW_ROUTED: u8 = 1;
/// This entry is for the replies.
pub const FLOW_REPLY: u8 = 2;

/// TCP: this direction has sent a FIN.
pub const TCP_FIN_SEEN: u8 = 1;

/// What to do with a packet of a known flow, and what was seen of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// Packets forwarded by this entry.
    pub packets: u64,
    /// Bytes of these, with the Ethernet header.
    pub bytes: u64,
    /// Ticks (`bpf_jiffies64`) at the last packet.
    pub last_used: u64,
    /// Link to hand the packet to.
    pub ifindex: u32,
    /// Policy generation that decided.
    pub epoch: u32,
    /// Source MAC that the sender must use.
    pub from_mac: [u8; 6],
    /// Source MAC to write when [`FLOW_ROUTED`].
    pub src_mac: [u8; 6],
    /// Destination MAC to write when [`FLOW_ROUTED`].
    pub dst_mac: [u8; 6],
    /// [`FLOW_ROUTED`], [`FLOW_REPLY`].
    pub flags: u8,
    /// [`TCP_FIN_SEEN`].
    pub tcp: u8,
    /// Largest IP packet that the target takes, bytes.
    pub mtu: u32,
}

const _: () = assert!(size_of::<FlowEntry>() == 56);

/// A flow that is opening (no reply yet) or closing: one entry a flow, keyed by its replies, so that half of one
/// cannot be evicted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransientFlow {
    /// Entry for the direction that opened the flow.
    pub forward: FlowEntry,
    /// Entry for the replies.
    pub reply: FlowEntry,
    /// Link that the flow's first packet came in on.
    pub origin_ifindex: u32,
    /// [`FLOW_OPENING`] or [`FLOW_CLOSING`].
    pub phase: u32,
}

const _: () = assert!(size_of::<TransientFlow>() == 120);

/// No reply seen yet.
pub const FLOW_OPENING: u32 = 0;
/// Both sides have sent FIN, or one RST: it is not entered into the flow table again.
pub const FLOW_CLOSING: u32 = 1;

/// Default number of entries of the flow table (two a flow).
pub const DEFAULT_FLOWS: u32 = 16_384;
/// Default number of entries of the transient table.
pub const DEFAULT_TRANSIENT: u32 = 8_192;
/// Endpoints (addresses) that a device can have.
pub const MAX_ENDPOINTS: u32 = 8_192;
/// Bytes of the ring buffer for events.
pub const EVENT_BYTES: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::FlowKey;
    use crate::Ip;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reversed_twice_is_the_same(s in any::<[u8; 16]>(), d in any::<[u8; 16]>(), sp: u16, dp: u16, a: u32, b: u32) {
            let key = FlowKey {
                src: Ip::from_octets(s), dst: Ip::from_octets(d), sport_be: sp, dport_be: dp, ifindex: a, proto: 6,
            };
            prop_assert_eq!(key.reversed(b).reversed(a), key);
        }
    }
}
