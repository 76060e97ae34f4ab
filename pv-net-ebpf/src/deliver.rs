//! Carries out an entry of the flow table: rewrites the packet, counts it and hands it to the next link.

use crate::{
    answer,
    packet::{ETH_LEN, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Packet, load, read},
    verdict::{self, ACT_OK},
};
use aya_ebpf::{
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_csum_update, bpf_jiffies64, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_change_type, bpf_skb_store_bytes,
    },
};
use pv_net_common::{
    DropReason, FlowEntry, Ip, csum,
    flow::{FLOW_NAT, FLOW_NEIGHBOUR, FLOW_ROUTED, FLOW_STACK, FLOW_UPLINK},
};

/// Flag for `bpf_skb_store_bytes`: also update the sum that a network card computed over the whole packet
/// (`CHECKSUM_COMPLETE`). Needed only where no checksum inside the packet changes along and cancels the difference: the
/// IPv6 header has none. For addresses `BPF_F_PSEUDO_HDR` subtracts the difference later, so it has to be added here.
const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// Offset in the TCP header of the byte that has the header's length (RFC 9293 section 3.1).
const TCP_DATA_OFFSET: u32 = 12;
/// Bytes of a UDP header.
const UDP_LEN: u32 = 8;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// Set by the daemon at load time where `bpf_redirect_peer` already sets the packet type to "for this host" (kernel
/// 6.15): this saves one helper call a packet.
#[unsafe(no_mangle)]
static PEER_SCRUBS: u32 = 0;

/// `Err` when a helper refused to write.
type Done = Result<(), ()>;

/// Rewrites the packet and sends it where `entry` says. Returns the program's verdict.
#[inline(always)]
pub fn deliver(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    if entry.flags & FLOW_STACK != 0 {
        return ACT_OK;
    }
    if let Err(answered) = may_route(packet, entry) {
        return answered;
    }
    if rewrite(packet, entry).is_err() {
        return verdict::drop(packet, DropReason::Rewrite);
    }
    stamp(packet, entry);
    hand_over(packet, entry)
}

/// Like [`deliver`], for an ICMP error about the entry's flow. The caller has checked the hop limit, and with NAT has
/// written the IP header already. The error is not counted on the entry: it does not keep the flow alive.
#[inline(always)]
pub fn deliver_error(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    if route(packet, entry, entry.flags & FLOW_NAT != 0).is_err() {
        return verdict::drop(packet, DropReason::Rewrite);
    }
    hand_over(packet, entry)
}

/// A routed packet needs a TTL or hop limit above 1 and must fit the next link. `Err` is the verdict of the answer to
/// it.
#[inline(always)]
fn may_route(packet: &Packet, entry: &FlowEntry) -> Result<(), i32> {
    if entry.flags & FLOW_ROUTED == 0 {
        return Ok(());
    }
    if packet.ttl <= 1 {
        return Err(answer::ttl_expired(packet));
    }
    // A veth delivers to its container what is larger than the MTU, so IPv4 without "don't fragment" passes. On the way
    // out nothing fragments the packet after this program, so a large one is answered whatever it says about fragments.
    let leaves = entry.flags & (FLOW_NEIGHBOUR | FLOW_UPLINK) != 0;
    if (leaves || !packet.may_cut) && too_big(packet, entry.mtu) {
        return Err(answer::too_big(packet, entry.mtu));
    }
    Ok(())
}

/// Counts the packet on the entry, which also keeps the flow alive.
#[inline(always)]
pub fn stamp(packet: &Packet, entry: &mut FlowEntry) {
    entry.packets += 1;
    entry.bytes += packet.len() as u64;
    // SAFETY: the helper has no preconditions.
    entry.last_used = unsafe { bpf_jiffies64() };
}

#[inline(always)]
fn hand_over(packet: &Packet, entry: &mut FlowEntry) -> i32 {
    // SAFETY: the helpers have no preconditions; `skb` is the context.
    unsafe {
        if entry.flags & FLOW_NEIGHBOUR != 0 {
            return to_neighbour(entry);
        }
        if entry.flags & FLOW_UPLINK != 0 {
            return bpf_redirect(entry.ifindex, 0) as i32;
        }
        // On the host-side link the frame's MAC is not the link's own, so the kernel has set the packet type to "other
        // host". Kernels before 6.15 keep the type over the redirect, and the receiver would discard the packet.
        if core::ptr::read_volatile(&raw const PEER_SCRUBS) == 0 && (*packet.skb).pkt_type != 0 {
            bpf_skb_change_type(packet.skb.cast(), 0);
        }
        bpf_redirect_peer(entry.ifindex, 0) as i32
    }
}

