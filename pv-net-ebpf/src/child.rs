//! Macvlan and ipvlan interfaces. Their programs run in the container's namespace, on the interface itself, so ingress and egress
//! are the other way round than on a host-side link: at egress is what the container sends.
//!
//! An index says nothing there, since it is unique only within its namespace. The program that is attached to an
//! interface writes the interface's [`LinkId`] into the packet's `cb[0]` and the place into `cb[1]`, and tail-calls the
//! stage here.
//!
//! Nobody vouches for what comes in: it may be from the wire, or from a further macvlan, if the container has put its
//! own into the kernel's mode `bridge`. So a sender is a container only if the program on that container's interface
//! has noted the flow; everybody else is the outside, whatever addresses the packet has.
//!
//! Ipvlan interfaces have their parent's MAC, so no MAC tells their frames apart. What reaches one must have passed a
//! program before: a frame to one address that of the parent, one to a group that of the parent or of the sender.

use crate::{
    child_discovery, child_flow,
    child_policy::Way,
    device_if,
    guard::{self, same_mac},
    icmp::Quoted,
    maps::{child_at, device_at, interface, is_bridged, is_local, is_of_device, network, sender},
    packet::{IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_UDP, Kind, Packet},
    parent,
    tail_call::tail_call,
    verdict::{self, ACT_OK, ACT_SHOT, NEXT},
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_change_type};
use pv_net_common::{
    DropReason, FlowKey, InterfaceInfo, Ip, LinkId, Stage,
    endpoint::{INDEX_CHECKED, MARK_RETURNED, POOL_BRIDGED, POOL_PRIVATE, POOL_SHARED},
    link::{CHILD_DEVICE_IN, CHILD_DEVICE_OUT, CHILD_IN, CHILD_OUT, CHILD_PARENT},
};

/// Lets a packet of the container pass. This is final: a filter that the container has put behind could change what was
/// checked.
#[inline(always)]
fn let_out(packet: &Packet) -> i32 {
    packet.note_checked();
    ACT_OK
}

/// `PACKET_HOST`: the stack takes the packet.
const FOR_THIS_HOST: u32 = 0;

/// Where a packet is met; the number is in its `cb[1]`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum At {
    /// Egress of the container's interface.
    Out = CHILD_OUT,
    /// Ingress of the container's interface.
    In = CHILD_IN,
    /// Egress of the parent.
    Parent = CHILD_PARENT,
    /// Egress of the device's own interface.
    DeviceOut = CHILD_DEVICE_OUT,
    /// Ingress of the device's own interface.
    DeviceIn = CHILD_DEVICE_IN,
}

impl At {
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: a context field.
        match unsafe { (*skb).cb[1] } {
            CHILD_OUT => Self::Out,
            CHILD_PARENT => Self::Parent,
            CHILD_DEVICE_OUT => Self::DeviceOut,
            CHILD_DEVICE_IN => Self::DeviceIn,
            _ => Self::In,
        }
    }

    /// Which way a packet that is met here goes, seen from the interface.
    #[inline(always)]
    fn way(self) -> Way {
        match self {
            Self::In | Self::DeviceIn => Way::Inwards,
            Self::Out | Self::Parent | Self::DeviceOut => Way::Outwards,
        }
    }
}

/// The frame, with the interface's [`LinkId`] in its key and as its link.
#[inline(always)]
fn frame(skb: *mut __sk_buff) -> Option<(Packet, Kind)> {
    let mut packet = Packet::of(skb)?;
    // SAFETY: a context field, which the program before has written.
    packet.link = unsafe { (*skb).cb[0] };
    packet.key.link = LinkId::of_index(packet.link);
    let kind = packet.parse();
    Some((packet, kind))
}

/// Why a frame is dropped that is neither ARP nor readable IP.
#[inline(always)]
fn unread(kind: Kind) -> DropReason {
    match kind {
        Kind::PriorityTag | Kind::Vlan => DropReason::VlanTag,
        Kind::Other => DropReason::Ethertype,
        _ => DropReason::Malformed,
    }
}

