//! A new flow's claim: the key of its replies, and with it the port that it leaves with.

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

/// How many ports are tried for a flow: its own or its container's for all peers, then some for this peer alone.
const ATTEMPTS: u32 = 16;

/// Fills in addresses, keys and checksum differences of the flow in `flow` and claims its reply key. `flow` has the
/// rest of both entries. What comes back is the flow's place in the half-open table when this packet is not its first.
#[inline(always)]
pub fn claim(
    packet: &Packet,
    flow: &mut HalfOpenFlow,
    plan: &Plan,
) -> Result<Option<&'static mut HalfOpenFlow>, DropReason> {
    flow.origin = packet.key;
    // Where it is written, and not on the stack, of which this stage has none left.
    // SAFETY: a part of a map value, that is not written to again here.
    let key: &FlowKey = unsafe { &*(&raw const flow.origin) };
    // What ends a connection that is not known any more opens none.
    flow.phase = if packet.tcp_has(TCP_FIN | TCP_RST) { FLOW_CLOSING } else { FLOW_OPENING };
    flow.forward.src = plan.src;
    flow.forward.dst = plan.dst;
    flow.forward.reply_ifindex = plan.reply_link;
    flow.reply.src = key.dst;
    flow.reply.dst = key.src;
    flow.reply.sport_be = key.dport_be;
    flow.reply.dport_be = key.sport_be;
    flow.reply.reply_ifindex = key.ifindex;
    flow.reply.flags |= FLOW_REPLY;
    let Some(Scratch { reply_key, .. }) = scratch() else { return Err(DropReason::Malformed) };
    let skb = packet.skb;
    let goes_on = u32::from(packet.continues_tcp());
    // Who takes it all leaves nothing to others: then somebody's flow makes room.
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
        // Writes its key again.
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
            // A new connection with the ports of the last one.
            if packet.opens_tcp() || open.forward.epoch != flow.forward.epoch {
                flow::copy(open, flow);
            }
            Ok(Some(open))
        }
        _ => {
            // An entry of an older epoch, or of another MAC: replaced by the packet that follows.
            let _ = HALF_OPEN.insert(&*reply_key, &*flow, 0);
            let (forward, reply) = if found == OPENED { (key, &*reply_key) } else { (&*reply_key, key) };
            flow_quota::remove_flow(forward, reply);
            Ok(None)
        }
    }
}

/// What [`pv_try_port`] says when nobody had the key: the flow has it now.
const CLAIMED: u32 = u32::MAX;
/// The opening flow itself has it.
const MINE: u32 = u32::MAX - 1;
/// The same flow, established, and opened by who sends now.
const OPENED: u32 = u32::MAX - 2;
/// The same flow, established, and opened by the other side.
const SERVED: u32 = u32::MAX - 3;
/// Another one has it, and makes no room. What is below says how unwillingly it would.
const UNMOVED: u32 = u32::MAX - 4;

/// Tries a port: writes it, and the key of the replies, and claims that, or says who has it. A global function: the verifier goes
/// through it once, and not once for each way through the attempts before.
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
    match holder(reply_key, &flow.origin, flow.forward.last_used) {
        // What is left of a connection whose flow has ended: outside it would come from another address or port.
        CLAIMED if masquerade && (goes_on != 0 || is_devices(skb, reply_key, offset)) => UNMOVED,
        CLAIMED => {
            flow::finish(flow, reply_key);
            // Another CPU may have been quicker.
            let claimed = HALF_OPEN.insert(&*reply_key, &*flow, BPF_NOEXIST as u64);
            if claimed.is_ok() { CLAIMED } else { UNMOVED }
        }
        // Without masquerade there is one port, and who has it keeps it.
        cost if cost < UNMOVED && !masquerade => UNMOVED,
        said => said,
    }
}

/// Writes the port that the flow leaves with, and the key of its replies.
#[inline(always)]
fn write_reply_key(to: &mut FlowKey, flow: &mut HalfOpenFlow, plan: &Plan, sport_be: u16) {
    let proto = flow.origin.proto;
    let echo = proto == IPPROTO_ICMP as u32 || proto == IPPROTO_ICMPV6 as u32;
    // Echo has one identifier, not two ports.
    let dport_be = if echo { sport_be } else { plan.dport_be };
    flow.forward.sport_be = sport_be;
    flow.forward.dport_be = dport_be;
    to.src = plan.dst;
    to.dst = plan.src;
    to.sport_be = dport_be;
    to.dport_be = sport_be;
    to.ifindex = plan.reply_link;
    to.proto = proto;
}

/// Whether the port is the device's own: reserved for it, or a socket's of its own.
#[inline(always)]
fn is_devices(skb: *mut __sk_buff, reply_key: &FlowKey, offset: u32) -> bool {
    nat::owner(reply_key, offset).is_none_or(|owner| owner == NatOwner::DEVICE)
        || nat::device_takes(skb, reply_key, true)
}

/// Who has `reply_key`, seen from the flow that `key` opens at `ticks`. What is over makes room first, then what its own
/// container has had for longest without a packet, then what others have in the half-open table, then the flow of another
/// container, without a connection, that is silent for longest.
#[inline(always)]
fn holder(reply_key: &FlowKey, key: &FlowKey, ticks: u64) -> u32 {
    if let Some(entry) = FLOWS.get_ptr(reply_key) {
        // SAFETY: a map value stays readable for the program's run.
        let entry: &FlowEntry = unsafe { &*entry };
        let opener = entry.opposite_key(key.proto);
        if opener == *key {
            return if entry.flags & FLOW_REPLY != 0 { OPENED } else { SERVED };
        }
        // An established connection stays. What has none makes room, the opener's own first: nobody keeps all ports to
        // a peer by having been answered on each.
        return match opener.ifindex == key.ifindex {
            _ if key.proto == IPPROTO_TCP as u32 => UNMOVED,
            true => cost(1, entry, ticks),
            false => cost(3, entry, ticks),
        };
    }
    let Some(found) = HALF_OPEN.get_ptr(reply_key) else { return CLAIMED };
    // SAFETY: as above.
    let found = unsafe { &*found };
    if found.origin == *key {
        return MINE;
    }
    let rank = match found.origin.ifindex == key.ifindex {
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
