//! Parents of macvlan and ipvlan interfaces: what leaves by the wire, and what goes from one container to another.
//!
//! The kernel sends all that a macvlan interface sends to the parent's egress (mode `vepa`). What goes to another container
//! of a bridged pool is put into the parent's ingress there, after the sender's guard, and the kernel hands it to the
//! receiver's interface. So a further macvlan that a container has made reaches nobody: it is no known sender.
//!
//! Ipvlan interfaces are in the kernel's mode `l2` with the flag `vepa`, so that what goes to one address takes the same way.
//! They have the parent's MAC, so here their frames are told by addresses. The kernel gives a frame for an address of one to
//! that interface, a frame to a group to all.

use crate::{
    child_discovery,
    guard::{self, same_mac},
    maps::{child_at, interface, is_bridged, is_of_device, sender, shared_at},
    packet::{ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Kind, Packet, read},
    tail_call::tail_call,
    verdict::{self, ACT_OK, ACT_SHOT, NEXT},
};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::{bpf_clone_redirect, bpf_redirect, bpf_skb_change_type},
};
use pv_net_common::{
    DropReason, InterfaceInfo, Ip, LinkId, Stage,
    endpoint::{MARK_RETURNED, POOL_BRIDGED, POOL_SHARED},
    link::CHILD_PARENT,
};

/// `PACKET_OTHERHOST`: the stack drops the packet.
const FOR_ANOTHER_HOST: u32 = 3;
/// `PACKET_HOST`: the frame has the link's own MAC as its destination.
const FOR_THIS_HOST: u32 = 0;

/// Lets a checked packet of a container go on from the parent with index `parent`: to the wire, to another container or the
/// device, or to both if `to_group`.
#[inline(always)]
pub fn pass(packet: &Packet, parent: u32, to_group: bool) -> i32 {
    let Some(me) = interface(packet.key.link) else { return NEXT };
    if me.pool_flags & POOL_SHARED != 0 {
        return pass_shared(packet, parent, me);
    }
    if me.pool_flags & POOL_BRIDGED == 0 {
        return NEXT;
    }
    let for_all = packet.is_to_all();
    if !for_all && !sender(parent, packet.eth.dst).is_some_and(is_bridged) {
        return NEXT;
    }
    packet.set_mark(MARK_RETURNED);
    if !for_all {
        return return_by(parent);
    }
    // A packet to one address in a frame to all is no business of other containers.
    if to_group {
        // SAFETY: the helper has no preconditions. Where it fails, the network has lost a packet.
        let _ = unsafe { bpf_clone_redirect(packet.skb, parent, u64::from(BPF_F_INGRESS)) };
    }
    packet.set_mark(0);
    NEXT
}

/// [`pass`] for an ipvlan interface. The kernel has copied a frame to a group to the other interfaces before.
#[inline(always)]
fn pass_shared(packet: &Packet, parent: u32, me: &InterfaceInfo) -> i32 {
    if packet.is_to_all() || !same_mac(packet.eth.dst, me.mac) {
        return NEXT;
    }
    let dst = if packet.eth.proto_be == ETH_P_ARP.to_be() {
        guard::read_arp(packet).map_or(Ip::UNSPECIFIED, |arp| arp.target)
    } else {
        packet.key.dst
    };
    // The device has the same MAC, and is not reached this way.
    if shared_at(dst, parent).is_none() {
        return verdict::drop(packet, DropReason::NotAddressed);
    }
    packet.set_mark(MARK_RETURNED);
    return_by(parent)
}

/// Puts the packet into the ingress of the parent with index `parent`. It has the mark [`MARK_RETURNED`].
#[inline(always)]
pub fn return_by(parent: u32) -> i32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(parent, u64::from(BPF_F_INGRESS)) as i32 }
}