/// What a container sends: on its interface, and again on the parent.
#[inline(always)]
pub fn out(skb: *mut __sk_buff) -> i32 {
    let Some((mut packet, kind)) = frame(skb) else { return ACT_SHOT };
    let Some(me) = interface(packet.id()) else {
        return verdict::drop(&packet, DropReason::UnknownInterface);
    };
    let judged = match kind {
        Kind::Ip => ip_out(&mut packet, me),
        Kind::Arp => guard::mac(&packet, me).and_then(|()| guard::arp(&packet, me)),
        other => Err(unread(other)),
    };
    match judged {
        Ok(()) if At::of(skb) == At::Out => let_out(&packet),
        Ok(()) => {
            let to_group = matches!(kind, Kind::Arp) || guard::is_group(packet.key.dst, me);
            // SAFETY: a context field.
            parent::pass(&packet, unsafe { (*skb).ifindex }, to_group)
        }
        Err(reason) => verdict::drop(&packet, reason),
    }
}

/// The source guard for an IP packet, and what no rule can allow.
#[inline(always)]
fn guarded(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    guard::mac(packet, me)?;
    if packet.v4 {
        guard::ipv4(packet, me)?
    } else {
        guard::ipv6(packet, me)?
    }
    let dst = packet.key.dst;
    if packet.is_lost() {
        Err(DropReason::FragmentLost)
    } else if dst.is_loopback() || dst.is_nobody() {
        Err(DropReason::Martian)
    } else if me.pool_flags & POOL_SHARED != 0 && packet.proto == IPPROTO_UDP && guard::is_for_servers(packet) {
        // A DHCP server would take it for the device, and the device's lease with it.
        Err(DropReason::RogueDhcp)
    } else {
        Ok(())
    }
}

#[inline(always)]
fn ip_out(packet: &mut Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    packet.forget().ok_or(DropReason::Malformed)?;
    packet.settle_leaving();
    guarded(packet, me)?;
    if is_link_matter(packet) {
        return Ok(());
    }
    decide(packet)
}

/// Whether the packet belongs to being on a link, and is not subject to rules: neighbour discovery and reports of group
/// memberships that the guard let pass.
#[inline(always)]
fn is_link_matter(packet: &Packet) -> bool {
    guard::is_discovery(packet) || guard::is_report(packet)
}

/// Goes on to the stage that decides about the packet's flow. Returns only when that stage is missing.
#[inline(always)]
fn decide(packet: &Packet) -> Result<(), DropReason> {
    tail_call(packet.skb, Stage::ChildFlow);
    Err(DropReason::UnknownInterface)
}

/// The stage for packets that the guard let pass.
#[inline(always)]
pub fn flow(packet: &mut Packet) -> i32 {
    let on = packet.link;
    packet.link = packet.key.link.number();
    let at = At::of(packet.skb);
    if at == At::Parent {
        packet.settle_leaving();
        return match by_flow(packet, At::Parent) {
            Ok(()) => parent::pass(packet, on, child_flow::is_to_group(packet)),
            Err(reason) => verdict::drop(packet, reason),
        };
    }
    let judged = if at.way() == Way::Inwards {
        packet.settle_fragment();
        by_flow(packet, At::In)
    } else {
        packet.settle_leaving();
        by_flow(packet, At::Out)
    };
    if let Err(reason) = judged {
        return verdict::drop(packet, reason);
    }
    if at.way() == Way::Inwards {
        packet.admit_fragments();
        packet.set_mark(0);
        return NEXT;
    }
    packet.admit_leaving();
    if at == At::DeviceOut { device_if::to_children(packet) } else { let_out(packet) }
}

#[inline(always)]
fn by_flow(packet: &Packet, at: At) -> Result<(), DropReason> {
    let way = at.way();
    if packet.is_icmp_error() {
        return about_known(packet, way.other());
    }
    if at == At::Parent { child_flow::is_let_pass(packet) } else { child_flow::decide(packet, way) }
}

