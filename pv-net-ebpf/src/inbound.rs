//! What the bridge or the host's stack delivers to a container.
//!
//! Who sends is told by the link that the packet came in by, and by nothing in it: a container by its own link, the device
//! when there is none, and whoever else is a stranger, with whatever address.

use crate::{
    answer, bridge,
    flow::{self, REFUSED},
    guard::{self, same_mac},
    maps::{HALF_OPEN, epoch, interface},
    packet::{Kind, Packet, TCP_RST},
    policy_input::{PolicyInput, own_address},
    share,
    tail_call::tail_call,
    verdict::{self, ACT_OK},
};
use pv_net_common::{
    DropReason, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, Stage,
    flow::{FLOW_DEVICE, FLOW_STACK},
};

/// Who sends.
#[derive(Clone, Copy)]
enum Sender {
    Device,
    Container(&'static InterfaceInfo),
    Stranger,
}

impl Sender {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        match packet.came_by() {
            // The kernel forgets the link of an IPv6 packet that it puts together and cuts again. What the device itself
            // sends in pieces still has its socket.
            0 if packet.v4 || !packet.fragment || has_socket(packet) => Self::Device,
            0 => Self::Stranger,
            link => interface(link).map_or(Self::Stranger, Self::Container),
        }
    }

    #[inline(always)]
    fn is_device(self) -> bool {
        matches!(self, Self::Device)
    }

    /// Whose share a flow counts for that he opens.
    #[inline(always)]
    fn ring(self) -> u32 {
        match self {
            Self::Device => share::DEVICE,
            Self::Container(_) | Self::Stranger => share::STRANGERS,
        }
    }
}

/// A frame on its way into a container.
#[inline(always)]
pub fn to_container(packet: &mut Packet, kind: Kind) -> i32 {
    let Some(me) = interface(packet.link) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let refused = match kind {
        Kind::Ip => return ip(packet, me),
        // A container's own program has seen its ARP.
        Kind::Arp if interface(packet.came_by()).is_some() || packet.came_by() == 0 => return ACT_OK,
        Kind::Arp => match bridge::judge_arp(packet, me.pool_id) {
            Ok(()) => return ACT_OK,
            Err(reason) => reason,
        },
        Kind::PriorityTag | Kind::Vlan => DropReason::VlanTag,
        Kind::Other => DropReason::Ethertype,
        Kind::Unreadable => DropReason::Malformed,
    };
    verdict::drop(packet, refused)
}

#[inline(always)]
fn ip(packet: &mut Packet, me: &InterfaceInfo) -> i32 {
    packet.settle_leaving();
    let sender = Sender::of(packet);
    if let Err(reason) = judge(packet, me, sender) {
        return verdict::drop(packet, reason);
    }
    // What goes back by the link that it came by is the answer of that link's program.
    let answers = packet.came_by() == packet.link;
    if packet.is_icmp_error() && !sender.is_device() && !answers {
        return tail_call(packet.skb, Stage::Icmp);
    }
    let of_link = match sender {
        // What its sender's program let pass to a neighbour is about the link, not by it.
        Sender::Container(_) => guard::is_discovery(packet) || answers && ends(packet),
        Sender::Device => is_link_matter(packet, me),
        Sender::Stranger => guard::is_discovery(packet),
    };
    // A reset ends things. It may be the very answer to a segment that was refused.
    if of_link || packet.later || sender.is_device() && ends(packet) {
        packet.admit_leaving();
        return ACT_OK;
    }
    let replies = packet.key.reversed(packet.link);
    match noted(packet, &replies) {
        Some(open) if packet.tracked && open.reply.epoch == epoch() => {
            packet.admit_leaving();
            ACT_OK
        }
        _ => tail_call(packet.skb, Stage::Inbound),
    }
}

/// Whether the packet is the end of something, or says that it is.
#[inline(always)]
fn ends(packet: &Packet) -> bool {
    packet.is_icmp_error() || packet.tcp_has(TCP_RST)
}

/// What is wrong with the packet, whatever the rules say.
#[inline(always)]
fn judge(packet: &Packet, me: &InterfaceInfo, sender: Sender) -> Result<(), DropReason> {
    let dst = packet.key.dst;
    if packet.is_lost() {
        return Err(DropReason::FragmentLost);
    }
    if !is_mine(dst, me) && !guard::is_group(dst, me) {
        return Err(DropReason::NotAddressed);
    }
    if sender.is_device() {
        return Ok(());
    }
    if guard::is_for_dhcp_client(packet, packet.key.dport_be) {
        return Err(DropReason::RogueDhcp);
    }
    if guard::is_routers(packet) {
        return Err(DropReason::RogueRa);
    }
    if guard::is_unasked(packet) {
        return Err(DropReason::ForgedIcmp);
    }
    match sender {
        // The broadcast address of the pool is nobody's: an answer would go to everybody.
        Sender::Stranger if guard::is_group(packet.key.src, me) => Err(DropReason::Martian),
        Sender::Stranger => bridge::judge(packet, me.pool_id),
        _ => Ok(()),
    }
}

