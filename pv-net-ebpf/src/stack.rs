//! The stage `stack`: what a container sends to the device's stack. That is what is for the device itself, what leaves
//! by a link to which only the stack forwards, and packets to groups, which the bridge delivers to everybody on it.

use crate::{
    answer, budget,
    denied::denied,
    flow::{self, REFUSED},
    guard,
    maps::{HALF_OPEN, epoch, interface},
    nat,
    packet::Packet,
    policy_input::{PolicyInput, may_at_device},
    scratch::{Scratch, ToStack, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_OK, ACT_SHOT, count},
};
use pv_net_common::{
    DropReason, InterfaceInfo, LinkId, Stage, Stat,
    endpoint::{MARK_CONTAINER, MARK_NOT_FOR_DEVICE},
};

/// Lets a container's packet go on to the bridge, and from there perhaps to the device's stack. The mark tells
/// `pv_from_bridge` that the packet was decided here.
#[inline(always)]
pub fn to_stack(packet: &Packet) -> i32 {
    packet.admit_fragments();
    packet.set_mark(MARK_CONTAINER);
    count(Stat::ToStack);
    ACT_OK
}

/// Tail-calls the stage `stack`, which decides whether the packet may go to the device's stack.
#[inline(always)]
pub fn by_stack(packet: &Packet, how: ToStack) -> i32 {
    let Some(Scratch { to_stack, .. }) = scratch() else { return ACT_SHOT };
    *to_stack = how;
    tail_call(packet.skb, Stage::Stack)
}

/// The stage for packets that the device's stack or the bridge is to deliver.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.id()) else { return ACT_SHOT };
    if guard::is_group(packet.key.dst, me) {
        return to_group(packet, me);
    }
    let Some(Scratch { to_stack: how, .. }) = scratch() else { return ACT_SHOT };
    let (device, elsewhere, unresolved) = (how.device != 0, how.elsewhere != 0, how.unresolved != 0);
    let done = ask(packet, me, device, unresolved);
    if elsewhere && done == ACT_OK {
        // A bridge hands up a frame to the MAC of any of its ports.
        packet.set_mark(MARK_NOT_FOR_DEVICE);
    }
    done
}

/// To a group on the bridge. Whether the packet may reach a container is decided by that container's own program.
/// Whether it may reach the device is decided here, where the sender is certain. Membership reports and neighbour
/// discovery always may.
#[inline(always)]
fn to_group(packet: &Packet, me: &InterfaceInfo) -> i32 {
    let reports = guard::is_report(packet);
    if reports && !budget::reports(packet.id(), guard::reported_groups(packet)) {
        return verdict::drop(packet, DropReason::GroupLimit);
    }
    let done = to_stack(packet);
    let of_link = reports || !packet.v4 && guard::is_discovery(packet);
    if !of_link && PolicyInput::of_sender(&packet.key, me).to_device_of(me).allowed().is_err() {
        packet.set_mark(MARK_NOT_FOR_DEVICE);
    }
    done
}

/// Asks the policy, and notes in the half-open table that the container spoke first, so that `pv_to_container` lets
/// replies pass and the flow is decided again in a new epoch. `device`: the kernel's routes call the destination the
/// device's own. The daemon may not know such an address: an anycast or broadcast address, a network that was added by
/// `ip route add local`, or a new address.
#[inline(always)]
fn ask(packet: &Packet, me: &InterfaceInfo, device: bool, unresolved: bool) -> i32 {
    let (key, epoch) = (packet.key, epoch());
    let reply_key = key.reversed(LinkId::OUTSIDE);
    let known = match HALF_OPEN.get_ptr_mut(&reply_key) {
        // SAFETY: a map value stays readable for the program's run.
        Some(open) if packet.tracked => Some(unsafe { &mut *open }).filter(|open| open.origin == key),
        _ => None,
    };
    if known.as_ref().is_some_and(|open| open.reply.epoch == epoch) {
        return to_stack(packet);
    }
    let continues = known.is_none() && packet.continues_tcp();
    let asked = allowed(packet, me, device);
    match known {
        Some(open) => open.reply.epoch = if asked.is_ok() { epoch } else { REFUSED },
        None if asked.is_ok() && packet.tracked && !continues => {
            flow::note_stack(&key, &reply_key, epoch, device, packet.link);
        }
        None => {}
    }
    match asked {
        // The neighbour budget is spent only by packets that the rules allow.
        Ok(()) if unresolved && !budget::neighbour(packet.id()) => verdict::drop(packet, DropReason::NeighbourLimit),
        Ok(()) => to_stack(packet),
        Err(DropReason::PolicyDenied) => denied(packet, DropReason::PolicyDenied),
        // The note of a connection that the device opened may be lost, so a socket of the device with this very
        // connection counts too. A segment of no connection gets no answer, since that would tell an open port from a
        // closed one.
        Err(_) if continues && nat::device_takes(packet.skb, &key, false) => to_stack(packet),
        Err(reason) if continues => verdict::drop(packet, reason),
        // The kernel's look-up does not tell "no route" from an address of its own, so both get the same answer.
        Err(reason) if device => answer::unreachable(packet, reason),
        Err(reason) => denied(packet, reason),
    }
}

#[inline(always)]
fn allowed(packet: &Packet, me: &InterfaceInfo, device: bool) -> Result<(), DropReason> {
    let input = PolicyInput::of_sender(&packet.key, me);
    if !device {
        return input.allowed();
    }
    // The rules about the address itself come first; then the question is about the gateway.
    input.may(true)?;
    may_at_device()
}