/// Checks that an ICMP error is about a flow that is known. `quoted`: which way the quoted packet went.
#[inline(always)]
fn about_known(packet: &Packet, quoted: Way) -> Result<(), DropReason> {
    let quote = Quoted::read(packet).map_err(|_| DropReason::ForgedIcmp)?;
    let key = FlowKey {
        src: quote.src,
        dst: quote.dst,
        sport_be: quote.sport_be,
        dport_be: quote.dport_be,
        link: packet.key.link,
        proto: u32::from(quote.proto),
    };
    // An error goes to the sender of the quoted packet. A container reports only on packets that were sent to itself.
    let fits = quote.src == packet.key.dst && (quoted == Way::Outwards || quote.dst == packet.key.src);
    if fits && child_flow::is_known(&key, quoted) { Ok(()) } else { Err(DropReason::ForgedIcmp) }
}

/// What reaches a container.
#[inline(always)]
pub fn inward(skb: *mut __sk_buff) -> i32 {
    let Some((mut packet, kind)) = frame(skb) else { return ACT_SHOT };
    let Some(me) = interface(packet.id()) else {
        return verdict::drop(&packet, DropReason::UnknownInterface);
    };
    let judged = come_the_right_way(&packet, me).and_then(|()| match kind {
        _ if is_in_name(&packet, me) => Err(DropReason::SpoofedMac),
        Kind::Ip => ip_in(&mut packet, me),
        Kind::Arp => arp_in(&packet, me),
        other => Err(unread(other)),
    });
    match judged {
        Ok(()) => {
            packet.set_mark(0);
            NEXT
        }
        Err(reason) => verdict::drop(&packet, reason),
    }
}

/// Whether a frame has the MAC of somebody whose frames do not come this way: of the interface itself, or of a container.
/// To a pool of mode `bridge` programs hand on what its containers and the device send, so that it does not come by the
/// wire. To one of mode `private` no container's frame comes, also where a switch sends it back.
#[inline(always)]
fn is_in_name(packet: &Packet, me: &InterfaceInfo) -> bool {
    // All have the parent's.
    if me.pool_flags & POOL_SHARED != 0 {
        return false;
    }
    let private = me.pool_flags & POOL_PRIVATE != 0;
    let by_wire = me.pool_flags & POOL_BRIDGED != 0 && packet.mark() != MARK_RETURNED;
    if same_mac(packet.eth.src, me.mac) {
        return true;
    }
    if !private && !by_wire {
        return false;
    }
    sender(me.bridge, packet.eth.src).is_some_and(|from| if private { !from.is_outside() } else { is_bridged(from) })
}

/// Checks that a frame for an ipvlan interface has passed a program before. A container whose packet sockets leave out
/// the program on its interface, or that has made a further ipvlan on it, can send to the other interfaces past the parent:
/// frames to groups, and if it has changed the flags of all interfaces on the parent, others too.
#[inline(always)]
fn come_the_right_way(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    if me.pool_flags & POOL_SHARED == 0 {
        return Ok(());
    }
    let skb = packet.skb;
    if packet.is_to_all() {
        // SAFETY: a context field.
        return if unsafe { (*skb).tc_index } == INDEX_CHECKED { Ok(()) } else { Err(DropReason::ForgedSource) };
    }
    if packet.mark() != MARK_RETURNED {
        return Err(DropReason::ForgedSource);
    }
    // SAFETY: the helper checks the type itself.
    if unsafe { bpf_skb_change_type(skb, FOR_THIS_HOST) } == 0 { Ok(()) } else { Err(DropReason::Malformed) }
}

/// Whether the frame is from the device's own interface on the parent of `me`.
#[inline(always)]
fn is_by_device(packet: &Packet, me: &InterfaceInfo) -> bool {
    packet.mark() == MARK_RETURNED && device_at(me.bridge, packet.eth.src).is_some()
}

