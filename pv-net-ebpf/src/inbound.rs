//! `pv_to_container` and the stage `inbound`: what the bridge or the host's stack delivers to a container.
//!
//! The sender is told by the link on which the kernel received the packet, never by the packet's contents: a container
//! by its own link, the device when there was no link, and a stranger in every other case, whatever address it uses.

use crate::{
    answer, bridge,
    flow::{self, REFUSED},
    guard::{self, same_mac},
    maps::{HALF_OPEN, epoch, interface},
    packet::{Kind, Packet, TCP_RST},
    policy_input::{PolicyInput, own_address},
    share,
    tail_call::tail_call,
    verdict::{self, ACT_OK, ACT_SHOT},
};
use pv_net_common::{
    DropReason, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, LinkId, Stage,
    endpoint::POOL_SLAAC,
    flow::{FLOW_DEVICE, FLOW_STACK},
};

/// Who sent the packet.
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
            // When the kernel reassembles an IPv6 packet and fragments it again, it loses the link on which the packet
            // came in. Fragments that the device itself sends still have their socket.
            0 if packet.v4 || !packet.fragment || has_socket(packet) => Self::Device,
            0 => Self::Stranger,
            link => interface(LinkId::of_index(link)).map_or(Self::Stranger, Self::Container),
        }
    }

    #[inline(always)]
    fn is_device(self) -> bool {
        matches!(self, Self::Device)
    }

    /// The ring of [`share`] that counts the flows which this sender opens.
    #[inline(always)]
    fn ring(self) -> u32 {
        match self {
            Self::Device => share::DEVICE,
            Self::Container(_) | Self::Stranger => share::STRANGERS,
        }
    }
}

/// Entry point for a frame on its way into a container.
#[inline(always)]
pub fn to_container(packet: &mut Packet, kind: Kind) -> i32 {
    let Some(me) = interface(packet.id()) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let refused = match kind {
        Kind::Ip => return ip(packet, me),
        // A container's ARP was checked by the program on its own link.
        Kind::Arp if interface(LinkId::of_index(packet.came_by())).is_some() || packet.came_by() == 0 => return ACT_OK,
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
    // Of what is advertised to other hosts a program in the container would make an address, and use that instead of its own.
    if me.pool_flags & POOL_SLAAC != 0 && sender.is_device() && guard::is_routers(packet) {
        return ACT_SHOT;
    }
    if let Err(reason) = judge(packet, me, sender) {
        return verdict::drop(packet, reason);
    }
    // A packet that goes back by the link that it came in by is an answer made by the program on that link.
    let answers = packet.came_by() == packet.link;
    if packet.is_icmp_error() && !sender.is_device() && !answers {
        return tail_call(packet.skb, Stage::Icmp);
    }
    let of_link = match sender {
        // Neighbour discovery that the program on the sender's link let pass belongs to the link and is not subject to
        // rules.
        Sender::Container(_) => guard::is_discovery(packet) || answers && ends(packet),
        Sender::Device => is_link_matter(packet, me),
        Sender::Stranger => guard::is_discovery(packet),
    };
    // A reset or an ICMP error opens nothing; it may be the very answer to a segment that was refused.
    if of_link || packet.later || sender.is_device() && ends(packet) {
        packet.admit_leaving();
        return ACT_OK;
    }
    let replies = packet.key.reversed(packet.id());
    match noted(packet, &replies) {
        Some(open) if packet.tracked && open.reply.epoch == epoch() => {
            packet.admit_leaving();
            ACT_OK
        }
        _ => tail_call(packet.skb, Stage::Inbound),
    }
}

/// Whether the packet ends something: a reset, or an ICMP error.
#[inline(always)]
fn ends(packet: &Packet) -> bool {
    packet.is_icmp_error() || packet.tcp_has(TCP_RST)
}

/// Checks that apply whatever the rules say.
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
    // A host on the pool's own link asks everybody for an address or a router: the pool's servers hear it on the bridge,
    // and a container is no such server.
    if guard::is_for_servers(packet) && guard::is_group(dst, me) {
        return Err(DropReason::NotAddressed);
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
        // A source that is the pool's broadcast address belongs to nobody, and an answer to it would go to everybody.
        Sender::Stranger if guard::is_group(packet.key.src, me) => Err(DropReason::Martian),
        Sender::Stranger => bridge::judge(packet, me.pool_id),
        _ => Ok(()),
    }
}

