//! The stage `to_uplink`: what a container sends beyond the device. It finds the uplink, the next hop and the source
//! address.

use crate::{
    answer, budget,
    deliver::{AF_INET, AF_INET6},
    denied::denied,
    flow,
    guard::same_mac,
    maps::{SOURCES, epoch, interface, uplink},
    nat,
    open::plan_of,
    packet::Packet,
    policy_input::PolicyInput,
    scratch::{Scratch, ToStack, scratch},
    stack::by_stack,
    tail_call::tail_call,
    verdict::{self, ACT_SHOT},
};
use aya_ebpf::{bindings::bpf_fib_lookup, btf_maps::lpm_trie::Key, helpers::generated::bpf_fib_lookup as fib_lookup};
use pv_net_common::{
    DropReason, FlowEntry, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, LinkId, SourceKey, Stage, UplinkInfo,
    endpoint::{POOL_NAT, SOURCE_BITS, UPLINK_POOL, UPLINK_SOURCES},
    flow::{FLOW_NEIGHBOUR, FLOW_ROUTED},
};

/// The stage for packets to where the kernel's routes lead.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    let Some(me) = interface(packet.id()) else { return ACT_SHOT };
    let Some(Scratch { flow, fib, plan, .. }) = scratch() else { return ACT_SHOT };
    let (next_hop, resolved) = match look_up_route(packet, &packet.key, me.bridge, fib) {
        Route::To(hop) => (hop, true),
        Route::Unresolved(hop) => (hop, false),
        // The kernel's look-up does not tell "no route" from an address of its own.
        Route::Local | Route::None if is_left_over(packet, me) => return answer::unknown_tcp(packet),
        Route::Local => return by_stack(packet, ToStack { device: 1, ..ToStack::default() }),
        Route::None => return answer::no_route(packet),
    };
    let up = match uplink(fib.ifindex) {
        Some(up) if up.flags & UPLINK_POOL == 0 => up,
        // An address of another pool that no container has. Its own link could tell who has it, but not this one.
        Some(_) if fib.ifindex != me.bridge => return denied(packet, DropReason::PoolIsolated),
        // Somebody on the container's own link: it should ask for the neighbour instead of sending by way of the
        // gateway.
        Some(_) if same_mac(packet.eth.dst, me.gateway_mac) => return answer::no_route(packet),
        Some(_) => return by_stack(packet, ToStack { elsewhere: 1, ..ToStack::default() }),
        None => return by_stack(packet, ToStack { unresolved: u32::from(!resolved), ..ToStack::default() }),
    };
    if packet.key.src.is_link_local() {
        return answer::beyond_scope(packet);
    }
    let key = packet.key;
    if let Err(reason) = PolicyInput::of_key(&key).may_leave(me.identity) {
        flow::forget(&key);
        return denied(packet, reason);
    }
    if !resolved && !budget::neighbour(packet.id()) {
        return verdict::drop(packet, DropReason::NeighbourLimit);
    }
    let Some(src) = source(packet, me, up, fib.ifindex, next_hop) else {
        return if is_left_over(packet, me) { answer::unknown_tcp(packet) } else { answer::no_route(packet) };
    };
    *flow = HalfOpenFlow::default();
    flow.forward = FlowEntry {
        ifindex: fib.ifindex,
        epoch,
        from_mac: me.mac,
        next_hop,
        flags: FLOW_ROUTED | FLOW_NEIGHBOUR,
        mtu: up.mtu,
        ..FlowEntry::default()
    };
    flow.reply = FlowEntry {
        ifindex: packet.link,
        epoch,
        src_mac: me.gateway_mac,
        dst_mac: me.mac,
        flags: FLOW_ROUTED,
        mtu: me.mtu,
        ..FlowEntry::default()
    };
    *plan = plan_of(packet, src, key.dst, LinkId::OUTSIDE);
    if src != key.src {
        plan.masquerade = 1;
        plan.offset = nat::mapping(&key, plan.first_port) as u16;
    }
    tail_call(packet.skb, Stage::Open)
}

