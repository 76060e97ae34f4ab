//! ICMP and ICMPv6 errors: those about a known flow of the link that they come by are part of what was allowed with the
//! flow, and rewritten outside and inside where it is translated (RFC 5508, RFC 6146 section 3.5). Others are forgeries.

use crate::{
    deliver::{deliver_error, write_addresses},
    flow::{addr_diff, port_diff},
    maps::{FLOWS, HALF_OPEN, epoch, interface, is_local, is_of_device},
    packet::{IPPROTO_FRAGMENT, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Packet, load},
    stack::to_stack,
    verdict::{self, ACT_OK, count},
};
use aya_ebpf::{
    bindings::BPF_F_PSEUDO_HDR,
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
};
use pv_net_common::{
    DropReason, FlowEntry, FlowKey, Ip, Stat, csum,
    flow::{FLOW_NAT, FLOW_ROUTED, FLOW_STACK},
};

/// The packet that an error quotes.
struct Quoted {
    /// As it is quoted.
    src: Ip,
    dst: Ip,
    sport_be: u16,
    dport_be: u16,
    proto: u8,
    /// The IPv4 header's checksum.
    check: u16,
    /// Offset of its header, bytes from the frame's start.
    at: u32,
    /// Offset of its upper-layer header.
    l4: u32,
}

impl Quoted {
    #[inline(always)]
    fn read(packet: &Packet) -> Result<Self, DropReason> {
        let at = packet.l4 + 8;
        let mut quoted = if packet.v4 {
            let ip: [u32; 5] = load(packet.skb, at)?;
            let head = ip[0].to_ne_bytes();
            let fragment = ip[1].to_ne_bytes();
            // A later fragment quotes no ports.
            if head[0] >> 4 != 4 || head[0] & 0xf < 5 || fragment[2] & 0x1f != 0 || fragment[3] != 0 {
                return Err(DropReason::Malformed);
            }
            let rest = ip[2].to_ne_bytes();
            Self {
                src: Ip::from_v4_be(ip[3]),
                dst: Ip::from_v4_be(ip[4]),
                sport_be: 0,
                dport_be: 0,
                proto: rest[1],
                check: u16::from_ne_bytes([rest[2], rest[3]]),
                at,
                l4: at + (head[0] & 0xf) as u32 * 4,
            }
        } else {
            let ip: [u32; 10] = load(packet.skb, at)?;
            let mut proto = ip[1].to_ne_bytes()[2];
            let mut l4 = at + 40;
            if proto == IPPROTO_FRAGMENT {
                let header: [u8; 4] = load(packet.skb, l4)?;
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return Err(DropReason::Malformed);
                }
                proto = header[0];
                l4 += 8;
            }
            Self {
                src: Ip { words_be: [ip[2], ip[3], ip[4], ip[5]] },
                dst: Ip { words_be: [ip[6], ip[7], ip[8], ip[9]] },
                sport_be: 0,
                dport_be: 0,
                proto,
                check: 0,
                at,
                l4,
            }
        };
        let ports: [u16; 4] = load(packet.skb, quoted.l4)?;
        match quoted.proto {
            IPPROTO_TCP | IPPROTO_UDP => {
                quoted.sport_be = ports[0];
                quoted.dport_be = ports[1];
            }
            // Echo: the identifier stands for both. Nothing else of ICMP has a flow, and errors least of all.
            IPPROTO_ICMP | IPPROTO_ICMPV6 => {
                let kind = ports[0].to_ne_bytes()[0];
                let echo = if packet.v4 { kind == 8 || kind == 0 } else { kind == 128 || kind == 129 };
                if !echo {
                    return Err(DropReason::Unsupported);
                }
                quoted.sport_be = ports[2];
                quoted.dport_be = ports[2];
            }
            _ => return Err(DropReason::Unsupported),
        }
        Ok(quoted)
    }
}