#[inline(always)]
fn to_neighbour(entry: &FlowEntry) -> i32 {
    let hop = entry.next_hop.words_be;
    let mut params = if entry.next_hop.is_v4() {
        bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [hop[3], 0, 0, 0] },
        }
    } else {
        bpf_redir_neigh { nh_family: AF_INET6, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: hop } }
    };
    // SAFETY: `params` is a whole structure, and its size is told.
    unsafe { bpf_redirect_neigh(entry.ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// Whether a routed packet, or one of the segments of a GSO packet, is larger than `mtu` bytes.
#[inline(always)]
fn too_big(packet: &Packet, mtu: u32) -> bool {
    let gso = packet.gso_size();
    if gso == 0 {
        return packet.len() - ETH_LEN > mtu;
    }
    // Each segment repeats the packet's own headers. The TCP header's length is read only here, since only GSO packets
    // need it.
    let header = if packet.proto == IPPROTO_TCP {
        match load::<u8>(packet.skb, packet.l4 + TCP_DATA_OFFSET) {
            Ok(offset) => (offset >> 4) as u32 * 4,
            Err(_) => return true,
        }
    } else {
        UDP_LEN
    };
    // A BIG TCP packet over IPv6 has a hop-by-hop header for its length, which its segments do not have (kernels 5.19
    // to 6.x).
    let jumbo = !packet.v4 && packet.l4 > ETH_LEN + 40 && packet.len() > ETH_LEN + 40 + u16::MAX as u32;
    packet.l4 - ETH_LEN - if jumbo { 8 } else { 0 } + header + gso > mtu
}

/// What replacing `old` by `new` adds to a sum that is later complemented (RFC 1624, equation 3).
#[inline(always)]
fn replaced16(old: u16, new: u16) -> u32 {
    (!old) as u32 + new as u32
}

/// Writes the MACs, hop limit, addresses and ports that `entry` asks for.
#[inline(always)]
fn rewrite(packet: &Packet, entry: &FlowEntry) -> Done {
    let (routed, translated) = (entry.flags & FLOW_ROUTED != 0, entry.flags & FLOW_NAT != 0);
    if !routed && !translated {
        return Ok(());
    }
    if packet.v4 && packet.l4 == ETH_LEN + 20 && !packet.later {
        return rewrite_v4(packet, entry, translated);
    }
    if translated {
        translate(packet, entry)?;
    }
    route(packet, entry, translated)
}

/// A frame from its start to the ports, with an IPv4 header without options. `pad` aligns the fields to word
/// boundaries.
#[repr(C)]
struct Head4 {
    pad: u16,
    dst_mac: [u8; 6],
    src_mac: [u8; 6],
    /// Not changed: EtherType, and the IP header up to its TTL.
    kept: [u16; 5],
    rest: Rest4,
    ports: [u16; 2],
}

/// What [`translate`] and [`route`] do, for the usual IPv4 packet in one write: each helper call costs about as much as
/// the look-up of the flow.
#[inline(always)]
fn rewrite_v4(packet: &Packet, entry: &FlowEntry, translated: bool) -> Done {
    let skb = packet.skb.cast();
    let (src, dst, addr_diff) = match translated {
        true => (entry.src, entry.dst, entry.addr_diff),
        false => (packet.key.src, packet.key.dst, 0),
    };
    let rest = rest4(packet, src, dst, addr_diff, packet.ttl - u8::from(entry.flags & FLOW_ROUTED != 0));
    let has_ports = packet.proto == IPPROTO_TCP || packet.proto == IPPROTO_UDP;
    let ports = if translated && has_ports { size_of::<[u16; 2]>() as u32 } else { 0 };
    let kept = read(packet.skb, ETH_LEN - 2).map_err(drop)?;
    let (dst_mac, src_mac) = (entry.dst_mac, entry.src_mac);
    let head = Head4 { pad: 0, dst_mac, src_mac, kept, rest, ports: [entry.sport_be, entry.dport_be] };
    // For a neighbour (`bpf_redirect_neigh`) the kernel writes the MACs itself.
    // SAFETY: the helper checks offset and length; the structure has no padding.
    let failed = unsafe {
        if entry.flags & (FLOW_ROUTED | FLOW_NEIGHBOUR) == FLOW_ROUTED {
            bpf_skb_store_bytes(skb, 0, (&raw const head.dst_mac).cast(), ETH_LEN + 20 + ports, 0)
        } else {
            bpf_skb_store_bytes(skb, ETH_LEN + 8, (&raw const head.rest).cast(), 12 + ports, 0)
        }
    };
    if failed != 0 {
        return Err(());
    }
    if translated { translate_l4(packet, entry, has_ports) } else { Ok(()) }
}

/// Rewrites the MACs and decreases the TTL or hop limit (RFC 1812 section 5.3.1). For a `translated` packet only the
/// MACs: its IP header is written already.
#[inline(always)]
fn route(packet: &Packet, entry: &FlowEntry, translated: bool) -> Done {
    if entry.flags & FLOW_ROUTED == 0 {
        return Ok(());
    }
    let skb = packet.skb.cast();
    // For a neighbour (`bpf_redirect_neigh`) the kernel writes the MACs itself.
    if entry.flags & FLOW_NEIGHBOUR == 0 {
        let mut macs = [0u8; 12];
        macs[..6].copy_from_slice(&entry.dst_mac);
        macs[6..].copy_from_slice(&entry.src_mac);
        // SAFETY: the helper checks offset and length.
        if unsafe { bpf_skb_store_bytes(skb, 0, macs.as_ptr().cast(), 12, 0) } != 0 {
            return Err(());
        }
    }
    if translated {
        return Ok(());
    }
    if packet.v4 {
        let word = ttl_word(packet, packet.ttl - 1);
        let check = !csum::fold((!packet.check) as u32 + replaced16(ttl_word(packet, packet.ttl), word));
        let bytes = [word.to_ne_bytes(), check.to_ne_bytes()];
        // SAFETY: as above.
        let failed = unsafe { bpf_skb_store_bytes(skb, ETH_LEN + 8, bytes.as_ptr().cast(), 4, 0) };
        return if failed != 0 { Err(()) } else { Ok(()) };
    }
    let hops = packet.ttl - 1;
    // SAFETY: as above.
    let failed = unsafe { bpf_skb_store_bytes(skb, ETH_LEN + 7, (&raw const hops).cast(), 1, RECOMPUTE) };
    if failed != 0 { Err(()) } else { Ok(()) }
}

/// TTL and protocol, as they stand in the IPv4 header.
#[inline(always)]
fn ttl_word(packet: &Packet, ttl: u8) -> u16 {
    u16::from_ne_bytes([ttl, packet.proto])
}

/// The IPv4 header from its TTL on.
#[repr(C)]
struct Rest4 {
    ttl_proto: u16,
    check: u16,
    src: u32,
    dst: u32,
}

/// The IPv6 header from its hop limit on; three bytes before it are not written.
#[repr(C)]
struct Rest6 {
    before: [u8; 3],
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// [`Rest6`], and the ports that follow the header.
#[repr(C)]
struct Ports6 {
    rest: Rest6,
    ports: [u16; 2],
}

/// Writes the entry's addresses and ports, and decreases the hop limit when the packet is routed.
#[inline(always)]
fn translate(packet: &Packet, entry: &FlowEntry) -> Done {
    let hops = packet.ttl - u8::from(entry.flags & FLOW_ROUTED != 0);
    let has_ports = packet.proto == IPPROTO_TCP || packet.proto == IPPROTO_UDP;
    if !packet.v4 && packet.l4 == ETH_LEN + 40 && has_ports && !packet.later {
        return translate_v6(packet, entry, hops);
    }
    write_addresses(packet, entry.src, entry.dst, entry.addr_diff, hops)?;
    if packet.later { Ok(()) } else { translate_l4(packet, entry, false) }
}

/// [`translate`] for TCP or UDP right behind the IPv6 header, in one write. That write must not use [`RECOMPUTE`]
/// because it includes the ports, whose change the TCP or UDP checksum cancels; so the change of addresses and hop
/// limit is added to the card's sum by `bpf_csum_update`.
#[inline(always)]
fn translate_v6(packet: &Packet, entry: &FlowEntry, hops: u8) -> Done {
    let word = |hops| u16::from_ne_bytes([packet.proto, hops]);
    let rest = Rest6 { before: [0; 3], hops, src: entry.src.words_be, dst: entry.dst.words_be };
    let head = Ports6 { rest, ports: [entry.sport_be, entry.dport_be] };
    let sum = replaced16(word(packet.ttl), word(hops)) + csum::fold(entry.addr_diff) as u32;
    // SAFETY: the helpers check offset and length; 37 bytes from `hops` on, without padding.
    let failed = unsafe {
        bpf_csum_update(packet.skb, sum);
        bpf_skb_store_bytes(packet.skb.cast(), ETH_LEN + 7, (&raw const head.rest.hops).cast(), 37, 0)
    };
    if failed != 0 { Err(()) } else { translate_l4(packet, entry, true) }
}

/// Updates the upper layer's checksum for the new addresses and ports, and writes the ports or the echo identifier
/// unless they are `written` already.
#[inline(always)]
fn translate_l4(packet: &Packet, entry: &FlowEntry, written: bool) -> Done {
    let skb = packet.skb.cast();
    let (check_at, mangled) = match packet.proto {
        IPPROTO_TCP => (16, 0),
        IPPROTO_UDP => (6, BPF_F_MARK_MANGLED_0 as u64),
        _ => (2, 0),
    };
    let check_at = packet.l4 + check_at;
    // SAFETY: the helpers check offsets themselves.
    unsafe {
        // ICMP has no pseudo-header (RFC 792), ICMPv6 does (RFC 4443 section 2.3).
        if packet.proto != IPPROTO_ICMP
            && bpf_l4_csum_replace(skb, check_at, 0, entry.addr_diff as u64, BPF_F_PSEUDO_HDR as u64 | mangled) != 0
        {
            return Err(());
        }
        if entry.port_diff == 0 {
            return Ok(());
        }
        if bpf_l4_csum_replace(skb, check_at, 0, entry.port_diff as u64, mangled) != 0 {
            return Err(());
        }
        let failed = if written {
            0
        } else if packet.proto == IPPROTO_ICMP || packet.proto == IPPROTO_ICMPV6 {
            bpf_skb_store_bytes(skb, packet.l4 + 4, (&raw const entry.sport_be).cast(), 2, 0)
        } else {
            let ports = [entry.sport_be, entry.dport_be];
            bpf_skb_store_bytes(skb, packet.l4, ports.as_ptr().cast(), 4, 0)
        };
        if failed != 0 { Err(()) } else { Ok(()) }
    }
}

/// The IPv4 header from its TTL on, with its checksum.
#[inline(always)]
fn rest4(packet: &Packet, src: Ip, dst: Ip, addr_diff: u32, hops: u8) -> Rest4 {
    let word = ttl_word(packet, hops);
    let sum = (!packet.check) as u32 + replaced16(ttl_word(packet, packet.ttl), word) + csum::fold(addr_diff) as u32;
    Rest4 { ttl_proto: word, check: !csum::fold(sum), src: src.words_be[3], dst: dst.words_be[3] }
}

/// Writes addresses and hop limit, and the IPv4 header's checksum.
#[inline(always)]
pub fn write_addresses(packet: &Packet, src: Ip, dst: Ip, addr_diff: u32, hops: u8) -> Done {
    let skb = packet.skb.cast();
    let failed = if packet.v4 {
        let rest = rest4(packet, src, dst, addr_diff, hops);
        // SAFETY: the helper checks offset and length; `rest` has no padding.
        unsafe { bpf_skb_store_bytes(skb, ETH_LEN + 8, (&raw const rest).cast(), 12, 0) }
    } else {
        let rest = Rest6 { before: [0; 3], hops, src: src.words_be, dst: dst.words_be };
        // SAFETY: as above; 33 bytes from `hops` on.
        unsafe { bpf_skb_store_bytes(skb, ETH_LEN + 7, (&raw const rest.hops).cast(), 33, RECOMPUTE) }
    };
    if failed != 0 { Err(()) } else { Ok(()) }
}
