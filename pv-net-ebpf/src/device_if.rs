//! The device's own interface beside the macvlan interfaces of containers. By it device and containers reach each other.
//! It is in the device's namespace, so its index is its [`LinkId`](pv_net_common::LinkId).
//!
//! What it sends never leaves by the wire: its program puts it into the parent's ingress, from where the kernel hands it to
//! the container's interface. What it gets must come from there too, which a mark proves that nobody but programs of pv-net
//! can have set in this namespace.

use crate::{
    child_discovery,
    guard::{self, same_mac},
    maps::{child_at, interface, is_bridged, is_local, sender},
    packet::{Kind, Packet, load},
    parent,
    tail_call::tail_call,
    verdict::{self, ACT_SHOT, NEXT},
};
use aya_ebpf::bindings::__sk_buff;
use pv_net_common::{
    DropReason, EndpointInfo, InterfaceInfo, Ip, Stage,
    endpoint::{MARK_RETURNED, POOL_BRIDGED, POOL_DEVICE},
    link::{CHILD_DEVICE_IN, CHILD_DEVICE_OUT},
};

/// `ND_NEIGHBOUR_SOLICITATION` (RFC 4861 section 4.3).
const SOLICITATION: u8 = 135;

/// What becomes of a packet, unless it is dropped for a reason that counts.
enum Judged {
    /// It belongs to having a link, and is not subject to rules.
    LinkMatter,
    /// It is for one receiver: the stage for flows decides.
    Unicast,
    /// It is nobody's business. The kernel and other programs send much to groups on each link.
    Unheard,
}

/// The device's interface by which the packet comes or goes.
#[inline(always)]
fn own(packet: &Packet) -> Option<&'static InterfaceInfo> {
    interface(packet.id()).filter(|me| me.pool_flags & POOL_DEVICE != 0)
}

/// The container with this address, if the device reaches it by the interface `me`.
#[inline(always)]
fn container(addr: Ip, me: &InterfaceInfo) -> Option<&'static EndpointInfo> {
    let found = child_at(addr, me.pool_id).filter(|of| of.pool_flags & POOL_BRIDGED != 0)?;
    interface(found.link).filter(|of| of.bridge == me.bridge)?;
    Some(found)
}

/// Sends a checked packet to the interfaces of containers.
#[inline(always)]
pub fn to_children(packet: &Packet) -> i32 {
    let Some(me) = own(packet) else { return ACT_SHOT };
    packet.set_mark(MARK_RETURNED);
    parent::return_by(me.bridge)
}

/// Goes on to the stage that decides about the packet's flow.
#[inline(always)]
fn decide(packet: &Packet, at: u32) -> i32 {
    // SAFETY: context fields that programs on links may write; the stage reads them.
    unsafe {
        (*packet.skb).cb[0] = packet.link;
        (*packet.skb).cb[1] = at;
    }
    tail_call(packet.skb, Stage::ChildFlow)
}

/// What the device sends by its interface.
#[inline(always)]
pub fn out(skb: *mut __sk_buff) -> i32 {
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let Some(me) = own(&packet) else {
        return verdict::drop(&packet, DropReason::UnknownInterface);
    };
    let judged = match packet.parse() {
        Kind::Ip => ip_out(&mut packet, me),
        Kind::Arp => arp_out(&packet, me),
        _ => Ok(Judged::Unheard),
    };
    match judged {
        Ok(Judged::LinkMatter) => to_children(&packet),
        Ok(Judged::Unicast) => decide(&packet, CHILD_DEVICE_OUT),
        Ok(Judged::Unheard) => ACT_SHOT,
        Err(reason) => verdict::drop(&packet, reason),
    }
}

/// ARP of the device goes to containers only: on the wire it would tell others that the device's addresses are here.
#[inline(always)]
fn arp_out(packet: &Packet, me: &InterfaceInfo) -> Result<Judged, DropReason> {
    guard::mac(packet, me)?;
    let arp = guard::read_arp(packet)?;
    let told = same_mac(arp.mac, me.mac) && is_local(arp.sender) && container(arp.target, me).is_some();
    Ok(if told { Judged::LinkMatter } else { Judged::Unheard })
}