/// The stage for packets without a note, or with a note of another epoch: the rules decide, and the flow is noted, so
/// that its replies pass.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_leaving();
    let Some(me) = interface(packet.id()) else {
        return verdict::drop(packet, DropReason::UnknownInterface);
    };
    let epoch = epoch();
    let sender = Sender::of(packet);
    let replies = packet.key.reversed(packet.id());
    let open = if packet.tracked { noted(packet, &replies) } else { None };
    // Some packets do not show who opened their flow: TCP segments of a connection whose note may have been lost, and
    // protocols without ports. When the device sends such a packet, and for ICMP errors, only the rules apply and not
    // the pools' defaults. The same holds for senders on the pool's own link, and for groups. Anybody else could claim
    // to continue something.
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
                // The container learns by a reset that its connection is refused. One reset is enough.
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

/// The question to the policy: may this sender reach this container. A packet to a group counts as one to the
/// container's own address.
#[inline(always)]
fn input_of(packet: &Packet, me: &InterfaceInfo, sender: Sender) -> PolicyInput {
    let input = match sender {
        Sender::Container(them) => PolicyInput::of_sender(&packet.key, them),
        // The device sends to a group before it has an address (source `::` or 0.0.0.0): it counts as the gateway.
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

/// Whether a socket of the device sent the packet.
#[inline(always)]
fn has_socket(packet: &Packet) -> bool {
    // SAFETY: a context field, that is only compared.
    unsafe { !(*packet.skb).__bindgen_anon_2.sk.is_null() }
}

/// Whether the sender is on the pool's own link. There published ports and isolation do not apply.
#[inline(always)]
fn is_near(packet: &Packet, me: &InterfaceInfo, sender: Sender) -> bool {
    match sender {
        Sender::Container(them) => them.pool_id == me.pool_id,
        Sender::Device => false,
        // What the device's stack has forwarded has the gateway's MAC, so this is a sender on another link with a
        // source address of the pool.
        Sender::Stranger if same_mac(packet.eth.src, me.gateway_mac) && packet.came_by() != me.bridge => false,
        Sender::Stranger => in_pool(packet.key.src, me) || packet.key.src.is_nobody(),
    }
}

#[inline(always)]
fn is_mine(addr: Ip, me: &InterfaceInfo) -> bool {
    addr == me.link_local || !addr.is_unspecified() && (addr == me.addr4 || addr == me.addr6)
}

/// Whether a packet of the device belongs to having a link: neighbour discovery, queries for group members, and answers
/// of a DHCP server, which have another source than the address that was asked.
#[inline(always)]
fn is_link_matter(packet: &Packet, me: &InterfaceInfo) -> bool {
    guard::is_discovery(packet)
        || guard::is_dhcp_answer(packet)
        || !packet.tracked && guard::is_group(packet.key.dst, me)
}

/// The note of the packet's flow, whoever opened it. A packet that opens a TCP connection matches no older note of the
/// other direction. Entries of flows by uplinks and between containers are not notes: their packets do not come this
/// way.
#[inline(always)]
fn noted(packet: &mut Packet, replies: &FlowKey) -> Option<&'static mut HalfOpenFlow> {
    // The key is changed in place and restored, since the stack has no room for a second key.
    let link = core::mem::take(&mut packet.key.link);
    let answers = if packet.opens_tcp() { None } else { note(&packet.key) };
    packet.key.link = link;
    answers.or_else(|| note(replies))
}

#[inline(always)]
fn note(key: &FlowKey) -> Option<&'static mut HalfOpenFlow> {
    // SAFETY: a map value stays readable for the program's run.
    let open = HALF_OPEN.get_ptr_mut(key).map(|open| unsafe { &mut *open })?;
    // Compared as a whole: of a test of one bit the compiler makes arithmetic on the pointer, which the verifier
    // refuses.
    if open.reply.flags & !FLOW_DEVICE == FLOW_STACK { Some(open) } else { None }
}

/// Drops a refused packet. The device gets an answer at once, other senders get none.
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
