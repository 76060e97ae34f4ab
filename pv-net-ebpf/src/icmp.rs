//! ICMP and ICMPv6 errors. One about a known flow of the link that it came in by is allowed with the flow. If the flow
//! is translated, the error's own header and the packet that it quotes are translated too (RFC 5508, RFC 6146 section
//! 3.5). All other errors count as forged and are dropped.

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
    DropReason, FlowEntry, FlowKey, Ip, LinkId, Stat, csum,
    flow::{FLOW_NAT, FLOW_ROUTED, FLOW_STACK},
};

/// The packet that an error quotes. Addresses and ports are as they stand in the quote.
pub struct Quoted {
    /// Source address.
    pub src: Ip,
    pub dst: Ip,
    pub sport_be: u16,
    pub dport_be: u16,
    pub proto: u8,
    /// The IPv4 header's checksum, 0 for IPv6.
    check: u16,
    /// Offset of the quoted IP header from the frame's start, bytes.
    at: u32,
    /// Offset of the quoted upper-layer header from the frame's start, bytes.
    l4: u32,
}

impl Quoted {
    #[inline(always)]
    pub fn read(packet: &Packet) -> Result<Self, DropReason> {
        let at = packet.l4 + 8;
        let mut quoted = if packet.v4 {
            let ip: [u32; 5] = load(packet.skb, at)?;
            let head = ip[0].to_ne_bytes();
            let fragment = ip[1].to_ne_bytes();
            // A later fragment has no ports to find its flow by.
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
            // Echo: the identifier stands for both ports. Other ICMP types have no flow, and no error may be about an
            // error.
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

/// The stage: delivers an error about a known flow of its link, and drops any other. Whether a quoted TCP sequence
/// number lies in the window is left to the receiver (RFC 5927 section 4.1): only the end that sent the segment knows
/// its window.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    let quoted = Quoted::read(packet).ok();
    let outside = interface(packet.id()).is_none();
    if outside {
        packet.key.link = LinkId::OUTSIDE;
    }
    let told = match &quoted {
        // An error must be addressed to the sender of the packet that it quotes.
        Some(quoted) if quoted.src != packet.key.dst => None,
        Some(quoted) if !outside && packet.came_by() != packet.link => into_container(packet, quoted),
        Some(quoted) => error(packet, quoted),
        // The quote cannot be read, for example because of its protocol. The device has flows of its own, which only
        // its kernel knows.
        None if outside && is_local(packet.key.dst) => return ACT_OK,
        None => None,
    };
    told.unwrap_or_else(|| verdict::drop(packet, DropReason::ForgedIcmp))
}

/// An error that reaches a container by the bridge or the host's stack. It passes when the quoted flow is noted in the
/// half-open table.
#[inline(always)]
fn into_container(packet: &Packet, quoted: &Quoted) -> Option<i32> {
    let key = FlowKey {
        src: quoted.src,
        dst: quoted.dst,
        sport_be: quoted.sport_be,
        dport_be: quoted.dport_be,
        link: packet.id(),
        proto: quoted.proto as u32,
    };
    // Between two containers, and between a container and the device, there is no router that could send an error.
    if interface(LinkId::of_index(packet.came_by())).is_some() || is_of_device(key.dst) || !is_noted(&key, epoch()) {
        return None;
    }
    packet.admit_leaving();
    Some(ACT_OK)
}

/// Translates and delivers an error about a flow that is known and allowed; `None` when it is about none.
#[inline(always)]
fn error(packet: &Packet, quoted: &Quoted) -> Option<i32> {
    let epoch = epoch();
    // The error goes the same way as the replies to the quoted packet, so it is found by their key.
    let key = FlowKey {
        src: quoted.dst,
        dst: quoted.src,
        sport_be: quoted.dport_be,
        dport_be: quoted.sport_be,
        link: packet.key.link,
        proto: quoted.proto as u32,
    };
    // A container is no router: it may only report on packets that were sent to itself.
    if !key.link.is_outside() && packet.key.src != key.src {
        return None;
    }
    let Some(entry) = known(&key, epoch) else {
        if key.link.is_outside() {
            // The device has flows of its own, which only its kernel knows.
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

/// The entry for the replies to the quoted packet, if packets like the quoted one were sent. It is enough when one
/// direction was decided in the current epoch: the quoted packet went one way, and the other may have been silent
/// since.
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

/// Whether a flow that the device's stack ends or forwards is noted and allowed, whoever opened it. `key` is the key of
/// the container's packets.
#[inline(always)]
fn is_noted(key: &FlowKey, epoch: u32) -> bool {
    // SAFETY: map values stay readable for the program's run.
    let of_key = |key: &FlowKey| HALF_OPEN.get_ptr(key).map(|open| unsafe { &*open });
    // Link-local addresses may occur in several pools, so a note by the container's own packets counts only for its
    // link.
    let note =
        of_key(key).or_else(|| of_key(&key.reversed(LinkId::OUTSIDE)).filter(|open| open.origin.link == key.link));
    note.is_some_and(|open| open.reply.flags & FLOW_STACK != 0 && open.reply.epoch == epoch)
}

#[inline(always)]
fn translate(packet: &Packet, quoted: &Quoted, key: &FlowKey, entry: &FlowEntry) -> Result<(), ()> {
    let skb = packet.skb.cast();
    // An error from the flow's other end gets the translated address; one from a router in between keeps the router's
    // own.
    let src = if packet.key.src == key.src { entry.src } else { packet.key.src };
    let outer = addr_diff(packet.key.src, packet.key.dst, src, entry.dst);
    write_addresses(packet, src, entry.dst, outer, packet.ttl - 1)?;
    // The quoted packet goes in the opposite direction, so source and destination are swapped.
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

/// Writes the quoted ports, and the quoted checksum if the quote is long enough to have it. Returns what both changes
/// add to the sum of the error's own checksum.
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
    // A TCP checksum may lie beyond the quote's end; a UDP checksum of zero means that there is none.
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