/// The stage: an error about a known flow of its link is delivered, and any other one is dropped. Whether what it quotes of
/// a TCP segment lies in the window is for the one who sent that to say (RFC 5927 section 4.1): it alone knows its window.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let quoted = Quoted::read(packet).ok();
    let outside = interface(packet.link).is_none();
    if outside {
        packet.key.ifindex = 0;
    }
    let told = match &quoted {
        // An error goes to whoever sent what it quotes.
        Some(quoted) if quoted.src != packet.key.dst => None,
        Some(quoted) if !outside && packet.came_by() != packet.link => into_container(packet, quoted),
        Some(quoted) => error(packet, quoted),
        // The device has flows of its own, and its kernel knows which: of other protocols, too.
        None if outside && is_local(packet.key.dst) => return ACT_OK,
        None => None,
    };
    told.unwrap_or_else(|| verdict::drop(packet, DropReason::ForgedIcmp))
}

/// From a link that is no container's, by the bridge or the stack. The notes know which flows go that way.
#[inline(always)]
fn into_container(packet: &Packet, quoted: &Quoted) -> Option<i32> {
    let key = FlowKey {
        src: quoted.src,
        dst: quoted.dst,
        sport_be: quoted.sport_be,
        dport_be: quoted.dport_be,
        ifindex: packet.link,
        proto: quoted.proto as u32,
    };
    // Between two containers, and with the device, nobody else is on the way.
    if interface(packet.came_by()).is_some() || is_of_device(key.dst) || !is_noted(&key, epoch()) {
        return None;
    }
    packet.admit_leaving();
    Some(ACT_OK)
}

/// Translates and delivers an error about a flow that is known and allowed; `None` when it is about none.
#[inline(always)]
fn error(packet: &Packet, quoted: &Quoted) -> Option<i32> {
    let epoch = epoch();
    // The error goes where the quoted packet's replies go.
    let key = FlowKey {
        src: quoted.dst,
        dst: quoted.src,
        sport_be: quoted.dport_be,
        dport_be: quoted.sport_be,
        ifindex: packet.key.ifindex,
        proto: quoted.proto as u32,
    };
    // A container is no router: it tells of what was sent to itself.
    if key.ifindex != 0 && packet.key.src != key.src {
        return None;
    }
    let Some(entry) = known(&key, epoch) else {
        if key.ifindex == 0 {
            // The device has flows of its own, and its kernel knows which.
            return is_local(packet.key.dst).then_some(ACT_OK);
        }
        return is_noted(&key, epoch).then(|| to_stack(packet));
    };
    if entry.flags & FLOW_ROUTED != 0 && packet.ttl <= 1 {
        return Some(verdict::drop(packet, DropReason::TtlExpired));
    }
    count(Stat::SlowPath);
    if entry.flags & FLOW_NAT != 0 && translate(packet, quoted, &key, entry).is_err() {
        return Some(verdict::drop(packet, DropReason::Rewrite));
    }
    Some(deliver_error(packet, entry))
}

/// The entry for the replies to the quoted packet, if packets like that were sent. Decided under the policy in force is
/// enough in one direction: the quoted packet went that way, and this one may have been silent since.
#[inline(always)]
fn known(key: &FlowKey, epoch: u32) -> Option<&'static mut FlowEntry> {
    // SAFETY: map values stay readable for the program's run.
    let (entry, opposite) = unsafe {
        match FLOWS.get_ptr_mut(key) {
            Some(entry) => (&mut *entry, &*FLOWS.get_ptr(&(*entry).opposite_key(key.proto))?),
            None => {
                let open = &mut *HALF_OPEN.get_ptr_mut(key)?;
                (&mut open.reply, &open.forward)
            }
        }
    };
    let allowed = entry.epoch == epoch || opposite.epoch == epoch;
    (allowed && opposite.packets != 0 && entry.flags & FLOW_STACK == 0).then_some(entry)
}

/// Whether a flow with the device's stack, or by it, is noted and allowed, whoever spoke first: `key` is that of the
/// container's packets.
#[inline(always)]
fn is_noted(key: &FlowKey, epoch: u32) -> bool {
    // SAFETY: map values stay readable for the program's run.
    let of_key = |key: &FlowKey| HALF_OPEN.get_ptr(key).map(|open| unsafe { &*open });
    // Of the notes by the container's own packets some may be another pool's, with the same link-local addresses.
    let note = of_key(key).or_else(|| of_key(&key.reversed(0)).filter(|open| open.origin.ifindex == key.ifindex));
    note.is_some_and(|open| open.reply.flags & FLOW_STACK != 0 && open.reply.epoch == epoch)
}

