//! Forwarding between containers: the flow table, and the whole decision when a flow is not in it.

use crate::{
    answer,
    guard::{self, same_mac},
    maps::{CONFIG, ENDPOINTS, FLOWS, Scratch, TRANSIENT, interface, scratch},
    packet::{ETH_LEN, Packet, TCP_FIN, TCP_RST},
    verdict::{self, ACT_OK, ACT_SHOT, count},
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{
        bpf_jiffies64, bpf_l3_csum_replace, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_store_bytes,
    },
};
use pv_net_common::{
    DropReason, EndpointInfo, EndpointKey, FlowEntry, FlowKey, InterfaceInfo, Stat, TransientFlow,
    endpoint::POOL_OPEN,
    flow::{FLOW_CLOSING, FLOW_OPENING, FLOW_REPLY, FLOW_ROUTED, TCP_FIN_SEEN},
};

/// The policy generation in force.
#[inline(always)]
fn epoch() -> u32 {
    CONFIG.get(0).map_or(0, |c| c.epoch)
}

/// A packet from a container: by the flow table when it can be, else by the whole decision.
#[inline(always)]
pub fn from_container(packet: &mut Packet) -> i32 {
    let epoch = epoch();
    if packet.tracked
        && let Some(entry) = FLOWS.get_ptr_mut(&packet.key)
    {
        // SAFETY: a map value stays readable for the program's run; counters may race, and only they.
        let entry = unsafe { &mut *entry };
        // The addresses were checked when the entry was made and are part of its key: the MAC is what is left.
        if entry.epoch == epoch && same_mac(entry.from_mac, packet.eth.src) {
            if packet.tcp_has(TCP_FIN | TCP_RST) {
                close(packet, entry);
            }
            count(Stat::FastPath);
            return deliver(packet, entry);
        }
    }
    decide(packet, epoch)
}

/// Hands the packet to the container behind `entry.ifindex`.
#[inline(always)]
fn deliver(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    if entry.flags & FLOW_ROUTED != 0 {
        if packet.ttl <= 1 {
            return answer::ttl_expired(packet);
        }
        if !packet.may_cut && too_big(packet, entry.mtu) {
            return answer::too_big(packet, entry.mtu);
        }
        if route(packet, entry).is_err() {
            return verdict::drop(packet, DropReason::Rewrite);
        }
    }
    entry.packets += 1;
    entry.bytes += packet.len() as u64;
    // SAFETY: the helpers have no preconditions; `skb` is the context.
    unsafe {
        entry.last_used = bpf_jiffies64();
        // The MAC was the bridge's or the peer's, so the host-side link saw "other host"; kernels before 6.15 keep
        // that over the redirect and the receiver would discard the packet.
        if (*packet.skb).pkt_type != 0 {
            bpf_skb_change_type(packet.skb.cast(), 0);
        }
        bpf_redirect_peer(entry.ifindex, 0) as i32
    }
}

/// Whether a routed packet, or a segment of it, is larger than the target takes and may not be cut.
#[inline(always)]
fn too_big(packet: &Packet, mtu: u32) -> bool {
    let gso = packet.gso_size();
    if gso > 0 {
        // Segments carry the same headers; TCP's are at most 60 bytes and 20 at least.
        return packet.l4 - ETH_LEN + 20 + gso > mtu;
    }
    packet.len() - ETH_LEN > mtu
}

/// Rewrites MACs and decreases TTL or hop limit (RFC 1812 section 5.3.1).
#[inline(always)]
fn route(packet: &Packet, entry: &FlowEntry) -> Result<(), ()> {
    let mut macs = [0u8; 12];
    macs[..6].copy_from_slice(&entry.dst_mac);
    macs[6..].copy_from_slice(&entry.src_mac);
    let ttl = packet.ttl - 1;
    let ttl_at = if packet.v4 { ETH_LEN + 8 } else { ETH_LEN + 7 };
    let skb = packet.skb.cast();
    // SAFETY: the helpers check offsets and lengths themselves.
    unsafe {
        if bpf_skb_store_bytes(skb, 0, macs.as_ptr().cast(), 12, 0) != 0
            || bpf_skb_store_bytes(skb, ttl_at, (&raw const ttl).cast(), 1, 0) != 0
        {
            return Err(());
        }
        // TTL and protocol share a 16-bit word of the header; IPv6 has no header checksum.
        if packet.v4 {
            let old = u16::from_ne_bytes([packet.ttl, packet.proto]);
            let new = u16::from_ne_bytes([ttl, packet.proto]);
            if bpf_l3_csum_replace(skb, ETH_LEN + 10, old as u64, new as u64, 2) != 0 {
                return Err(());
            }
        }
    }
    Ok(())
}

/// The whole decision: guard, open flows, policy, route.
#[inline(always)]
fn decide(packet: &mut Packet, epoch: u32) -> i32 {
    let Some(me) = interface(packet.key.ifindex) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let guarded =
        guard::mac(packet, me).and_then(|()| if packet.v4 { guard::ipv4(packet, me) } else { guard::ipv6(packet, me) });
    if let Err(reason) = guarded {
        return verdict::drop(packet, reason);
    }
    if packet.tracked
        && !packet.opens_tcp()
        && let Some(open) = TRANSIENT.get_ptr_mut(&packet.key)
    {
        // SAFETY: as above.
        let open = unsafe { &mut *open };
        if open.reply.epoch == epoch {
            return reply(packet, open);
        }
    }
    let Some(target) = ENDPOINTS.get_ptr(&EndpointKey { addr: packet.key.dst }) else {
        count(Stat::ToStack);
        return ACT_OK;
    };
    // SAFETY: as above.
    let target = unsafe { &*target };
    if target.ifindex == packet.key.ifindex {
        count(Stat::ToStack);
        return ACT_OK;
    }
    let routed = target.pool_id != me.pool_id;
    if routed && me.pool_flags & target.pool_flags & POOL_OPEN == 0 {
        forget(&packet.key, target.ifindex);
        verdict::note_drop(packet, DropReason::PoolIsolated);
        return answer::refused(packet, me);
    }
    first(packet, me, target, routed, epoch)
}

