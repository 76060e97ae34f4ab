//! Frames whose Ethernet header is not where programs look for it.
//!
//! Generic XDP copies most frames since kernel 6.9 (`skb_pp_cow_data`), and the copy has a `mac_len` of 0: programs on
//! the link's ingress that run next see the frame from its IP header on. Seen up to 6.18.

use crate::{
    from_uplink,
    packet::{Eth, Kind, Packet, read},
    verdict::{ACT_OK, ACT_SHOT},
};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_MAC},
    helpers::generated::{bpf_skb_change_head, bpf_skb_load_bytes_relative, bpf_skb_store_bytes},
};

const LEN: usize = size_of::<Eth>();

/// The Ethernet header, wherever it is.
#[inline(always)]
fn header(skb: *mut __sk_buff) -> Option<[u8; LEN]> {
    let mut header = [0u8; LEN];
    // SAFETY: the helper checks offset and length.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(skb.cast(), 0, header.as_mut_ptr().cast(), LEN as u32, BPF_HDR_START_MAC)
    };
    (failed == 0).then_some(header)
}

/// Whether the frame does not begin with its Ethernet header.
#[inline(always)]
pub fn is_bare(skb: *mut __sk_buff) -> bool {
    match (header(skb), read::<[u8; LEN]>(skb, 0)) {
        (Some(header), Ok(first)) => header != first,
        _ => false,
    }
}

/// The stage: with its header it is read anew.
#[inline(always)]
pub fn stage(skb: *mut __sk_buff) -> i32 {
    if restore(skb).is_err() {
        return ACT_OK;
    }
    let Some(mut packet) = Packet::of(skb) else { return ACT_SHOT };
    match packet.parse() {
        Kind::Ip => from_uplink::entry(&mut packet),
        kind => from_uplink::unread(&packet, kind),
    }
}

/// Puts the header back where it belongs; the helper sets `mac_len` with it.
#[inline(always)]
fn restore(skb: *mut __sk_buff) -> Result<(), ()> {
    let header = header(skb).ok_or(())?;
    // SAFETY: the helpers check offsets and lengths.
    let failed = unsafe {
        bpf_skb_change_head(skb.cast(), LEN as u32, 0) != 0
            || bpf_skb_store_bytes(skb.cast(), 0, header.as_ptr().cast(), LEN as u32, 0) != 0
    };
    if failed { Err(()) } else { Ok(()) }
}
