//! What the rules say about a flow's first packet. The defaults (pools, published ports) are decided in
//! `policy_input.rs`, and only where the rules say nothing.

use crate::{
    packet::read,
    scratch::{PolicyKeys, Scratch, scratch},
    verdict::{ACT_OK, ACT_SHOT},
};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC},
    btf_maps::{HashMap, LpmTrie, lpm_trie::Key},
    helpers::generated::bpf_skb_store_bytes,
    macros::btf_map,
};
use pv_net_common::{
    Ip, PolicyAddr, PolicyClass, PolicyId, PolicyPair, PolicyQuery, PolicySide, PolicyVerdict,
    policy::{
        MAX_POLICY_CIDRS, MAX_POLICY_IDS, MAX_POLICY_PAIRS, POLICY_ADDR_HEAD_BITS, POLICY_ANSWER_AT, POLICY_PORT_BITS,
        POLICY_QUERY_AT, POLICY_TCP, POLICY_UDP, policy_proto,
    },
};

/// Two generations are held at once: the one in force and the one being written.
const GENERATIONS: usize = 2;

/// Containers, by identity and address. Written by the daemon.
#[btf_map(name = "policy_ids")]
pub static POLICY_IDS: HashMap<
    PolicyId,
    PolicyClass,
    { MAX_POLICY_IDS as usize * GENERATIONS },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// Everybody else, by address. Written by the daemon. A generation that has rules has an entry for the prefix `/0`.
#[btf_map(name = "policy_cidrs")]
pub static POLICY_CIDRS: LpmTrie<PolicyAddr, PolicyClass, { MAX_POLICY_CIDRS as usize * GENERATIONS }> = LpmTrie::new();

/// Verdicts by classes, protocol and port; written by the daemon.
#[btf_map(name = "policy_pairs")]
pub static POLICY_PAIRS: LpmTrie<PolicyPair, PolicyVerdict, { MAX_POLICY_PAIRS as usize * GENERATIONS }> =
    LpmTrie::new();

/// The class of a container that the policy of this generation does not know yet.
const UNKNOWN: PolicyClass = PolicyClass { src: u32::MAX, dst: u32::MAX };

/// What the rules of `generation` say about a packet. `dport_be` counts for TCP and UDP only.
#[inline(always)]
pub fn verdict(generation: u32, src: &PolicySide, dst: &PolicySide, proto: u8, dport_be: u16) -> PolicyVerdict {
    let Some(Scratch { policy: keys, .. }) = scratch() else { return PolicyVerdict::UNKNOWN };
    let from = class(keys, generation, src).src;
    let to = class(keys, generation, dst).dst;
    if from == UNKNOWN.src || to == UNKNOWN.dst {
        return PolicyVerdict::UNKNOWN;
    }
    if from == 0 || to == 0 {
        return PolicyVerdict::NOTHING;
    }
    let proto = policy_proto(proto);
    let port_be = if matches!(proto, POLICY_TCP | POLICY_UDP) { dport_be } else { 0 };
    let pair = PolicyPair { generation, src_class: from, dst_class: to, proto, port_be };
    keys.pair = Key::new(POLICY_PORT_BITS, pair);
    POLICY_PAIRS.get(&keys.pair).copied().unwrap_or(PolicyVerdict::NOTHING)
}

#[inline(always)]
fn class(keys: &mut PolicyKeys, generation: u32, side: &PolicySide) -> PolicyClass {
    if side.identity == 0 {
        return by_addr(keys, generation, side.addr).unwrap_or_default();
    }
    keys.id = PolicyId { generation, identity: side.identity, addr: side.addr };
    // SAFETY: entries of a generation are written before it is in force and removed after; in between they do not
    // change.
    if let Some(class) = unsafe { POLICY_IDS.get(&keys.id) } {
        return *class;
    }
    for word in &mut keys.id.addr.words_be {
        // Of a plain store of sixteen zero bytes the compiler makes a call of memset. With its frame, the deepest call
        // chain needs more stack than kernels before 6.8 allow: they round each frame up to 32 bytes.
        // SAFETY: a reference is a valid place.
        unsafe { core::ptr::write_volatile(word, 0) };
    }
    // SAFETY: as above.
    if let Some(class) = unsafe { POLICY_IDS.get(&keys.id) } {
        return *class;
    }
    // A generation without rules has no entries at all; then an unknown container is no reason to refuse.
    if by_addr(keys, generation, side.addr).is_some() { UNKNOWN } else { PolicyClass::default() }
}

#[inline(always)]
fn by_addr(keys: &mut PolicyKeys, generation: u32, addr: Ip) -> Option<PolicyClass> {
    keys.addr = Key::new(POLICY_ADDR_HEAD_BITS + 128, PolicyAddr { generation, addr });
    POLICY_CIDRS.get(&keys.addr).copied()
}

/// Answers the [`PolicyQuery`] in the frame: the verdict is written behind it.
#[inline(always)]
pub fn answer(skb: *mut __sk_buff) -> i32 {
    let Ok(query) = read::<PolicyQuery>(skb, POLICY_QUERY_AT as u32) else { return ACT_SHOT };
    let said = verdict(query.generation, &query.src, &query.dst, query.proto, query.port_be);
    let len = size_of::<PolicyVerdict>() as u32;
    // SAFETY: the helper checks offset and length.
    let stored = unsafe { bpf_skb_store_bytes(skb.cast(), POLICY_ANSWER_AT as u32, (&raw const said).cast(), len, 0) };
    if stored == 0 { ACT_OK } else { ACT_SHOT }
}
