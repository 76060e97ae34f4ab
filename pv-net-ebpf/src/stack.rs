//! What a container sends to the device's stack: to the device itself, by a link that only the stack forwards to, and to
//! groups, which the bridge brings to everybody on it.

use crate::{
    answer, budget,
    denied::denied,
    flow::{self, REFUSED},
    guard,
    maps::{HALF_OPEN, epoch, interface},
    nat,
    packet::Packet,
    policy_input::PolicyInput,
    scratch::{Scratch, ToStack, scratch},
    tail_call::tail_call,
    verdict::{self, ACT_OK, ACT_SHOT, count},
};
use pv_net_common::{
    DropReason, InterfaceInfo, Stage, Stat,
    endpoint::{MARK_CONTAINER, MARK_NOT_FOR_DEVICE},
};

/// A container's packet on to the bridge, and behind it the device's stack, which learns by the mark that it is decided.
#[inline(always)]
pub fn to_stack(packet: &Packet) -> i32 {
    packet.admit_fragments();
    packet.set_mark(MARK_CONTAINER);
    count(Stat::ToStack);
    ACT_OK
}

/// To the stack, if it may: another stage asks.
#[inline(always)]
pub fn by_stack(packet: &Packet, how: ToStack) -> i32 {
    let Some(Scratch { to_stack, .. }) = scratch() else { return ACT_SHOT };
    *to_stack = how;
    tail_call(packet.skb, Stage::Stack)
}

/// The stage for what the device's stack is to have.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let Some(me) = interface(packet.link) else { return ACT_SHOT };
    if guard::is_group(packet.key.dst, me) {
        return to_group(packet, me);
    }
    let Some(Scratch { to_stack: how, .. }) = scratch() else { return ACT_SHOT };
    let (device, elsewhere, unresolved) = (how.device != 0, how.elsewhere != 0, how.unresolved != 0);
    let done = ask(packet, me, device, unresolved);
    if elsewhere && done == ACT_OK {
        // A bridge hands up what has the MAC of any of its ports.
        packet.set_mark(MARK_NOT_FOR_DEVICE);
    }
    done
}

/// To all on the bridge. Each receiver's own program asks whether the packet may reach it; whether it may reach the
/// device is asked here, where it is certain who sends. Reports of groups, and discovery, are part of having a link.
#[inline(always)]
fn to_group(packet: &Packet, me: &InterfaceInfo) -> i32 {
    let reports = guard::is_report(packet);
    if reports && !budget::reports(packet.link, guard::reported_groups(packet)) {
        return verdict::drop(packet, DropReason::GroupLimit);
    }
    let done = to_stack(packet);
    let of_link = reports || !packet.v4 && guard::is_discovery(packet);
    if !of_link && PolicyInput::of_sender(&packet.key, me).to_device_of(me).allowed().is_err() {
        packet.set_mark(MARK_NOT_FOR_DEVICE);
    }
    done
}

/// Asks, and remembers that the container spoke first, so that `pv_to_container` knows the answer, and that a flow is
/// decided again when the policy changes. `device`: the kernel's routes call the destination the device's own. The daemon
/// may not know it: it is an anycast or a broadcast address, a whole network (`ip route add local`), or new.
#[inline(always)]
fn ask(packet: &Packet, me: &InterfaceInfo, device: bool, unresolved: bool) -> i32 {
    let (key, epoch) = (packet.key, epoch());
    let reply_key = key.reversed(0);
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
        // What rules refuse asks for no neighbour, and what they allow for so many.
        Ok(()) if unresolved && !budget::neighbour(packet.link) => verdict::drop(packet, DropReason::NeighbourLimit),
        Ok(()) => to_stack(packet),
        Err(DropReason::PolicyDenied) => denied(packet, DropReason::PolicyDenied),
        // The note of a connection that the device opened may be lost. What belongs to none is not answered: whether its
        // port is open is not to be learned by it.
        Err(_) if continues && nat::device_takes(packet.skb, &key, false) => to_stack(packet),
        Err(reason) if continues => verdict::drop(packet, reason),
        // The kernel says the same of "no route" as of what is its own, and no more is said of either.
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
    // The rules about that address first.
    input.may(true)?;
    input.to_device_of(me).allowed()
}
