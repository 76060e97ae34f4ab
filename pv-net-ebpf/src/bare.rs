//! The stage `bare`: frames whose data begins at the IP header instead of the Ethernet header.
//!
//! Since kernel 6.9 generic XDP copies most frames (`skb_pp_cow_data`), and the copy has a `mac_len` of 0. The programs
//! on the link's ingress that run next then see the frame from its IP header on. Seen up to kernel 6.18.

use crate::{
    packet::{Eth, read},
    tail_call::tail_call,
    verdict::ACT_OK,
};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_MAC},
    helpers::generated::{bpf_skb_change_head, bpf_skb_load_bytes_relative, bpf_skb_store_bytes},
};

use pv_net_common::Stage;

const LEN: usize = size_of::<Eth>();

/// The Ethernet header, read relative to the MAC header's offset, so that it is found even when the data begins behind
/// it.
#[inline(always)]
fn header(skb: *mut __sk_buff) -> Option<[u8; LEN]> {
    let mut header = [0u8; LEN];
    // SAFETY: the helper checks offset and length.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(skb.cast(), 0, header.as_mut_ptr().cast(), LEN as u32, BPF_HDR_START_MAC)
    };
    (failed == 0).then_some(header)
}

/// Whether the frame's data does not begin with its Ethernet header.
#[inline(always)]
pub fn is_bare(skb: *mut __sk_buff) -> bool {
    match (header(skb), read::<[u8; LEN]>(skb, 0)) {
        (Some(header), Ok(first)) => header != first,
        _ => false,
    }
}

/// The stage: puts the Ethernet header back and starts `pv_from_uplink` again.
#[inline(always)]
pub fn stage(skb: *mut __sk_buff) -> i32 {
    if restore(skb).is_err() {
        return ACT_OK;
    }
    tail_call(skb, Stage::UplinkEntry)
}

/// Puts the Ethernet header in front of the data. The helper corrects `mac_len` too.
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
