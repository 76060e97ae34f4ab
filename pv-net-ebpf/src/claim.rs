//! Claiming a new flow: an entry under the key of its replies, which also claims the source port that it leaves with.

use crate::{
    flow, flow_quota,
    maps::{FLOWS, HALF_OPEN},
    nat,
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, Packet, TCP_FIN, TCP_RST},
    scratch::{Plan, Scratch, scratch},
};
use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use pv_net_common::{
    DropReason, FlowEntry, FlowKey, HalfOpenFlow, NatOwner,
    flow::{FLOW_CLOSING, FLOW_OPENING, FLOW_REPLY},
};

/// How many ports are tried for a flow. The first is the flow's own port, or the one that its container's port has for
/// all peers; the others are tried for this peer alone.
const ATTEMPTS: u32 = 16;

/// Fills in the addresses, keys and checksum differences of `flow`, whose entries already say everything else, and
/// claims its reply key in `half_open`. `Ok(Some)` is the entry that an earlier packet of the same flow made;
/// `Ok(None)` means that this packet made or replaced it.
#[inline(always)]
pub fn claim(
    packet: &Packet,
    flow: &mut HalfOpenFlow,
    plan: &Plan,
) -> Result<Option<&'static mut HalfOpenFlow>, DropReason> {
    flow.origin = packet.key;
    // Borrowed from the map value instead of copied: this stage has no stack left for another key.
    // SAFETY: a part of a map value that is not written to again in this function.
    let key: &FlowKey = unsafe { &*(&raw const flow.origin) };
    // A FIN or RST of an unknown connection must not open one: the flow starts as closing.
    flow.phase = if packet.tcp_has(TCP_FIN | TCP_RST) { FLOW_CLOSING } else { FLOW_OPENING };
    flow.forward.src = plan.src;
    flow.forward.dst = plan.dst;
    flow.forward.reply_link = plan.reply_link;
    flow.reply.src = key.dst;
    flow.reply.dst = key.src;
    flow.reply.sport_be = key.dport_be;
    flow.reply.dport_be = key.sport_be;
    flow.reply.reply_link = key.link;
    flow.reply.flags |= FLOW_REPLY;
    let Some(Scratch { reply_key, .. }) = scratch() else { return Err(DropReason::Malformed) };
    let skb = packet.skb;
    let goes_on = u32::from(packet.continues_tcp());
    // When all ports are taken, the cheapest holder loses its port: a container that takes every port must not lock out
    // the others.
    let (mut victim, mut least) = (0, UNMOVED);
    let mut found = UNMOVED;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        found = pv_try_port(skb, attempt, goes_on);
        if found > UNMOVED {
            break;
        }
        if found < least {
            (victim, least) = (attempt, found);
        }
        attempt += 1;
    }
    if found <= UNMOVED {
        if goes_on != 0 {
            return Err(DropReason::NoFlow);
        }
        if least == UNMOVED {
            return Err(DropReason::NatExhausted);
        }
        // Called again because it leaves the victim's reply key in the scratch memory.
        pv_try_port(skb, victim, goes_on);
        flow::finish(flow, reply_key);
        flow::forget(reply_key);
        let _ = HALF_OPEN.insert(&*reply_key, &*flow, 0);
        return Ok(None);
    }
    if found == CLAIMED {
        if plan.masquerade != 0 && attempt == 0 {
            nat::own(key, u32::from(plan.offset), flow.forward.last_used);
        }
        return Ok(None);
    }
    flow::finish(flow, reply_key);
    match found {
        MINE => {
            let Some(open) = HALF_OPEN.get_ptr_mut(&*reply_key) else { return Err(DropReason::NatExhausted) };
            // SAFETY: a map value stays readable for the program's run.
            let open = unsafe { &mut *open };
            // The same ports are used for a new connection, or the rules have changed since the last packet.
            if packet.opens_tcp() || open.forward.epoch != flow.forward.epoch {
                flow::copy(open, flow);
            }
            Ok(Some(open))
        }
        _ => {
            // The flow is established, but this packet matched no entry in force (older epoch, another MAC, or a race
            // with another CPU): its decision replaces the flow's.
            let _ = HALF_OPEN.insert(&*reply_key, &*flow, 0);
            let (forward, reply) = if found == OPENED { (key, &*reply_key) } else { (&*reply_key, key) };
            flow_quota::remove_flow(forward, reply);
            Ok(None)
        }
    }
}

/// Result of [`pv_try_port`]: nobody had the key, and the flow has it now.
const CLAIMED: u32 = u32::MAX;
/// Result of [`pv_try_port`]: an earlier packet of the same flow has claimed the key.
const MINE: u32 = u32::MAX - 1;
/// Result of [`pv_try_port`]: the flow is established, and the sender of this packet opened it.
const OPENED: u32 = u32::MAX - 2;
/// Result of [`pv_try_port`]: the flow is established, and the other side opened it.
const SERVED: u32 = u32::MAX - 3;
/// Result of [`pv_try_port`]: another flow has the key and keeps it. Any smaller result is the cost of evicting the
/// other flow ([`cost`]).
const UNMOVED: u32 = u32::MAX - 4;