/// What comes in by the parent. What is from a container's MAC is for other interfaces on the parent, never for the device
/// itself, whose stack drops it. No other program sees it, since it comes from no uplink.
#[inline(always)]
pub fn in_from(skb: *mut __sk_buff) -> i32 {
    let Some(packet) = Packet::of(skb) else { return ACT_SHOT };
    let Some(from) = sender(packet.link, packet.eth.src).filter(|from| !from.is_outside()) else {
        return match by_wire(&packet) {
            Ok(To::Shared) => {
                packet.set_mark(MARK_RETURNED);
                keep_from_device(skb)
            }
            Ok(To::Device) => NEXT,
            Ok(To::All) => {
                packet.note_checked();
                NEXT
            }
            Err(reason) => verdict::drop(&packet, reason),
        };
    };
    // What the device sends to containers never leaves by the wire, so it does not come from there either.
    if !from.is_assigned() && packet.mark() != MARK_RETURNED {
        return verdict::drop(&packet, DropReason::SpoofedMac);
    }
    keep_from_device(skb)
}

/// Lets a frame go on to other interfaces on the parent, but not to the device's stack.
#[inline(always)]
fn keep_from_device(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the helper checks the type itself.
    if unsafe { bpf_skb_change_type(skb, FOR_ANOTHER_HOST) } == 0 { ACT_OK } else { ACT_SHOT }
}

/// For whom a frame is that comes in by the parent.
enum To {
    /// The device, or interfaces with a MAC of their own.
    Device,
    /// An ipvlan interface.
    Shared,
    /// All.
    All,
}

/// Checks a frame of somebody on the wire, or of one ipvlan interface to another. A container with a macvlan interface
/// reaches the device by the device's own interface, one with an ipvlan interface does not, so nobody sends to the device or
/// to a group here with a container's address. What an ipvlan interface sends to another one has a mark.
#[inline(always)]
fn by_wire(packet: &Packet) -> Result<To, DropReason> {
    let skb = packet.skb;
    let kind = u16::from_be(packet.eth.proto_be);
    let to = if packet.is_to_all() { To::All } else { To::Device };
    let (src, dst) = match kind {
        ETH_P_IP => {
            let [src, dst]: [u32; 2] = read(skb, ETH_LEN + 12)?;
            (Ip::from_v4_be(src), Ip::from_v4_be(dst))
        }
        ETH_P_IPV6 => {
            let [src, dst]: [[u32; 4]; 2] = read(skb, ETH_LEN + 8)?;
            (Ip { words_be: src }, Ip { words_be: dst })
        }
        // The kernel looks behind any number of tags that name no VLAN.
        // SAFETY: context fields.
        _ if is_tag(kind) && unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & 0xfff == 0 } => {
            return Err(DropReason::VlanTag);
        }
        ETH_P_ARP => {
            let Ok(arp) = guard::read_arp(packet) else { return Ok(to) };
            return to_shared(packet, arp.sender, arp.target, to, DropReason::SpoofedArp);
        }
        _ => return Ok(to),
    };
    if is_of_device(dst) || dst.is_multicast() || dst.is_limited_broadcast() {
        return if child_at(src, 0).is_some() { Err(DropReason::ForgedSource) } else { Ok(to) };
    }
    to_shared(packet, src, dst, to, DropReason::ForgedSource)
}

/// Whether a frame for `dst` is for an ipvlan interface; otherwise it is for `other`. `forged` is the reason to drop it if it
/// is, and another interface beside that one has its source, which none has sent.
#[inline(always)]
fn to_shared(packet: &Packet, src: Ip, dst: Ip, other: To, forged: DropReason) -> Result<To, DropReason> {
    // SAFETY: a context field.
    let mine = unsafe { (*packet.skb).pkt_type } == FOR_THIS_HOST;
    if !mine || shared_at(dst, packet.link).is_none() {
        return Ok(other);
    }
    if packet.mark() != MARK_RETURNED && shared_at(src, packet.link).is_some() { Err(forged) } else { Ok(To::Shared) }
}

