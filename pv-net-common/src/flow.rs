//! The flow table: each direction of a known flow has one entry that holds the whole decision for its packets.

use crate::{Ip, LinkId};

/// A packet's 5-tuple as seen at a hook, and the link it was seen on.
///
/// ICMP and ICMPv6 echo carry their identifier in both ports; protocols without ports have zero in both. What comes
/// from outside has link 0, whatever uplink it came in on: the device's addresses are its own on all of them.
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
    pub link: LinkId,
    /// IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 44);

impl FlowKey {
    /// The key of the replies, which come in on `link`. Reversed twice, a key is the same again.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self, link: LinkId) -> Self {
        Self { src: self.dst, dst: self.src, sport_be: self.dport_be, dport_be: self.sport_be, link, proto: self.proto }
    }
}

/// The packet is routed: TTL or hop limit decreases.
pub const FLOW_ROUTED: u8 = 1;
/// This entry is for the replies.
pub const FLOW_REPLY: u8 = 2;
/// Addresses or ports are rewritten.
pub const FLOW_NAT: u8 = 4;
/// The packet leaves by an uplink, to a neighbour that the kernel resolves (`bpf_redirect_neigh`).
pub const FLOW_NEIGHBOUR: u8 = 8;
/// The packet leaves by an uplink, to the MAC in the entry: that of the host that the flow came from.
pub const FLOW_UPLINK: u8 = 16;
/// The packet is for the host's stack.
pub const FLOW_STACK: u8 = 32;

/// With [`FLOW_STACK`]: it ends at the device itself, whatever address that has.
pub const FLOW_DEVICE: u8 = 64;

/// TCP: this direction has sent a FIN.
pub const TCP_FIN_SEEN: u8 = 1;
/// TCP: both directions have sent a FIN; only the last acknowledgement is missing.
pub const TCP_LAST_ACK: u8 = 2;
/// TCP: a reset was seen. Only its receiver can tell whether it is valid, since only the receiver knows its window (RFC
/// 5961 section 3.2). A later segment of either side shows that the connection lives, and clears this flag.
pub const TCP_RST_SEEN: u8 = 4;

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
    /// Source address of the packet when it leaves.
    pub src: Ip,
    /// Destination address of the packet when it leaves.
    pub dst: Ip,
    /// Next hop, with [`FLOW_NEIGHBOUR`].
    pub next_hop: Ip,
    /// Source port of the packet when it leaves, network byte order.
    pub sport_be: u16,
    /// Destination port of the packet when it leaves, network byte order.
    pub dport_be: u16,
    /// What the new addresses change in a checksum (RFC 1624), with [`FLOW_NAT`].
    pub addr_diff: u32,
    /// What the new ports change in a checksum, with [`FLOW_NAT`]; 0 when they are the old ones.
    pub port_diff: u32,
    /// Index of the link to hand the packet to.
    pub ifindex: u32,
    /// Link of the key of the opposite direction.
    pub reply_link: LinkId,
    /// Epoch in which it was decided.
    pub epoch: u32,
    /// Largest IP packet that the target takes, bytes.
    pub mtu: u32,
    /// Source MAC that the sender must use.
    pub from_mac: [u8; 6],
    /// Source MAC to write when routed.
    pub src_mac: [u8; 6],
    /// Destination MAC to write when routed.
    pub dst_mac: [u8; 6],
    /// [`FLOW_ROUTED`] and the other `FLOW_` flags.
    pub flags: u8,
    /// [`TCP_FIN_SEEN`] and the other `TCP_` flags.
    pub tcp: u8,
}

const _: () = assert!(size_of::<FlowEntry>() == 120);

impl FlowEntry {
    /// The key of the opposite direction's packets, for a flow of protocol `proto`.
    #[inline(always)]
    #[must_use]
    pub const fn opposite_key(&self, proto: u32) -> FlowKey {
        FlowKey {
            src: self.dst,
            dst: self.src,
            sport_be: self.dport_be,
            dport_be: self.sport_be,
            link: self.reply_link,
            proto,
        }
    }
}

/// A flow that is opening (no reply yet) or closing: one entry a flow, keyed by its replies, so that half of one
/// cannot be evicted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HalfOpenFlow {
    /// Entry for the direction that opened the flow.
    pub forward: FlowEntry,
    /// Entry for the replies.
    pub reply: FlowEntry,
    /// Key of the direction that opened the flow: it tells who has the NAT port of this entry.
    pub origin: FlowKey,
    /// [`FLOW_OPENING`] or [`FLOW_CLOSING`].
    pub phase: u32,
}

const _: () = assert!(size_of::<HalfOpenFlow>() == 288);

/// The host-side link of the container that a flow counts for: the container that opened it, or for a flow from outside
/// the one that serves it. `reply` is the key of the flow's replies.
#[inline(always)]
#[must_use]
pub const fn quota_link(forward: &FlowKey, reply: &FlowKey) -> LinkId {
    if forward.link.is_outside() { reply.link } else { forward.link }
}

/// The epoch of a refused flow. It is never the current epoch, so the policy is asked again for each packet.
pub const FLOW_REFUSED: u32 = 0;

/// Lanes of a [`FlowCount`], a power of two.
pub const FLOW_LANES: usize = 32;

