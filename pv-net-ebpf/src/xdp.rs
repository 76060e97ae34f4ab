//! What is dropped before the stack spends time on it: deny-listed sources, packets from outside that claim an address
//! of a pool, and what a source sends above its rate. Everything else passes, including frames that are not IP or too
//! short to tell; the stack and `pv_from_uplink` judge those.

use crate::{
    maps::{FILTER_BUCKETS, FILTER_RATE, FILTER_SOURCES},
    packet::{ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Eth},
    verdict::note,
};
use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    btf_maps::lpm_trie::Key,
    helpers::generated::bpf_ktime_get_ns,
    programs::XdpContext,
};
use pv_net_common::{DropReason, FilterSource, FlowKey, Ip, LinkId};

/// Length in bits of a key for one whole source address.
const SOURCE_BITS: u32 = FilterSource::HEAD_BITS + 128;

/// How many priority tags (VLAN 0) are skipped. The stack removes any number, but no network uses more than two.
const MAX_PRIORITY_TAGS: usize = 4;

/// The XDP action for a frame from an uplink.
#[inline(always)]
pub fn from_uplink(ctx: &XdpContext) -> u32 {
    let (key, reason) = match read_key(ctx) {
        Ok(Some(key)) => (key, refused(key.src)),
        Ok(None) => return XDP_PASS,
        Err(reason) => (FlowKey::default(), Some(reason)),
    };
    let Some(reason) = reason else { return XDP_PASS };
    note(&key, reason);
    XDP_DROP
}

/// The reason for which packets from `src` are dropped; `None` when they pass.
#[inline(always)]
fn refused(src: Ip) -> Option<DropReason> {
    if let Some(reason) = FILTER_SOURCES.get(&Key::new(SOURCE_BITS, FilterSource::new(src))) {
        return Some(if *reason == DropReason::SpoofedPool as u32 {
            DropReason::SpoofedPool
        } else {
            DropReason::DenyListed
        });
    }
    let rate = FILTER_RATE.get(0)?;
    if rate.packet_ns == 0 {
        return None;
    }
    let source = FilterSource::within(src, rate.prefix6);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(bucket) = FILTER_BUCKETS.get_ptr_mut(&source) else {
        if let Some(first) = rate.take(0, now) {
            // A full LRU evicts a bucket; after any other failure the packet passes.
            let _ = FILTER_BUCKETS.insert(&source, &first, 0);
        }
        return None;
    };
    // SAFETY: a map value stays readable for the program's run. Two CPUs may take the same token, which gives a source
    // that is spread over several CPUs at most one extra packet each.
    unsafe {
        match rate.take(*bucket, now) {
            Some(next) => {
                *bucket = next;
                None
            }
            None => Some(DropReason::RateLimited),
        }
    }
}

/// Addresses, protocol and link of a frame, without ports. `None` when it is not IP or too short.
#[inline(always)]
fn read_key(ctx: &XdpContext) -> Result<Option<FlowKey>, DropReason> {
    let Some((proto, at)) = read_tags(ctx) else { return Ok(None) };
    if matches!(proto, ETH_P_8021Q | ETH_P_8021AD) {
        return Err(DropReason::VlanTag);
    }
    Ok(read_ip(ctx, proto, at))
}

/// EtherType and offset of what is behind the priority tags. `None` for a frame of a VLAN, which belongs to another
/// link.
#[inline(always)]
fn read_tags(ctx: &XdpContext) -> Option<(u16, usize)> {
    let eth: Eth = read(ctx, 0)?;
    let (mut proto, mut at) = (u16::from_be(eth.proto_be), ETH_LEN as usize);
    for _ in 0..MAX_PRIORITY_TAGS {
        if !matches!(proto, ETH_P_8021Q | ETH_P_8021AD) {
            break;
        }
        let [tci, inner]: [u16; 2] = read(ctx, at)?;
        if u16::from_be(tci) & 0xfff != 0 {
            return None;
        }
        (proto, at) = (u16::from_be(inner), at + 4);
    }
    Some((proto, at))
}

#[inline(always)]
fn read_ip(ctx: &XdpContext, proto: u16, at: usize) -> Option<FlowKey> {
    let mut key = FlowKey::default();
    match proto {
        // Protocol at offset 9, addresses at 12 and 16 (RFC 791).
        ETH_P_IP => {
            let ip: [u32; 5] = read(ctx, at)?;
            key.src = Ip::from_v4_be(ip[3]);
            key.dst = Ip::from_v4_be(ip[4]);
            key.proto = u32::from(ip[2].to_ne_bytes()[1]);
        }
        // Next header at offset 6, addresses at 8 and 24 (RFC 8200).
        ETH_P_IPV6 => {
            let ip: [u32; 10] = read(ctx, at)?;
            key.src = Ip { words_be: [ip[2], ip[3], ip[4], ip[5]] };
            key.dst = Ip { words_be: [ip[6], ip[7], ip[8], ip[9]] };
            key.proto = u32::from(ip[1].to_ne_bytes()[2]);
        }
        _ => return None,
    }
    // SAFETY: a context field.
    key.link = LinkId::of_index(unsafe { (*ctx.ctx).ingress_ifindex });
    Some(key)
}

/// Reads a `T` at the constant `offset`. Only the frame's first buffer is read, which always has the headers.
#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    // SAFETY: the verifier proves `data + offset + size <= data_end` from this comparison.
    unsafe { (at + size_of::<T>() <= ctx.data_end()).then(|| (at as *const T).read_unaligned()) }
}