#[inline(always)]
fn translate(packet: &Packet, quoted: &Quoted, key: &FlowKey, entry: &FlowEntry) -> Result<(), ()> {
    let skb = packet.skb.cast();
    // The flow's own end is seen by its translated address, a router in between by its own.
    let src = if packet.key.src == key.src { entry.src } else { packet.key.src };
    let outer = addr_diff(packet.key.src, packet.key.dst, src, entry.dst);
    write_addresses(packet, src, entry.dst, outer, packet.ttl - 1)?;
    // Inside stands a packet of the other direction.
    let inner = addr_diff(quoted.src, quoted.dst, entry.dst, entry.src);
    let mut diff = 0;
    // SAFETY: the helpers check offsets and lengths themselves.
    unsafe {
        let failed = if packet.v4 {
            let check = !csum::fold((!quoted.check) as u32 + csum::fold(inner) as u32);
            let addresses = [entry.dst.words_be[3], entry.src.words_be[3]];
            bpf_skb_store_bytes(skb, quoted.at + 10, (&raw const check).cast(), 2, 0)
                | bpf_skb_store_bytes(skb, quoted.at + 12, addresses.as_ptr().cast(), 8, 0)
        } else {
            diff += csum::fold(inner) as u32;
            let addresses = [entry.dst, entry.src];
            bpf_skb_store_bytes(skb, quoted.at + 8, addresses.as_ptr().cast(), 32, 0)
        };
        if failed != 0 {
            return Err(());
        }
        diff += inner_ports(packet, quoted, entry, inner)?;
        let check_at = packet.l4 + 2;
        if bpf_l4_csum_replace(skb, check_at, 0, diff as u64, 0) != 0 {
            return Err(());
        }
        if !packet.v4 && bpf_l4_csum_replace(skb, check_at, 0, outer as u64, BPF_F_PSEUDO_HDR as u64) != 0 {
            return Err(());
        }
    }
    Ok(())
}

/// Writes the quoted ports, and the quoted checksum where it is quoted; what both add to the outer checksum's sum.
#[inline(always)]
fn inner_ports(packet: &Packet, quoted: &Quoted, entry: &FlowEntry, inner: u32) -> Result<u32, ()> {
    let skb = packet.skb.cast();
    let echo = quoted.proto == IPPROTO_ICMP || quoted.proto == IPPROTO_ICMPV6;
    let (old, new) = if echo {
        ([quoted.sport_be, 0], [entry.dport_be, 0])
    } else {
        ([quoted.sport_be, quoted.dport_be], [entry.dport_be, entry.sport_be])
    };
    let ports = port_diff(old, new);
    let (at, size, check_at) = match quoted.proto {
        IPPROTO_TCP => (quoted.l4, 4, quoted.l4 + 16),
        IPPROTO_UDP => (quoted.l4, 4, quoted.l4 + 6),
        _ => (quoted.l4 + 4, 2, quoted.l4 + 2),
    };
    // SAFETY: the helper checks offset and length; `new` has four bytes.
    if unsafe { bpf_skb_store_bytes(skb, at, new.as_ptr().cast(), size, 0) } != 0 {
        return Err(());
    }
    let mut diff = ports;
    // TCP's may be beyond the quote's end; a UDP checksum of zero is none.
    if let Ok(check) = load::<u16>(packet.skb, check_at)
        && (quoted.proto != IPPROTO_UDP || check != 0)
    {
        let pseudo = if quoted.proto == IPPROTO_ICMP { 0 } else { csum::fold(inner) as u32 };
        let sum = (!check) as u32 + pseudo + csum::fold(ports) as u32;
        let mut new_check = !csum::fold(sum);
        // A UDP checksum of zero says that there is none (RFC 768).
        if quoted.proto == IPPROTO_UDP && new_check == 0 {
            new_check = 0xffff;
        }
        // SAFETY: as above.
        if unsafe { bpf_skb_store_bytes(skb, check_at, (&raw const new_check).cast(), 2, 0) } != 0 {
            return Err(());
        }
        diff += (!check) as u32 + new_check as u32;
    }
    Ok(diff)
}