/// Whether the packet belongs to a connection of which masquerade has no flow. When no route leads out, an ICMP error
/// would leave such a connection waiting although its flow has ended with the uplink, so it is reset.
#[inline(always)]
fn is_left_over(packet: &Packet, me: &InterfaceInfo) -> bool {
    me.pool_flags & POOL_NAT != 0 && packet.tracked && !packet.later && packet.continues_tcp()
}

/// The source address that the packet leaves with; `None` when the uplink has no address of the family.
#[inline(always)]
pub fn source(packet: &Packet, me: &InterfaceInfo, up: &UplinkInfo, link: u32, next_hop: Ip) -> Option<Ip> {
    if me.pool_flags & POOL_NAT == 0 {
        return Some(packet.key.src);
    }
    let usual = if packet.v4 { up.addr4 } else { up.addr6 };
    let addr = if up.flags & UPLINK_SOURCES == 0 {
        usual
    } else {
        // IPv4 destinations may have an IPv6 next hop (RFC 8950).
        let to = if packet.v4 && next_hop.is_v4() { next_hop } else { packet.key.dst };
        SOURCES.get(&Key::new(SOURCE_BITS, SourceKey { link, to })).copied().unwrap_or(usual)
    };
    if addr.is_unspecified() { None } else { Some(addr) }
}

/// The result of a look-up in the kernel's routes. The address is the next hop's.
pub enum Route {
    To(Ip),
    /// The kernel does not know the neighbour's MAC yet.
    Unresolved(Ip),
    Local,
    None,
}

/// Whether the kernel knows the MAC of the next hop of a packet that it forwards from `link`.
#[inline(always)]
pub fn is_resolved(packet: &Packet, link: u32, fib: &mut bpf_fib_lookup) -> bool {
    !matches!(look_up_route(packet, &packet.key, link, fib), Route::Unresolved(_))
}

/// Calls `bpf_fib_lookup` for `key` as if the packet had come in on `link`. For a container that is the pool's bridge,
/// on which forwarding is enabled.
#[inline(always)]
pub fn look_up_route(packet: &Packet, key: &FlowKey, link: u32, fib: &mut bpf_fib_lookup) -> Route {
    let (src, dst) = (key.src.words_be, key.dst.words_be);
    // SAFETY: a C structure of integers and unions of them; all zero is a value of it.
    *fib = unsafe { core::mem::zeroed() };
    fib.family = if packet.v4 { AF_INET as u8 } else { AF_INET6 as u8 };
    fib.l4_protocol = packet.proto;
    fib.ifindex = link;
    if packet.v4 {
        fib.__bindgen_anon_3.ipv4_src = src[3];
        fib.__bindgen_anon_4.ipv4_dst = dst[3];
    } else {
        // A link-local source would find no route; `beyond_scope` gives the more exact answer.
        fib.__bindgen_anon_3.ipv6_src = if key.src.is_link_local() { [0; 4] } else { src };
        fib.__bindgen_anon_4.ipv6_dst = dst;
    }
    // SAFETY: `fib` is a whole structure, and its size is told; unions are read as the family says.
    unsafe {
        let found = fib_lookup(packet.skb.cast(), fib, size_of::<bpf_fib_lookup>() as i32, 0);
        let hop = match fib.family == AF_INET as u8 {
            true => Ip::from_v4_be(fib.__bindgen_anon_4.ipv4_dst),
            false => Ip { words_be: fib.__bindgen_anon_4.ipv6_dst },
        };
        match found {
            // `BPF_FIB_LKUP_RET_SUCCESS` or `_FRAG_NEEDED`: a packet that is too large is answered when it is
            // delivered.
            0 | 8 => Route::To(hop),
            // `_NO_NEIGH`: `bpf_redirect_neigh` resolves the neighbour.
            7 => Route::Unresolved(hop),
            // `_NOT_FWDED`: a broadcast address, or the device's own. `_FWD_DISABLED`: the stack refuses to forward it.
            4 | 5 => Route::Local,
            _ => Route::None,
        }
    }
}
