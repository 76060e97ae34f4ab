//! The ABI between the eBPF programs and the daemon: map keys and values, drop reasons, counters, event records.
//!
//! `no_std`, integers only, `repr(C)` with written padding, so that a value read by one side is what the other wrote
//! and `bpftool map dump` names every field. Nothing here does I/O. A change of layout raises [`ABI_VERSION`], and
//! [`layout::layout_since`] of that map: a new daemon makes it anew, and keeps the others with what is in them.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod addr;
pub mod csum;
pub mod default_verdict;
pub mod drop_reason;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod headers;
pub mod ip_proto;
pub mod layout;
pub mod names;
pub mod nat;
pub mod policy;
pub mod stats;
pub mod uplink_filter;

pub use addr::Ip;
pub use default_verdict::{Place, default_verdict};
pub use drop_reason::DropReason;
pub use endpoint::{
    EndpointInfo, EndpointKey, InterfaceInfo, PortMapKey, PortMapTarget, SockKey, SockOrigin, SourceKey, UplinkInfo,
};
pub use event::{BindEvent, DropEvent};
pub use flow::{ClaimSlot, FlowCount, FlowEntry, FlowKey, FlowLimit, FragmentInfo, FragmentKey, HalfOpenFlow};
pub use nat::NatOwner;
pub use policy::{PolicyAddr, PolicyClass, PolicyId, PolicyPair, PolicyQuery, PolicySide, PolicyVerdict};
pub use stats::Stat;
pub use uplink_filter::{FilterRate, FilterSource};

/// Layout version of every pinned map; kept in the `config` map.
pub const ABI_VERSION: u32 = 7;

/// Index in the `stages` map: what decides about packets that the flow table knows nothing of.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From a container: the guard, and which stage goes on.
    FromContainer = 0,
    /// From a container to where routes lead.
    ToUplink = 1,
    /// From an uplink.
    FromUplink = 2,
    /// ICMP errors.
    Icmp = 3,
    /// Answers to packets that go nowhere.
    Answer = 4,
    /// First packets of flows that may be.
    Open = 5,
    /// Replies of flows that open or close.
    HalfOpen = 6,
    /// From a container to another one, or to the device.
    Inside = 7,
    /// Packets of flows that were decided under another policy.
    Revalidate = 8,
    /// Packets of such flows that the policy in force allows too.
    Known = 9,
    /// Into a container from the device's side: what has no note, or one of another policy.
    Inbound = 10,
    /// From an uplink, without its Ethernet header.
    Bare = 11,
    /// First packets of flows that are claimed.
    Send = 12,
    /// From an uplink or a bridge, with a tag that names no VLAN.
    Untag = 13,
    /// From a container to the device's stack, or to a group.
    Stack = 14,
    /// Known flows whose way out, or whose peer's MAC, may be another one by now.
    Route = 15,
}

/// The one entry of the `config` map: what the programs must know of the device as a whole. `abi` is always the first
/// field. New ones come at the end: what there is goes on after an upgrade.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalConfig {
    /// [`ABI_VERSION`] of the daemon that made the maps.
    pub abi: u32,
    /// First port of masquerade; 0: none yet.
    pub nat_first_port: u16,
    /// Places of a CPU in each ring of claims.
    pub claims: u16,
    /// Generation of the policy maps that is in force.
    pub generation: u32,
    /// Not 0: the generation has rules. In one word with it, so that both change at once.
    pub rules: u32,
    /// Timer ticks now, written by `pv_clock` for the daemon (`bpf_jiffies64`).
    pub jiffies: u64,
    /// Cookie of the device's network namespace (`SO_NETNS_COOKIE`): whose sockets the socket hooks act on.
    pub netns_cookie: u64,
    /// Grows whenever anything that decisions come from has changed: flows decided under an older one are decided again.
    /// Raised after what it stands for is written.
    pub epoch: u32,
    /// The epoch that began with the last change of routes or uplinks: the way out of older flows is looked up again.
    pub routes: u32,
}

const _: () = assert!(size_of::<GlobalConfig>() == 40);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: every type is repr(C), Copy, made of integers and arrays of integers, without implicit padding
    // (asserted by size beside each definition), so any bit pattern is a value of it.
    unsafe impl aya::Pod for crate::GlobalConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::NatOwner {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::HalfOpenFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowCount {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowLimit {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::EndpointKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::EndpointInfo {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::InterfaceInfo {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::SockOrigin {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::SockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PortMapTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PortMapKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::UplinkInfo {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::Ip {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FragmentInfo {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PolicyId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PolicyAddr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PolicyClass {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PolicyPair {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::PolicyVerdict {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FilterSource {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FilterRate {}
}
