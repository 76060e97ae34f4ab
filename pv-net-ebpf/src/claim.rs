//! A new flow's claim: the key of its replies, and with it the port that it leaves with.

use crate::{
    charge, flow,
    maps::{FLOWS, Plan, TRANSIENT},
    nat,
    packet::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, Packet, TCP_FIN, TCP_RST},
};
use aya_ebpf::bindings::BPF_NOEXIST;
use pv_net_common::{
    DropReason, FlowEntry, FlowKey, NatOwner, TransientFlow,
    flow::{FLOW_CLOSING, FLOW_OPENING, FLOW_REPLY},
};

/// How many ports are tried for a flow: its own or its container's for all peers, then some for this peer alone.
const ATTEMPTS: u32 = 16;

/// Fills in addresses, keys and checksum differences of the flow in `flow` and claims its reply key. `flow` has the
/// rest of both entries. What comes back is the flow's place in the transient map when this packet is not its first.
#[inline(always)]
pub fn claim(
    packet: &Packet,
    flow: &mut TransientFlow,
    plan: &Plan,
) -> Result<Option<&'static mut TransientFlow>, DropReason> {
    let key = packet.key;
    flow.origin = key;
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
    let masquerade = plan.masquerade != 0;
    // Who takes it all leaves nothing to others: then somebody's flow makes room.
    let (mut victim, mut least) = (0, u32::MAX);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let offset = if attempt == 0 { u32::from(plan.offset) } else { nat::candidate(&key, attempt) };
        let sport_be = match attempt {
            0 if !masquerade => key.sport_be,
            _ => plan.first_port.wrapping_add(offset as u16).to_be(),
        };
        let reply_key = reply_key(flow, &key, plan, sport_be);
        match holder(&reply_key, &key, flow.forward.last_used) {
            Holder::Other { cost } => {
                if masquerade && cost < least {
                    (victim, least) = (offset, cost);
                }
            }
            Holder::Me(found) => {
                flow::finish(flow, &reply_key);
                // A new connection with the ports of the last one.
                if packet.opens_tcp() || found.forward.epoch != flow.forward.epoch {
                    flow::copy(found, flow);
                }
                return Ok(Some(found));
            }
            Holder::MeEstablished { opened } => {
                flow::finish(flow, &reply_key);
                // An entry of an older epoch, or of another MAC: replaced below by the packet that follows.
                let _ = TRANSIENT.insert(&reply_key, &*flow, 0);
                let (forward, reply) = if opened { (&key, &reply_key) } else { (&reply_key, &key) };
                charge::remove_flow(forward, reply);
                return Ok(None);
            }
            // What is left of a connection whose flow has ended: outside it would come from another address or port.
            Holder::Nobody if masquerade && packet.continues_tcp() => {}
            Holder::Nobody if masquerade && is_devices(packet, &reply_key, offset) => {}
            Holder::Nobody => {
                flow::finish(flow, &reply_key);
                if TRANSIENT.insert(&reply_key, &*flow, BPF_NOEXIST as u64).is_ok() {
                    if masquerade && attempt == 0 {
                        nat::own(&key, offset, flow.forward.last_used);
                    }
                    return Ok(None);
                }
            }
        }
        attempt += 1;
    }
    if packet.continues_tcp() {
        return Err(DropReason::NoFlow);
    }
    if least == u32::MAX {
        return Err(DropReason::NatExhausted);
    }
    let reply_key = reply_key(flow, &key, plan, plan.first_port.wrapping_add(victim as u16).to_be());
    flow::finish(flow, &reply_key);
    flow::forget(&reply_key);
    let _ = TRANSIENT.insert(&reply_key, &*flow, 0);
    Ok(None)
}

/// Writes the port that the flow leaves with; the key of its replies.
#[inline(always)]
fn reply_key(flow: &mut TransientFlow, key: &FlowKey, plan: &Plan, sport_be: u16) -> FlowKey {
    let echo = key.proto == IPPROTO_ICMP as u32 || key.proto == IPPROTO_ICMPV6 as u32;
    // Echo has one identifier, not two ports.
    let dport_be = if echo { sport_be } else { plan.dport_be };
    flow.forward.sport_be = sport_be;
    flow.forward.dport_be = dport_be;
    FlowKey {
        src: plan.dst,
        dst: plan.src,
        sport_be: dport_be,
        dport_be: sport_be,
        ifindex: plan.reply_link,
        proto: key.proto,
    }
}

/// Whether the port is the device's own: reserved for it, or a socket's of its own.
#[inline(always)]
fn is_devices(packet: &Packet, reply_key: &FlowKey, offset: u32) -> bool {
    nat::owner(reply_key, offset).is_none_or(|owner| owner == NatOwner::DEVICE)
        || nat::device_takes(packet, reply_key, true)
}

enum Holder {
    Nobody,
    /// `cost`: how unwillingly it makes room, the least first; [`u32::MAX`]: not at all.
    Other {
        cost: u32,
    },
    Me(&'static mut TransientFlow),
    /// `opened`: by me, or by who has the reply key.
    MeEstablished {
        opened: bool,
    },
}

/// Who has `reply_key`, seen from the flow that `key` opens at `ticks`. What is over makes room first, then what its own
/// container has had for longest without a packet, then what others have in the transient map: there is no more of that
/// than they may have in the flow table, but of somebody who takes all ports to one peer.
#[inline(always)]
fn holder(reply_key: &FlowKey, key: &FlowKey, ticks: u64) -> Holder {
    if let Some(entry) = FLOWS.get_ptr(reply_key) {
        // SAFETY: a map value stays readable for the program's run.
        let entry: &FlowEntry = unsafe { &*entry };
        let opener = entry.opposite_key(key.proto);
        if opener == *key {
            return Holder::MeEstablished { opened: entry.flags & FLOW_REPLY != 0 };
        }
        let own = opener.ifindex == key.ifindex && key.proto != IPPROTO_TCP as u32;
        return Holder::Other { cost: if own { cost(1, entry, ticks) } else { u32::MAX } };
    }
    let Some(found) = TRANSIENT.get_ptr_mut(reply_key) else { return Holder::Nobody };
    // SAFETY: as above.
    let found = unsafe { &mut *found };
    if found.origin == *key {
        return Holder::Me(found);
    }
    let rank = match found.origin.ifindex == key.ifindex {
        _ if found.phase == FLOW_CLOSING => 0,
        true => 1,
        false => 2,
    };
    Holder::Other { cost: cost(rank, &found.forward, ticks) }
}

#[inline(always)]
fn cost(rank: u32, entry: &FlowEntry, ticks: u64) -> u32 {
    let silent = ticks.wrapping_sub(entry.last_used) >> 4;
    let silent = if silent > 0xff_ffff { 0xff_ffff } else { silent as u32 };
    rank << 24 | (0xff_ffff - silent)
}