/// A packet that policy allows: enters the flow as opening, or into the flow table when it goes on without an answer.
#[inline(always)]
fn first(packet: &mut Packet, me: &InterfaceInfo, target: &EndpointInfo, routed: bool, epoch: u32) -> i32 {
    let Some(Scratch { flow, .. }) = scratch() else { return ACT_OK };
    *flow = TransientFlow {
        forward: FlowEntry {
            ifindex: target.ifindex,
            epoch,
            from_mac: me.mac,
            src_mac: target.gateway_mac,
            dst_mac: target.mac,
            flags: if routed { FLOW_ROUTED } else { 0 },
            mtu: target.mtu,
            ..FlowEntry::default()
        },
        reply: FlowEntry {
            ifindex: packet.key.ifindex,
            epoch,
            from_mac: target.mac,
            src_mac: me.gateway_mac,
            dst_mac: me.mac,
            flags: if routed { FLOW_ROUTED | FLOW_REPLY } else { FLOW_REPLY },
            mtu: me.mtu,
            ..FlowEntry::default()
        },
        origin_ifindex: packet.key.ifindex,
        phase: FLOW_OPENING,
    };
    count(Stat::SlowPath);
    if !packet.tracked {
        return deliver(packet, &mut flow.forward);
    }
    let reply_key = packet.key.reversed(target.ifindex);
    if !packet.opens_tcp()
        && let Some(open) = TRANSIENT.get_ptr_mut(&reply_key)
    {
        // SAFETY: a map value stays readable for the program's run.
        let open = unsafe { &mut *open };
        if open.forward.epoch == epoch {
            let entry = &mut open.forward;
            entry.packets += 1;
            if open.phase == FLOW_OPENING && !packet.tcp_has(TCP_FIN | TCP_RST) {
                establish(&packet.key, &reply_key, open);
            }
            return deliver(packet, &mut flow.forward);
        }
    }
    let verdict = deliver(packet, &mut flow.forward);
    if verdict != ACT_SHOT && !packet.tcp_has(TCP_RST) {
        let _ = TRANSIENT.insert(&reply_key, &*flow, 0);
    }
    verdict
}

/// A packet that answers an opening or closing flow: the flow is established by it.
#[inline(always)]
fn reply(packet: &Packet, open: &mut TransientFlow) -> i32 {
    count(Stat::SlowPath);
    if open.phase == FLOW_OPENING && !packet.tcp_has(TCP_FIN | TCP_RST) {
        establish(&packet.key.reversed(open.origin_ifindex), &packet.key, open);
    }
    deliver(packet, &mut open.reply)
}

/// Enters both directions into the flow table, or neither. A full table is no fault: the flow goes on as transient.
#[inline(always)]
fn establish(forward: &FlowKey, reply: &FlowKey, open: &TransientFlow) {
    if FLOWS.insert(forward, &open.forward, BPF_NOEXIST as u64).is_err() {
        // There already (the other direction's packet was quicker on another CPU), or no room.
        if FLOWS.get_ptr(forward).is_none() {
            count(Stat::FlowTableFull);
            return;
        }
        let _ = FLOWS.insert(forward, &open.forward, 0);
        let _ = FLOWS.insert(reply, &open.reply, 0);
        return;
    }
    if FLOWS.insert(reply, &open.reply, 0).is_err() {
        let _ = FLOWS.remove(forward);
        count(Stat::FlowTableFull);
        return;
    }
    count(Stat::FlowsCreated);
}

/// A FIN or RST on an established flow: when both sides are done it leaves the flow table and lives on as closing, so
/// that the table holds only what is alive.
#[inline(always)]
fn close(packet: &Packet, entry: &mut FlowEntry) {
    let reverse_key = packet.key.reversed(entry.ifindex);
    let Some(reverse) = FLOWS.get_ptr_mut(&reverse_key) else { return };
    // SAFETY: a map value stays readable for the program's run.
    let reverse = unsafe { &mut *reverse };
    if packet.l4_info & TCP_RST == 0 {
        entry.tcp |= TCP_FIN_SEEN;
        if reverse.tcp & TCP_FIN_SEEN == 0 {
            return;
        }
    }
    let is_reply = entry.flags & FLOW_REPLY != 0;
    let Some(Scratch { flow, .. }) = scratch() else { return };
    flow.phase = FLOW_CLOSING;
    if is_reply {
        flow.forward = *reverse;
        flow.reply = *entry;
        flow.origin_ifindex = entry.ifindex;
        let _ = TRANSIENT.insert(&packet.key, &*flow, 0);
    } else {
        flow.forward = *entry;
        flow.reply = *reverse;
        flow.origin_ifindex = packet.key.ifindex;
        let _ = TRANSIENT.insert(&reverse_key, &*flow, 0);
    }
    let _ = FLOWS.remove(&packet.key);
    let _ = FLOWS.remove(&reverse_key);
}

/// Ends a flow that policy does not allow any more.
#[inline(always)]
fn forget(key: &FlowKey, target_ifindex: u32) {
    let reverse = key.reversed(target_ifindex);
    let _ = FLOWS.remove(key);
    let _ = FLOWS.remove(&reverse);
    let _ = TRANSIENT.remove(key);
    let _ = TRANSIENT.remove(&reverse);
}
