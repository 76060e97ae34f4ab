//! What a container sends to where routes lead: the uplink, the next hop, and the address that it leaves with.

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
    DropReason, FlowEntry, FlowKey, HalfOpenFlow, InterfaceInfo, Ip, SourceKey, Stage, UplinkInfo,
    endpoint::{POOL_NAT, SOURCE_BITS, UPLINK_POOL, UPLINK_SOURCES},
    flow::{FLOW_NEIGHBOUR, FLOW_ROUTED},
};

/// To where routes lead.
#[inline(always)]
pub fn stage(packet: &mut Packet) -> i32 {
    packet.settle_fragment();
    let epoch = epoch();
    let Some(me) = interface(packet.link) else { return ACT_SHOT };
    let Some(Scratch { flow, fib, plan, .. }) = scratch() else { return ACT_SHOT };
    let (next_hop, resolved) = match look_up_route(packet, &packet.key, me.bridge, fib) {
        Route::To(hop) => (hop, true),
        Route::Unresolved(hop) => (hop, false),
        // The kernel says the same of "no route" as of what is its own.
        Route::Local | Route::None if is_left_over(packet, me) => return answer::unknown_tcp(packet),
        Route::Local => return by_stack(packet, ToStack { device: 1, ..ToStack::default() }),
        Route::None => return answer::no_route(packet),
    };
    let up = match uplink(fib.ifindex) {
        Some(up) if up.flags & UPLINK_POOL == 0 => up,
        // An address of a pool that no container has: on its own link the bridge knows who it is.
        Some(_) if fib.ifindex != me.bridge => return denied(packet, DropReason::PoolIsolated),
        // Who is on its own link is asked there, not by way of the gateway.
        Some(_) if same_mac(packet.eth.dst, me.gateway_mac) => return answer::no_route(packet),
        Some(_) => return by_stack(packet, ToStack { elsewhere: 1, ..ToStack::default() }),
        None => return by_stack(packet, ToStack { unresolved: u32::from(!resolved), ..ToStack::default() }),
    };
    if packet.key.src.is_link_local() {
        return answer::beyond_scope(packet);
    }
    let key = packet.key;
    if let Err(reason) = PolicyInput::of_key(&key).allowed() {
        flow::forget(&key);
        return denied(packet, reason);
    }
    if !resolved && !budget::neighbour(packet.link) {
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
    *plan = plan_of(packet, src, key.dst, 0);
    if src != key.src {
        plan.masquerade = 1;
        plan.offset = nat::mapping(&key, plan.first_port) as u16;
    }
    tail_call(packet.skb, Stage::Open)
}

/// Whether the packet is what is left of a connection that masquerade knows nothing of. Where no way leads out, an ICMP
/// error would leave it waiting, though its flow has ended with the uplink.
#[inline(always)]
fn is_left_over(packet: &Packet, me: &InterfaceInfo) -> bool {
    me.pool_flags & POOL_NAT != 0 && packet.tracked && !packet.later && packet.continues_tcp()
}

/// The address that the packet leaves with; none when the uplink has none of its family.
#[inline(always)]
pub fn source(packet: &Packet, me: &InterfaceInfo, up: &UplinkInfo, link: u32, next_hop: Ip) -> Option<Ip> {
    if me.pool_flags & POOL_NAT == 0 {
        return Some(packet.key.src);
    }
    let usual = if packet.v4 { up.addr4 } else { up.addr6 };
    let addr = if up.flags & UPLINK_SOURCES == 0 {
        usual
    } else {
        // A next hop of IPv6 leads to IPv4 destinations too (RFC 8950).
        let to = if packet.v4 && next_hop.is_v4() { next_hop } else { packet.key.dst };
        SOURCES.get(&Key::new(SOURCE_BITS, SourceKey { link, to })).copied().unwrap_or(usual)
    };
    if addr.is_unspecified() { None } else { Some(addr) }
}

/// What the kernel's routes say.
pub enum Route {
    To(Ip),
    /// The same, to a neighbour that the kernel does not know yet.
    Unresolved(Ip),
    Local,
    None,
}

/// Whether the kernel knows the next neighbour of a packet that it forwards from `link`.
#[inline(always)]
pub fn is_resolved(packet: &Packet, link: u32, fib: &mut bpf_fib_lookup) -> bool {
    !matches!(look_up_route(packet, &packet.key, link, fib), Route::Unresolved(_))
}

/// `bpf_fib_lookup` for `key` as if it had come in on `link`: for a container that is the pool's bridge, which has
/// forwarding on for it.
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
        // Where a link-local address does not lead is told by `beyond_scope`, not by the lack of a route.
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
            // `BPF_FIB_LKUP_RET_SUCCESS`; `_FRAG_NEEDED`: answered with the uplink's MTU when it is sent.
            0 | 8 => Route::To(hop),
            // `_NO_NEIGH`: the helper that sends it asks for the neighbour.
            7 => Route::Unresolved(hop),
            // `_NOT_FWDED`: broadcast or the device's own. `_FWD_DISABLED`: the stack says the same.
            4 | 5 => Route::Local,
            _ => Route::None,
        }
    }
}
