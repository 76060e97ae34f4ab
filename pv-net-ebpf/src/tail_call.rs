//! Tail calls from one program to the next.

use crate::{maps::STAGES, verdict::ACT_SHOT};
use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use pv_net_common::Stage;

/// Tail-calls a stage. Returns only when the stage is missing from the map, and then the packet is dropped.
#[inline(always)]
pub fn tail_call(skb: *mut __sk_buff, stage: Stage) -> i32 {
    // SAFETY: the map holds programs of this type only.
    unsafe { STAGES.tail_call(&TcContext::new(skb), stage as u32) };
    ACT_SHOT
}