/// Whether somebody else than the device's own interface speaks for an address of the device, in a pool whose containers
/// reach the device by that interface. A link-local address may be the device's on another link. The pool's gateway is
/// whoever is configured, also where the device has its address on another link.
#[inline(always)]
fn is_foreign_for_device(addr: Ip, packet: &Packet, me: &InterfaceInfo) -> bool {
    let bridged = me.pool_flags & POOL_BRIDGED != 0;
    let elsewhere = addr.is_link_local() || addr == me.gateway4 || addr == me.gateway6;
    bridged && !elsewhere && is_local(addr) && !is_by_device(packet, me)
}

/// Checks that nobody else speaks for an address of a container or the device.
#[inline(always)]
fn arp_in(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    let arp = guard::read_arp(packet)?;
    match child_at(arp.sender, me.pool_id) {
        Some(owner) if !same_mac(owner.mac, arp.mac) || !same_mac(owner.mac, packet.eth.src) => {
            Err(DropReason::SpoofedArp)
        }
        None if is_foreign_for_device(arp.sender, packet, me) => Err(DropReason::SpoofedArp),
        _ => Ok(()),
    }
}

#[inline(always)]
fn ip_in(packet: &mut Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    packet.forget().ok_or(DropReason::Malformed)?;
    packet.settle_fragment();
    let (src, dst) = (packet.key.src, packet.key.dst);
    if packet.is_lost() {
        return Err(DropReason::FragmentLost);
    }
    let mine = dst == me.link_local || !dst.is_unspecified() && (dst == me.addr4 || dst == me.addr6);
    // A frame to all would bring a packet for an ipvlan interface alone past the parent.
    let past_parent = me.pool_flags & POOL_SHARED != 0 && packet.is_to_all();
    if mine && past_parent || !mine && !guard::is_group(dst, me) {
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
    if src.is_loopback() || guard::is_group(src, me) {
        return Err(DropReason::Martian);
    }
    if guard::is_discovery(packet) {
        return discovery_in(packet, me);
    }
    if src.is_nobody() {
        return Err(DropReason::Martian);
    }
    // A router's question for groups, or another host's report.
    if !mine && is_of_groups(packet) {
        return Ok(());
    }
    // The device sends by its own interface beside this one, and no pool's network is behind one.
    let forged = if is_of_device(src) { !is_by_device(packet, me) } else { network(src).is_some() };
    if forged {
        return Err(DropReason::ForgedSource);
    }
    // Containers of a pool are on one link, so no router is between them.
    if child_at(src, me.pool_id).is_some_and(|o| o.pool_id == me.pool_id && !same_mac(o.mac, packet.eth.src)) {
        return Err(DropReason::ForgedSource);
    }
    decide(packet)
}

/// Whether the packet is about group memberships: IGMP (RFC 3376) or MLD (RFC 3810).
#[inline(always)]
fn is_of_groups(packet: &Packet) -> bool {
    let mld = matches!(packet.l4_info, 130..=132 | 143);
    packet.v4 && packet.proto == IPPROTO_IGMP || !packet.v4 && packet.proto == IPPROTO_ICMPV6 && mld && !packet.later
}

/// Whether somebody else than its owner speaks for an address of a container or the device.
#[inline(always)]
fn is_foreign(addr: Ip, packet: &Packet, me: &InterfaceInfo) -> bool {
    match child_at(addr, me.pool_id) {
        Some(owner) => !same_mac(owner.mac, packet.eth.src),
        None => is_foreign_for_device(addr, packet, me),
    }
}

/// Checks that nobody else speaks for an address of a container or the device (RFC 4861, RFC 4862).
#[inline(always)]
fn discovery_in(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    if is_foreign(packet.key.src, packet, me)
        || guard::spoken_for(packet).is_some_and(|addr| is_foreign(addr, packet, me))
    {
        return Err(DropReason::SpoofedNd);
    }
    let is_childs = |addr: Ip| child_at(addr, me.pool_id).is_some();
    if is_childs(packet.key.src) || guard::spoken_for(packet).is_some_and(is_childs) {
        return child_discovery::names_its_sender(packet);
    }
    Ok(())
}