/// The number of flows of one container in the flow table, as the programs count them. Each CPU has its own lane: the
/// BPF target has no atomic addition, and plain additions of two CPUs to one number would lose some. The daemon counts
/// the flows that it removes in another map ([`FlowLimit`]), so that neither side overwrites the other's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Flows entered minus flows removed, modulo 2^64: a flow may be entered on one CPU and removed on another, so a
    /// single lane means nothing.
    pub lanes: [u64; FLOW_LANES],
    /// Token bucket of packets to neighbours that are not known yet, as [`crate::FilterRate`] has them.
    pub neighbours: u64,
    /// Token bucket of memberships that are reported (IGMP, MLD).
    pub reports: u64,
}

const _: () = assert!(size_of::<FlowCount>() == 272 && FLOW_LANES.is_power_of_two());

impl FlowCount {
    /// The number of flows in the table, given that the daemon has removed `freed`.
    #[inline(always)]
    #[must_use]
    pub fn live(&self, freed: u64) -> i64 {
        let mut sum = 0u64.wrapping_sub(freed);
        let mut i = 0;
        while i < FLOW_LANES {
            sum = sum.wrapping_add(self.lanes[i]);
            i += 1;
        }
        sum as i64
    }
}

/// The daemon's side of a container's flow count, beside its [`FlowCount`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowLimit {
    /// Flows that the daemon removed from the table, modulo 2^64.
    pub freed: u64,
    /// Flows that the container may have there; 0 is no limit.
    pub most: u64,
}

/// No reply seen yet.
pub const FLOW_OPENING: u32 = 0;
/// Both sides have sent a FIN, or the container has sent a reset. The flow does not return to the flow table, except
/// that a segment after a reset shows that the connection lives.
pub const FLOW_CLOSING: u32 = 1;

/// Default number of entries of the flow table (two a flow).
pub const DEFAULT_FLOWS: u32 = 16_384;
/// The default for a container's most flows is the size of the flow table divided by this.
pub const DEFAULT_SHARE: u32 = 4;
/// Default number of entries of the half-open table.
pub const DEFAULT_HALF_OPEN: u32 = 8_192;
/// An opener's share of the half-open table is its size divided by this.
pub const HALF_OPEN_SHARES: u32 = 4;
/// Entries of the `claim_turns` map, a power of two. Openers whose links share an entry still have rings of their own.
pub const CLAIM_TURN_SLOTS: u32 = 1024;

/// Key of the `claims` map: a place in an opener's ring. The value is the key of that opener's entry in the half-open
/// table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimSlot {
    /// Link of the container that opens flows; 0 for the outside, the two largest numbers for the device and for
    /// strangers.
    pub ring: u32,
    /// CPU in the upper half, and the place in its part of the ring.
    pub place: u32,
}

const _: () = assert!(size_of::<ClaimSlot>() == 8);

/// Endpoints (addresses) that a device can have.
pub const MAX_ENDPOINTS: u32 = 8_192;
/// Links of containers that a device can have, each with two addresses as a rule.
pub const MAX_LINKS: u32 = MAX_ENDPOINTS / 2;
/// Bytes of the ring buffer for events.
pub const EVENT_BYTES: u32 = 64 * 1024;

/// Key of the `fragments` map: one of the places that a link and direction have for fragmented packets. A packet that
/// needs a place which is taken evicts a packet of its own link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Link that the fragments come in on, or go out by.
    pub link: u32,
    /// 0 at ingress. At egress 1 more than the lower bits of the index of the link that the fragments came in by.
    pub leaves: u16,
    /// The place, by a hash of addresses and identification.
    pub slot: u16,
}

const _: () = assert!(size_of::<FragmentKey>() == 8);

/// Value of the `fragments` map: a fragmented packet whose first fragment passed (RFC 791, RFC 8200 section 4.5), with
/// the ports that only the first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentInfo {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification, as it stands in the packet.
    pub id_be: u32,
    /// The upper layer's protocol.
    pub proto: u32,
    /// Link that the packet came in on; 0 when the device made it.
    pub came_by: u32,
    /// Source port, network byte order.
    pub sport_be: u16,
    /// Destination port, network byte order.
    pub dport_be: u16,
    /// Not 0: it has ports.
    pub ports: u32,
}

const _: () = assert!(size_of::<FragmentInfo>() == 52);

/// Entries of the `fragments` map, an LRU.
pub const MAX_FRAGMENTS: u32 = 2_048;
/// Places for the fragmented packets of one container, a power of two.
pub const FRAGMENT_SHARE: u32 = 32;
/// Places for the fragmented packets that come in by one uplink, a power of two.
pub const FRAGMENT_SHARE_OUTSIDE: u32 = 256;

#[cfg(test)]
mod tests {
    use super::FlowKey;
    use crate::{Ip, LinkId};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reversed_twice_is_the_same(s in any::<[u8; 16]>(), d in any::<[u8; 16]>(), sp: u16, dp: u16, a: u32, b: u32) {
            let key = FlowKey {
                src: Ip::from_octets(s), dst: Ip::from_octets(d), sport_be: sp, dport_be: dp, link: LinkId::of_index(a), proto: 6,
            };
            prop_assert_eq!(key.reversed(LinkId::of_index(b)).reversed(key.link), key);
        }
    }
}