/// Whether this EtherType is that of a VLAN tag.
#[inline(always)]
fn is_tag(kind: u16) -> bool {
    matches!(kind, ETH_P_8021Q | ETH_P_8021AD)
}

/// Checks a frame with a MAC of the device: it may be from a further macvlan of a container. The device speaks for no
/// container, and names no other link-layer address than its own. Returns the ipvlan interface whose frame it is, if its
/// addresses are those of one.
#[inline(always)]
fn in_devices_name(packet: &mut Packet) -> Result<Option<LinkId>, DropReason> {
    match packet.parse() {
        Kind::Ip => {
            packet.forget().ok_or(DropReason::Malformed)?;
            let src = packet.key.src;
            let speaker = if src.is_unspecified() { guard::spoken_for(packet) } else { Some(src) };
            if let Some(link) = speaker.and_then(|addr| shared_at(addr, packet.link)) {
                return Ok(Some(link));
            }
            let speaks_for_child = |addr: Ip| child_at(addr, 0).is_some();
            if speaks_for_child(packet.key.src) {
                return Err(if packet.v4 { DropReason::SpoofedIpv4 } else { DropReason::SpoofedIpv6 });
            }
            if guard::spoken_for(packet).is_some_and(speaks_for_child) {
                return Err(DropReason::SpoofedNd);
            }
            child_discovery::names_its_sender(packet)?;
            Ok(None)
        }
        Kind::Arp => {
            let arp = guard::read_arp(packet)?;
            let speaker = if arp.is_probe() { arp.target } else { arp.sender };
            if let Some(link) = shared_at(speaker, packet.link) {
                return Ok(Some(link));
            }
            let own = same_mac(arp.mac, packet.eth.src) && child_at(arp.sender, 0).is_none();
            if own { Ok(None) } else { Err(DropReason::SpoofedArp) }
        }
        Kind::PriorityTag if hides_ip(packet) => Err(DropReason::VlanTag),
        Kind::Unreadable => Err(DropReason::Malformed),
        Kind::PriorityTag | Kind::Vlan | Kind::Other => Ok(None),
    }
}

/// Whether IP, ARP or another tag is behind a priority tag, where it is not read.
#[inline(always)]
fn hides_ip(packet: &Packet) -> bool {
    let mut behind = u16::from_be(packet.eth.proto_be);
    if is_tag(behind) {
        behind = read(packet.skb, ETH_LEN + 2).map_or(ETH_P_IP, u16::from_be);
    }
    is_tag(behind) || matches!(behind, ETH_P_IP | ETH_P_IPV6 | ETH_P_ARP)
}

/// What leaves by the parent. Only the device itself and the known interfaces send there, and an interface only what
/// the program on it has let pass: a container with `CAP_NET_ADMIN` can make further macvlans on its own one, which the
/// kernel puts on the same parent, where no program is attached. The device's own interface beside them is no sender here:
/// its program puts everything into the parent's ingress.
#[inline(always)]
pub fn out(skb: *mut __sk_buff) -> i32 {
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    let Some(mut sender) = sender(packet.link, packet.eth.src) else {
        return verdict::drop(&packet, DropReason::SpoofedMac);
    };
    if sender.is_outside() {
        sender = match in_devices_name(&mut packet) {
            Ok(None) => return NEXT,
            Ok(Some(sharing)) => sharing,
            Err(reason) => return verdict::drop(&packet, reason),
        };
    }
    if !sender.is_assigned() {
        return verdict::drop(&packet, DropReason::SpoofedMac);
    }
    // Other programs on the parent must not take the sender's mark for one of this namespace.
    packet.set_mark(0);
    // SAFETY: context fields that programs on links may write; the stage reads them.
    unsafe {
        (*skb).cb[0] = sender.number();
        (*skb).cb[1] = CHILD_PARENT;
    }
    tail_call(skb, Stage::ChildOut)
}
