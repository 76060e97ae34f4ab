//! The ABI between the eBPF programs and the daemon: map keys and values, drop reasons, counters, event records.
//!
//! Everything is `no_std`, `repr(C)`, made of integers and with explicit padding, so that one side reads what the other
//! wrote, and `bpftool map dump` names every field. Nothing here does I/O. A change of a map's layout must raise
//! [`ABI_VERSION`] and the map's number in [`layout::layout_since`]: a new daemon makes that map anew, and keeps the
//! others with their contents.
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
pub mod link;
pub mod names;
pub mod nat;
pub mod policy;
pub mod stats;
pub mod uplink_filter;

pub use addr::Ip;
pub use default_verdict::{Place, default_verdict};
pub use drop_reason::DropReason;
pub use endpoint::{
    EndpointInfo, EndpointKey, InterfaceInfo, PortMapKey, PortMapTarget, SenderKey, SockKey, SockOrigin, SourceKey,
    UplinkInfo,
};
pub use event::{BindEvent, DropEvent};
pub use flow::{ClaimSlot, FlowCount, FlowEntry, FlowKey, FlowLimit, FragmentInfo, FragmentKey, HalfOpenFlow};
pub use link::LinkId;
pub use nat::NatOwner;
pub use policy::{PolicyAddr, PolicyClass, PolicyId, PolicyPair, PolicyQuery, PolicySide, PolicyVerdict};
pub use stats::Stat;
pub use uplink_filter::{FilterRate, FilterSource};

/// Layout version of every pinned map; kept in the `config` map.
pub const ABI_VERSION: u32 = 8;

/// Index in the `stages` map. A stage is a program that other programs reach by tail call; together they decide about
/// packets that the flow table cannot decide.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From a container: checks the source guard and selects the next stage.
    FromContainer = 0,
    /// From a container to where routes lead.
    ToUplink = 1,
    /// From an uplink: to a published port or into a routed pool.
    FromUplink = 2,
    /// ICMP errors.
    Icmp = 3,
    /// Turns a packet into its answer: a TCP reset or an ICMP error.
    Answer = 4,
    /// First packets of allowed flows: claims the flow.
    Open = 5,
    /// Packets of flows that open or close.
    HalfOpen = 6,
    /// From a container to another one, to a published port, or to the device.
    Inside = 7,
    /// Packets of flows of an older epoch: asks the policy again.
    Revalidate = 8,
    /// Packets of flows that the policy has allowed again.
    Known = 9,
    /// Into a container from the bridge or the host's stack, without a note of the current epoch.
    Inbound = 10,
    /// From an uplink, without an Ethernet header.
    Bare = 11,
    /// First packets of claimed flows: sends them on.
    Send = 12,
    /// From an uplink or a bridge, with a priority tag, which names no VLAN.
    Untag = 13,
    /// From a container to the device's stack, or to a group.
    Stack = 14,
    /// Known flows whose way out, or whose peer's MAC, may have changed: looks the route up again.
    Route = 15,
    /// The program of an uplink's ingress, `pv_from_uplink`, started again on a frame that a stage has changed.
    UplinkEntry = 16,
    /// The program of a bridge's ingress, `pv_from_bridge`, started again likewise.
    BridgeEntry = 17,
    /// What a container sends by a macvlan interface. The program of that interface leads here, with the interface's
    /// [`LinkId`] in the packet's `cb[0]`.
    ChildOut = 18,
    /// What reaches a container by a macvlan interface, likewise.
    ChildIn = 19,
    /// Packets of either way that the guard let pass: decides about their flow.
    ChildFlow = 20,
}

/// The one entry of the `config` map: what the programs must know about the device as a whole. `abi` must stay the
/// first field. New fields go to the end, so that the present values survive an upgrade.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalConfig {
    /// [`ABI_VERSION`] of the daemon that made the maps.
    pub abi: u32,
    /// First port of masquerade's range; 0 before the daemon has chosen it.
    pub nat_first_port: u16,
    /// Places that each CPU has in each ring of the `claims` map.
    pub claims: u16,
    /// Generation of the policy maps that is in force.
    pub generation: u32,
    /// Not 0: the generation has rules. In one 64-bit word with `generation`, so that both change at once.
    pub rules: u32,
    /// Timer ticks now, written by `pv_clock` for the daemon (`bpf_jiffies64`).
    pub jiffies: u64,
    /// Cookie of the device's network namespace (`SO_NETNS_COOKIE`): whose sockets the socket hooks act on.
    pub netns_cookie: u64,
    /// Grows with every change of what decisions depend on; flows of an older epoch are decided again. It is raised
    /// after the change itself is written.
    pub epoch: u32,
    /// The epoch of the last change of routes or uplinks; the way out of flows of older epochs is looked up again.
    pub routes: u32,
}

const _: () = assert!(size_of::<GlobalConfig>() == 40);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: every type is repr(C), Copy, made of integers and arrays of integers, without implicit padding
    // (asserted by size beside each definition), so any bit pattern is a value of it.
    unsafe impl aya::Pod for crate::GlobalConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::LinkId {}
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
    unsafe impl aya::Pod for crate::SenderKey {}
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