/// Tries the port of attempt number `attempt`: writes it and the resulting reply key to the scratch memory, and claims
/// that key or says who has it. A global function, so that the verifier checks it once and not once for each path
/// through the earlier attempts.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn pv_try_port(skb: *mut __sk_buff, attempt: u32, goes_on: u32) -> u32 {
    let Some(Scratch { flow, plan, reply_key, .. }) = scratch() else { return UNMOVED };
    let masquerade = plan.masquerade != 0;
    let offset = if attempt == 0 { u32::from(plan.offset) } else { nat::candidate(&flow.origin, attempt) };
    let sport_be = match attempt {
        0 if !masquerade => flow.origin.sport_be,
        _ => plan.first_port.wrapping_add(offset as u16).to_be(),
    };
    write_reply_key(reply_key, flow, plan, sport_be);
    let said = match in_flows(reply_key, &flow.origin, flow.forward.last_used) {
        Some(said) => said,
        // Without masquerade the key is rarely taken, so the insert is tried before the look-up.
        None if !masquerade && enter(flow, reply_key) => return CLAIMED,
        None => in_half_open(reply_key, &flow.origin, flow.forward.last_used),
    };
    match said {
        // `goes_on`: a segment of a connection whose flow has ended. It must not claim a port, as the peer would see
        // another address or port.
        CLAIMED if masquerade && (goes_on != 0 || is_devices(skb, reply_key, offset)) => UNMOVED,
        CLAIMED if masquerade && enter(flow, reply_key) => CLAIMED,
        // The insert failed: another CPU has claimed the key meanwhile.
        CLAIMED => UNMOVED,
        // Without masquerade only one port is possible, and its holder keeps it.
        cost if cost < UNMOVED && !masquerade => UNMOVED,
        said => said,
    }
}

/// Enters the flow into `half_open` under `reply_key`; `false` when the key is taken.
#[inline(always)]
fn enter(flow: &mut HalfOpenFlow, reply_key: &FlowKey) -> bool {
    flow::finish(flow, reply_key);
    HALF_OPEN.insert(reply_key, &*flow, BPF_NOEXIST as u64).is_ok()
}

/// Writes the source port that the flow leaves with into `flow`, and the key of its replies into `to`.
#[inline(always)]
fn write_reply_key(to: &mut FlowKey, flow: &mut HalfOpenFlow, plan: &Plan, sport_be: u16) {
    let proto = flow.origin.proto;
    let echo = proto == IPPROTO_ICMP as u32 || proto == IPPROTO_ICMPV6 as u32;
    // ICMP echo has one identifier for both directions instead of two ports.
    let dport_be = if echo { sport_be } else { plan.dport_be };
    flow.forward.sport_be = sport_be;
    flow.forward.dport_be = dport_be;
    to.src = plan.dst;
    to.dst = plan.src;
    to.sport_be = dport_be;
    to.dport_be = sport_be;
    to.link = plan.reply_link;
    to.proto = proto;
}

/// Whether the port belongs to the device: reserved in `nat_owners`, or used by one of its sockets.
#[inline(always)]
fn is_devices(skb: *mut __sk_buff, reply_key: &FlowKey, offset: u32) -> bool {
    nat::owner(reply_key, offset).is_none_or(|owner| owner == NatOwner::DEVICE)
        || nat::device_takes(skb, reply_key, true)
}

/// Who has `reply_key` in the flow table, seen from the flow that `key` opens at time `ticks`; `None` when nobody has.
/// Over both tables, holders are evicted in this order: closing flows, other flows of the same container, half-open
/// flows of others, established flows of others. Among equals the one that has been silent for longest goes first.
#[inline(always)]
fn in_flows(reply_key: &FlowKey, key: &FlowKey, ticks: u64) -> Option<u32> {
    // SAFETY: a map value stays readable for the program's run.
    let entry: &FlowEntry = unsafe { &*FLOWS.get_ptr(reply_key)? };
    let opener = entry.opposite_key(key.proto);
    if opener == *key {
        return Some(if entry.flags & FLOW_REPLY != 0 { OPENED } else { SERVED });
    }
    // An established TCP connection keeps its port. Other protocols lose theirs, the same container's flows first; else
    // a container could keep every port to a peer by getting one answer on each.
    Some(match opener.link == key.link {
        _ if key.proto == IPPROTO_TCP as u32 => UNMOVED,
        true => cost(1, entry, ticks),
        false => cost(3, entry, ticks),
    })
}

/// Like [`in_flows`], for the half-open table: [`CLAIMED`] when nobody has the key.
#[inline(always)]
fn in_half_open(reply_key: &FlowKey, key: &FlowKey, ticks: u64) -> u32 {
    let Some(found) = HALF_OPEN.get_ptr(reply_key) else { return CLAIMED };
    // SAFETY: as above.
    let found = unsafe { &*found };
    if found.origin == *key {
        return MINE;
    }
    let rank = match found.origin.link == key.link {
        _ if found.phase == FLOW_CLOSING => 0,
        true => 1,
        false => 2,
    };
    cost(rank, &found.forward, ticks)
}

#[inline(always)]
fn cost(rank: u32, entry: &FlowEntry, ticks: u64) -> u32 {
    let silent = ticks.wrapping_sub(entry.last_used) >> 4;
    let silent = if silent > 0xff_ffff { 0xff_ffff } else { silent as u32 };
    rank << 24 | (0xff_ffff - silent)
}