#[inline(always)]
fn ip_out(packet: &mut Packet, me: &InterfaceInfo) -> Result<Judged, DropReason> {
    packet.forget().ok_or(DropReason::Malformed)?;
    packet.settle_leaving();
    guard::mac(packet, me)?;
    // What the device forwards is not its own, also when its source has become an address of the device. The kernel makes
    // fragments of IPv6 without noting by which link the packet came.
    if packet.came_by() != 0 || packet.fragment && !packet.has_socket() {
        return Err(DropReason::PoolIsolated);
    }
    let to_all = packet.eth.dst[0] & 1 != 0;
    if guard::is_neighbour(packet) {
        let target = Ip { words_be: load(packet.skb, packet.l4 + 8)? };
        let asks = to_all && packet.l4_info == SOLICITATION && container(target, me).is_some();
        if !is_local(packet.key.src) || !asks && !is_containers(packet, me) {
            return Ok(Judged::Unheard);
        }
        child_discovery::names_its_sender(packet)?;
        return Ok(Judged::LinkMatter);
    }
    if to_all {
        return Ok(Judged::Unheard);
    }
    if !is_local(packet.key.src) {
        return Err(DropReason::ForgedSource);
    }
    if packet.is_lost() {
        return Err(DropReason::FragmentLost);
    }
    match container(packet.key.dst, me) {
        Some(to) if same_mac(to.mac, packet.eth.dst) => Ok(Judged::Unicast),
        _ => Err(DropReason::NotAddressed),
    }
}

/// Whether the frame goes to the interface of a container that the device reaches.
#[inline(always)]
fn is_containers(packet: &Packet, me: &InterfaceInfo) -> bool {
    sender(me.bridge, packet.eth.dst).is_some_and(is_bridged)
}

/// What reaches the device by its interface.
#[inline(always)]
pub fn inward(skb: *mut __sk_buff) -> i32 {
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let Some(me) = own(&packet) else {
        return verdict::drop(&packet, DropReason::UnknownInterface);
    };
    let to_all = packet.eth.dst[0] & 1 != 0;
    let judged = if packet.mark() != MARK_RETURNED {
        // By the wire. What is sent to groups there, the parent hears itself.
        if to_all { Ok(Judged::Unheard) } else { Err(DropReason::NotAddressed) }
    } else {
        match sender(me.bridge, packet.eth.src).filter(|from| is_bridged(*from)).and_then(interface) {
            Some(from) => match packet.parse() {
                Kind::Ip => ip_in(&mut packet, to_all),
                Kind::Arp => arp_in(&packet, from),
                _ => Ok(Judged::Unheard),
            },
            None => Err(DropReason::SpoofedMac),
        }
    };
    match judged {
        Ok(Judged::LinkMatter) => {
            packet.set_mark(0);
            NEXT
        }
        Ok(Judged::Unicast) => decide(&packet, CHILD_DEVICE_IN),
        Ok(Judged::Unheard) => ACT_SHOT,
        Err(reason) => verdict::drop(&packet, reason),
    }
}

#[inline(always)]
fn arp_in(packet: &Packet, from: &InterfaceInfo) -> Result<Judged, DropReason> {
    guard::arp(packet, from)?;
    Ok(if is_local(guard::read_arp(packet)?.target) { Judged::LinkMatter } else { Judged::Unheard })
}

/// The sender's guard has let the packet pass. Groups are not heard here, whatever `host_access` says.
#[inline(always)]
fn ip_in(packet: &mut Packet, to_all: bool) -> Result<Judged, DropReason> {
    packet.forget().ok_or(DropReason::Malformed)?;
    packet.settle_fragment();
    if guard::is_neighbour(packet) {
        let target = Ip { words_be: load(packet.skb, packet.l4 + 8)? };
        let for_device = packet.l4_info != SOLICITATION || is_local(target);
        return Ok(if for_device && !packet.key.src.is_unspecified() { Judged::LinkMatter } else { Judged::Unheard });
    }
    if to_all {
        return Ok(Judged::Unheard);
    }
    // A link-local address of the device is reached on the device's other links only, and from here no answer leads to one.
    if !is_local(packet.key.dst) || packet.key.dst.is_link_local() || packet.key.src.is_link_local() {
        return Err(DropReason::NotAddressed);
    }
    if packet.is_lost() { Err(DropReason::FragmentLost) } else { Ok(Judged::Unicast) }
}