/// The stage for what has no note, or one of another policy: decided, and remembered, so that the answer is let back.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_leaving();
    let Some(me) = interface(packet.link) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let epoch = epoch();
    let sender = Sender::of(packet);
    let replies = packet.key.reversed(packet.link);
    let open = if packet.tracked { noted(packet, &replies) } else { None };
    // The note of a connection may be lost; its segments open nothing. Nor does what has no ports: who spoke first
    // cannot be told. Of the device, then, the rules alone are asked, and of errors. So they are of those on the pool's
    // own link, and for groups. Anybody else from afar could say that he goes on with something.
    let opens = packet.tracked && (open.is_some() || !packet.continues_tcp());
    let near = is_near(packet, me, sender);
    let goes_on = near || !opens && (sender.is_device() || packet.is_icmp_error());
    let input = match &open {
        Some(open) => PolicyInput::of_note(open),
        None => input_of(packet, me, sender),
    };
    match input.allowed() {
        Err(reason) if !goes_on || reason == DropReason::PolicyDenied => {
            if let Some(open) = open {
                let first = open.reply.epoch != REFUSED;
                open.reply.epoch = REFUSED;
                // The container learns at once; once is enough.
                if first && answer::into_reset(packet) {
                    verdict::note_drop(packet, reason);
                    return ACT_OK;
                }
            }
            return refused(packet, reason, sender.is_device());
        }
        _ => {}
    }
    match open {
        Some(open) => open.reply.epoch = epoch,
        None if opens && !near => flow::note_stack(&packet.key, &replies, epoch, false, sender.ring()),
        None => {}
    }
    packet.admit_leaving();
    ACT_OK
}

/// What the sender asks for: to reach this container, whatever group it names.
#[inline(always)]
fn input_of(packet: &Packet, me: &InterfaceInfo, sender: Sender) -> PolicyInput {
    let input = match sender {
        Sender::Container(them) => PolicyInput::of_sender(&packet.key, them),
        // A group that the device speaks to without an address.
        Sender::Device if packet.key.src.is_nobody() => {
            PolicyInput { src: if packet.v4 { me.gateway4 } else { me.gateway6 }, ..PolicyInput::of_key(&packet.key) }
        }
        _ => PolicyInput::of_key(&packet.key),
    };
    if is_mine(input.dst, me) {
        return input;
    }
    PolicyInput { dst: own_address(packet.v4, me), ..input }
}

/// Whether a socket of the device sends the packet.
#[inline(always)]
fn has_socket(packet: &Packet) -> bool {
    // SAFETY: a context field, that is only compared.
    unsafe { !(*packet.skb).__bindgen_anon_2.sk.is_null() }
}

/// Whether the sender is on the pool's own link, where there is nothing to publish.
#[inline(always)]
fn is_near(packet: &Packet, me: &InterfaceInfo, sender: Sender) -> bool {
    match sender {
        Sender::Container(them) => them.pool_id == me.pool_id,
        Sender::Device => false,
        // What the device's stack has forwarded has the gateway's MAC: somebody of another link says that he is near.
        Sender::Stranger if same_mac(packet.eth.src, me.gateway_mac) && packet.came_by() != me.bridge => false,
        Sender::Stranger => in_pool(packet.key.src, me) || packet.key.src.is_nobody(),
    }
}

#[inline(always)]
fn is_mine(addr: Ip, me: &InterfaceInfo) -> bool {
    addr == me.link_local || !addr.is_unspecified() && (addr == me.addr4 || addr == me.addr6)
}

/// Whether a packet of the device is part of having a link: neighbour discovery, and queries for groups.
#[inline(always)]
fn is_link_matter(packet: &Packet, me: &InterfaceInfo) -> bool {
    guard::is_discovery(packet) || !packet.tracked && guard::is_group(packet.key.dst, me)
}

/// The note of the packet's flow, whoever spoke first. A new connection is no part of an old one. What the map has of
/// flows by uplinks and between containers is no note: their packets do not come this way.
#[inline(always)]
fn noted(packet: &mut Packet, replies: &FlowKey) -> Option<&'static mut HalfOpenFlow> {
    // In place: the stack is too small for another key.
    let link = core::mem::take(&mut packet.key.ifindex);
    let answers = if packet.opens_tcp() { None } else { note(&packet.key) };
    packet.key.ifindex = link;
    answers.or_else(|| note(replies))
}

#[inline(always)]
fn note(key: &FlowKey) -> Option<&'static mut HalfOpenFlow> {
    // SAFETY: a map value stays readable for the program's run.
    let open = HALF_OPEN.get_ptr_mut(key).map(|open| unsafe { &mut *open })?;
    // A test of one bit becomes arithmetic with the pointer, that the verifier refuses.
    if open.reply.flags & !FLOW_DEVICE == FLOW_STACK { Some(open) } else { None }
}

/// A refused packet: the device learns at once, others are left in silence.
#[inline(always)]
fn refused(packet: &Packet, reason: DropReason, of_device: bool) -> i32 {
    if !of_device {
        return verdict::drop(packet, reason);
    }
    verdict::note_drop(packet, reason);
    answer::refused_device(packet)
}

#[inline(always)]
fn in_pool(addr: Ip, me: &InterfaceInfo) -> bool {
    if addr.is_v4() {
        return addr.words_be[3] & me.mask4_be == me.net4.words_be[3] && !me.net4.is_unspecified();
    }
    let a = addr.words_be;
    let (m, n) = (me.mask6.words_be, me.net6.words_be);
    let same = a[0] & m[0] == n[0] && a[1] & m[1] == n[1] && a[2] & m[2] == n[2] && a[3] & m[3] == n[3];
    addr.is_link_local() || (same && !me.net6.is_unspecified())
}
