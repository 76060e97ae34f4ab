//! `pv_from_bridge`: what a pool's bridge hands to the device's stack.
//!
//! What a container sends was decided by the program on its own link, and carries a mark. Everything else comes from a
//! stranger: somebody behind another port of the bridge, for example a LAN port of a bridge that the device had before.
//! A stranger may reach the device under its own address, but never under one that a container or the device has.

use crate::{
    guard,
    maps::{endpoint_in, is_of_device, is_reached_by_parent, uplink},
    packet::{Kind, Packet},
    verdict::{self, ACT_OK},
};
use pv_net_common::{
    DropReason, Ip,
    endpoint::{MARK_CONTAINER, MARK_NOT_FOR_DEVICE},
};

/// `PACKET_LOOPBACK`: a copy of what the device itself sends to a group. No frame from a wire has this type.
const OWN_COPY: u32 = 5;

/// A frame on its way from a bridge to the device's stack.
#[inline(always)]
pub fn from_bridge(packet: &Packet, kind: Kind) -> i32 {
    // SAFETY: a context field.
    if unsafe { (*packet.skb).pkt_type } == OWN_COPY {
        return ACT_OK;
    }
    match packet.mark() {
        MARK_CONTAINER => {
            packet.set_mark(0);
            ACT_OK
        }
        MARK_NOT_FOR_DEVICE => verdict::drop(packet, DropReason::HostAccess),
        _ => match stranger(packet, kind) {
            Ok(()) => ACT_OK,
            Err(reason) => verdict::drop(packet, reason),
        },
    }
}

#[inline(always)]
fn stranger(packet: &Packet, kind: Kind) -> Result<(), DropReason> {
    // The daemon enters a pool's bridge into `uplinks` before it attaches the program, so this is a link that is set up
    // by halves.
    let Some(bridge) = uplink(packet.link) else { return Err(DropReason::UnknownInterface) };
    match kind {
        Kind::Ip => judge(packet, bridge.pool_id),
        Kind::Arp => judge_arp(packet, bridge.pool_id),
        Kind::Unreadable => Err(DropReason::Malformed),
        Kind::PriorityTag | Kind::Vlan | Kind::Other => Ok(()),
    }
}

/// Whether a stranger on the bridge of pool `pool_id` may have sent this IP packet: with this source address, and if it
/// is neighbour discovery, about this neighbour.
#[inline(always)]
pub fn judge(packet: &Packet, pool_id: u32) -> Result<(), DropReason> {
    let (src, dst) = (packet.key.src, packet.key.dst);
    if src.is_loopback() || dst.is_loopback() || src.is_multicast() || src.is_limited_broadcast() {
        return Err(DropReason::Martian);
    }
    if is_taken(src, pool_id) {
        return Err(DropReason::ForgedSource);
    }
    match guard::spoken_for(packet) {
        Some(addr) if is_taken(addr, pool_id) => Err(DropReason::SpoofedNd),
        _ => Ok(()),
    }
}

/// Like [`judge`], for ARP: the address that the frame claims must be nobody else's.
#[inline(always)]
pub fn judge_arp(packet: &Packet, pool_id: u32) -> Result<(), DropReason> {
    let arp = guard::read_arp(packet)?;
    let claimed = if arp.is_probe() { arp.target } else { arp.sender };
    if is_taken(claimed, pool_id) { Err(DropReason::SpoofedArp) } else { Ok(()) }
}

/// Whether `addr` belongs to the device, to a container of the pool, or to one whose link is another one.
#[inline(always)]
fn is_taken(addr: Ip, pool_id: u32) -> bool {
    is_of_device(addr) || endpoint_in(addr, pool_id).is_some() || is_reached_by_parent(addr)
}
