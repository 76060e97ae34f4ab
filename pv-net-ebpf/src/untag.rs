//! The stage `untag`: removes a priority tag (VLAN 0), as the device's stack would.

use crate::{maps, tail_call::tail_call, verdict::ACT_SHOT};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_vlan_pop};
use pv_net_common::{Stage, endpoint::UPLINK_POOL};

/// The stage for frames of an uplink or a pool's bridge. It starts the hook's program again, which handles any further
/// tag. The kernel's limit of tail calls ends that: the packet is dropped.
#[inline(always)]
pub fn stage(skb: *mut __sk_buff) -> i32 {
    // SAFETY: a context field; the helper has no preconditions.
    let (link, failed) = unsafe { ((*skb).ifindex, bpf_skb_vlan_pop(skb.cast()) != 0) };
    if failed {
        return ACT_SHOT;
    }
    let of_pool = maps::uplink(link).is_some_and(|up| up.flags & UPLINK_POOL != 0);
    tail_call(skb, if of_pool { Stage::BridgeEntry } else { Stage::UplinkEntry })
}
