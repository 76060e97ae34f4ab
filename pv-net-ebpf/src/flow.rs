//! The life of a flow: claimed as opening, established by its second packet or first reply, closing, gone.

use crate::{
    deliver::stamp,
    flow_quota::{self, FlowQuota},
    maps::{FLOWS, HALF_OPEN},
    nat,
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, Packet, TCP_FIN, TCP_RST, TCP_SYN},
    port_map::Target,
    scratch::{Scratch, scratch},
    share,
    verdict::count,
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_csum_diff};
use pv_net_common::{
    EndpointInfo, FlowEntry, FlowKey, HalfOpenFlow, Ip, Stage, Stat,
    flow::{
        FLOW_CLOSING, FLOW_DEVICE, FLOW_NAT, FLOW_OPENING, FLOW_REPLY, FLOW_STACK, TCP_FIN_SEEN, TCP_LAST_ACK,
        TCP_RST_SEEN, quota_link,
    },
};

/// Copies word by word: the code that the compiler makes of an assignment this large needs more stack than there is.
#[inline(always)]
pub fn copy(to: &mut HalfOpenFlow, from: &HalfOpenFlow) {
    const WORDS: usize = size_of::<HalfOpenFlow>() / size_of::<u64>();
    let (to, from) = ((&raw mut *to).cast::<u64>(), (&raw const *from).cast::<u64>());
    for i in 0..WORDS {
        // SAFETY: both are whole, aligned to words and made of integers without padding.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
}

/// The stage that handles a packet of a flow that one of the tables already has; `None` when neither has it.
#[inline(always)]
pub fn stage_of(packet: &Packet) -> Option<Stage> {
    let key = packet.key;
    if !packet.tracked {
        return None;
    }
    if FLOWS.get_ptr(&key).is_some() {
        return Some(Stage::Revalidate);
    }
    (!packet.opens_tcp() && HALF_OPEN.get_ptr(&key).is_some()).then_some(Stage::HalfOpen)
}

/// Whether `key` is the opener of a half-open flow to `to`, whose source port was not changed.
#[inline(always)]
pub fn is_claimed(key: &FlowKey, target: &EndpointInfo, to: &Target) -> bool {
    let reply_key = FlowKey {
        src: to.addr,
        dst: key.src,
        sport_be: to.port_be,
        dport_be: key.sport_be,
        link: target.link,
        proto: key.proto,
    };
    // SAFETY: a map value stays readable for the program's run.
    HALF_OPEN.get_ptr(&reply_key).is_some_and(|open| unsafe { (*open).origin == *key })
}

/// Sets the flags and checksum differences that follow from the chosen addresses and ports.
#[inline(always)]
pub fn finish(flow: &mut HalfOpenFlow, reply_key: &FlowKey) {
    let key = flow.origin;
    let forward = &flow.forward;
    let same = forward.src == key.src
        && forward.dst == key.dst
        && forward.sport_be == key.sport_be
        && forward.dport_be == key.dport_be;
    if same {
        return;
    }
    let echo = key.proto == IPPROTO_ICMP as u32 || key.proto == IPPROTO_ICMPV6 as u32;
    set_diffs(&mut flow.forward, &key, echo);
    set_diffs(&mut flow.reply, reply_key, echo);
}

#[inline(always)]
fn set_diffs(entry: &mut FlowEntry, key: &FlowKey, echo: bool) {
    entry.flags |= FLOW_NAT;
    entry.addr_diff = addr_diff(key.src, key.dst, entry.src, entry.dst);
    let (old, new) = match echo {
        true => ([key.sport_be, 0], [entry.sport_be, 0]),
        false => ([key.sport_be, key.dport_be], [entry.sport_be, entry.dport_be]),
    };
    // Masquerade leaves most flows their ports; a difference of 0 saves the write.
    entry.port_diff = if old == new { 0 } else { port_diff(old, new) };
}

/// The difference that new addresses make to a checksum's one's complement sum (RFC 1624).
#[inline(always)]
pub fn addr_diff(src: Ip, dst: Ip, new_src: Ip, new_dst: Ip) -> u32 {
    let mut old = [src, dst];
    let mut new = [new_src, new_dst];
    // The words before an IPv4-mapped address are the same in both and add nothing.
    // SAFETY: both arrays are 32 bytes.
    unsafe { bpf_csum_diff(old.as_mut_ptr().cast(), 32, new.as_mut_ptr().cast(), 32, 0) as u32 }
}

/// The difference that new ports make to a checksum's one's complement sum (RFC 1624).
#[inline(always)]
pub fn port_diff(old: [u16; 2], new: [u16; 2]) -> u32 {
    (!old[0]) as u32 + (!old[1]) as u32 + new[0] as u32 + new[1] as u32
}

/// Another packet of the opener, whose flow is in the half-open table already. It establishes the flow even without a
/// reply.
#[inline(always)]
pub fn repeat(packet: &Packet, open: &mut HalfOpenFlow) {
    stamp(packet, &mut open.forward);
    if goes_on(packet, open, false) && !packet.opens_tcp() {
        establish(open);
    }
}

/// Notes FIN and RST on a half-open flow, and says whether the flow may be established. A flow that is ending stays
/// half open: the flow table would see only the rest of its end, and would keep it until its time-out.
#[inline(always)]
pub fn goes_on(packet: &Packet, open: &mut HalfOpenFlow, replies: bool) -> bool {
    if packet.tcp_has(TCP_RST) {
        open.forward.tcp |= TCP_RST_SEEN;
        if !packet.key.link.is_outside() {
            open.phase = FLOW_CLOSING;
        }
        return false;
    }
    if open.forward.tcp & TCP_RST_SEEN != 0 {
        open.forward.tcp &= !TCP_RST_SEEN;
        open.phase = FLOW_OPENING;
    }
    if packet.tcp_has(TCP_FIN) {
        let entry = if replies { &mut open.reply } else { &mut open.forward };
        entry.tcp |= TCP_FIN_SEEN;
    }
    if open.forward.tcp & open.reply.tcp & TCP_FIN_SEEN != 0 {
        open.phase = FLOW_CLOSING;
    }
    open.phase == FLOW_OPENING && (open.forward.tcp | open.reply.tcp) & TCP_FIN_SEEN == 0
}

/// Enters both directions into the flow table, or neither. When the table is full the flow stays in the half-open
/// table, which works but takes the slow path.
#[inline(always)]
pub fn establish(open: &HalfOpenFlow) {
    let forward = open.origin;
    let reply = open.forward.opposite_key(forward.proto);
    let quota = FlowQuota::of(quota_link(&forward, &reply));
    if quota.at_limit() && FLOWS.get_ptr(&forward).is_none() {
        count(Stat::FlowLimit);
        return;
    }
    if FLOWS.insert(&forward, &open.forward, BPF_NOEXIST as u64).is_err() {
        // Either another CPU entered the flow for a packet of the other direction, or there is no room.
        if FLOWS.get_ptr(&forward).is_none() {
            count(Stat::FlowTableFull);
            return;
        }
        let _ = FLOWS.insert(&forward, &open.forward, 0);
        if FLOWS.insert(&reply, &open.reply, 0).is_err() {
            flow_quota::remove_flow(&forward, &reply);
        }
        return;
    }
    quota.made();
    if FLOWS.insert(&reply, &open.reply, 0).is_err() {
        flow_quota::remove_flow(&forward, &reply);
        count(Stat::FlowTableFull);
        return;
    }
    count(Stat::FlowsCreated);
}

/// Whether [`close`] has something to do for this packet of an established flow.
#[inline(always)]
pub fn ends(packet: &Packet, entry: &FlowEntry) -> bool {
    packet.tcp_has(TCP_FIN | TCP_RST | TCP_SYN) || entry.tcp & (TCP_LAST_ACK | TCP_RST_SEEN) != 0
}

/// Handles the end of an established flow. It leaves the flow table with the acknowledgement that follows both FINs, so
/// that the table holds only live flows. A translated flow goes on as closing in the half-open table, since its port is
/// not free yet. Call this after the packet was sent: `entry`'s memory may belong to another flow afterwards.
#[inline(always)]
pub fn close(packet: &Packet, entry: &mut FlowEntry) {
    let key = packet.key;
    let opposite_key = entry.opposite_key(key.proto);
    let Some(opposite) = FLOWS.get_ptr_mut(&opposite_key) else { return };
    // SAFETY: a map value stays readable for the program's run.
    let opposite = unsafe { &mut *opposite };
    if packet.opens_tcp() {
        // The opener reuses its port for a new connection. The last acknowledgement of the old connection may have been
        // lost, so its state is cleared.
        if entry.flags & FLOW_REPLY == 0 {
            entry.tcp = 0;
            opposite.tcp = 0;
        }
        return;
    }
    if packet.l4_info & TCP_RST != 0 {
        entry.tcp |= TCP_RST_SEEN;
        opposite.tcp |= TCP_RST_SEEN;
        // Anybody outside can forge a reset, so the entry stays and the daemon asks the container whether the
        // connection lives. A reset from the container itself may be its answer to a forged segment; the next segment
        // of the connection brings the flow back from the half-open table.
        if key.link.is_outside() {
            return;
        }
    } else {
        entry.tcp &= !TCP_RST_SEEN;
        opposite.tcp &= !TCP_RST_SEEN;
        if packet.l4_info & TCP_FIN != 0 {
            entry.tcp |= TCP_FIN_SEEN;
            if opposite.tcp & TCP_FIN_SEEN != 0 {
                entry.tcp |= TCP_LAST_ACK;
                opposite.tcp |= TCP_LAST_ACK;
            }
            return;
        }
        if entry.tcp & TCP_LAST_ACK == 0 {
            return;
        }
        if entry.flags & FLOW_NAT == 0 {
            let (forward, reply) =
                if entry.flags & FLOW_REPLY != 0 { (&opposite_key, &key) } else { (&key, &opposite_key) };
            let _ = HALF_OPEN.remove(reply);
            return flow_quota::remove_flow(forward, reply);
        }
    }
    let Some(Scratch { flow, .. }) = scratch() else { return };
    flow.phase = FLOW_CLOSING;
    retire(packet, entry, opposite, flow);
}

/// Moves a flow from the flow table to the half-open table. The caller has set `flow.phase`.
#[inline(always)]
fn retire(packet: &Packet, entry: &FlowEntry, opposite: &FlowEntry, flow: &mut HalfOpenFlow) {
    let key = packet.key;
    let opposite_key = entry.opposite_key(key.proto);
    if entry.flags & FLOW_REPLY != 0 {
        flow.forward = *opposite;
        flow.reply = *entry;
        flow.origin = opposite_key;
        keep_half_open(&key, flow);
        flow_quota::remove_flow(&opposite_key, &key);
    } else {
        flow.forward = *entry;
        flow.reply = *opposite;
        flow.origin = key;
        keep_half_open(&opposite_key, flow);
        flow_quota::remove_flow(&key, &opposite_key);
    }
}

/// Enters `flow` under its reply key. If the entry of its claim is still there, overwriting that is cheaper than a new
/// entry.
#[inline(always)]
fn keep_half_open(reply_key: &FlowKey, flow: &HalfOpenFlow) {
    if flow.phase == FLOW_CLOSING {
        nat::release(&flow.origin, &flow.forward);
    }
    if let Some(found) = HALF_OPEN.get_ptr_mut(reply_key) {
        // SAFETY: a map value stays readable for the program's run.
        return copy(unsafe { &mut *found }, flow);
    }
    share::take(&flow.origin, reply_key);
    let _ = HALF_OPEN.insert(reply_key, flow, 0);
}

/// Notes a flow whose other end is the host's stack, under the key of its replies, so that replies pass. `to_device`:
/// the kernel's routes call the destination the device's own, though the daemon may not know the address. `ring`: the
/// ring of [`share`] that the note counts for.
#[inline(always)]
pub fn note_stack(origin: &FlowKey, reply_key: &FlowKey, epoch: u32, to_device: bool, ring: u32) {
    let Some(Scratch { flow, .. }) = scratch() else { return };
    *flow = HalfOpenFlow::default();
    flow.origin = *origin;
    flow.reply.epoch = epoch;
    flow.reply.flags = if to_device { FLOW_STACK | FLOW_DEVICE } else { FLOW_STACK };
    share::take_of(ring, reply_key);
    // The map is an LRU: a full one evicts its oldest entry.
    let _ = HALF_OPEN.insert(reply_key, &*flow, 0);
}

/// The epoch of a flow that was refused: it is asked again with each packet.
pub use pv_net_common::flow::FLOW_REFUSED as REFUSED;

/// Moves a flow that the policy does not allow any more from the flow table to the half-open table, as opening and with
/// the epoch [`REFUSED`]. If it were removed, its replies would count as a flow of their own, which may be allowed.
#[inline(always)]
pub fn refuse(packet: &Packet, entry: &mut FlowEntry) {
    let Some(opposite) = FLOWS.get_ptr_mut(&entry.opposite_key(packet.key.proto)) else {
        return forget(&packet.key);
    };
    // SAFETY: a map value stays readable for the program's run.
    let opposite = unsafe { &mut *opposite };
    let Some(Scratch { flow, .. }) = scratch() else { return };
    entry.epoch = REFUSED;
    opposite.epoch = REFUSED;
    flow.phase = FLOW_OPENING;
    retire(packet, entry, opposite, flow);
}

/// Removes a flow from both tables, given the key of either direction.
#[inline(always)]
pub fn forget(key: &FlowKey) {
    if let Some(entry) = FLOWS.get_ptr(key) {
        // SAFETY: a map value stays readable for the program's run.
        let (opposite, replies) = unsafe { ((*entry).opposite_key(key.proto), (*entry).flags & FLOW_REPLY != 0) };
        if replies {
            flow_quota::remove_flow(&opposite, key);
        } else {
            flow_quota::remove_flow(key, &opposite);
        }
        let _ = HALF_OPEN.remove(&opposite);
    }
    let _ = HALF_OPEN.remove(key);
}
