//! Every map of the data plane. Key and value types are those of `pv-net-common`; the daemon sets the sizes.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use pv_net_common::{
    EndpointInfo, EndpointKey, FlowEntry, FlowKey, GlobalConfig, InterfaceInfo, TransientFlow,
    drop_reason::DROP_SLOTS,
    flow::{DEFAULT_FLOWS, DEFAULT_TRANSIENT, EVENT_BYTES, MAX_ENDPOINTS},
    stats::STAT_SLOTS,
};

/// One entry: epoch and layout version, written by the daemon; ticks, written by `pv_clock`.
#[btf_map(name = "config")]
pub static CONFIG: Array<GlobalConfig, 1> = Array::new();

/// Established flows. A plain hash: nothing new can push an entry out. Preallocated, so that an insert cannot fail for
/// want of memory, only for want of room.
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<FlowKey, FlowEntry, { DEFAULT_FLOWS as usize }> = HashMap::new();

/// Opening and closing flows, keyed by their replies. LRU: a flood of new flows pushes out only its own kind.
#[btf_map(name = "transient")]
pub static TRANSIENT: LruHashMap<FlowKey, TransientFlow, { DEFAULT_TRANSIENT as usize }> = LruHashMap::new();

/// Address to link; written by the daemon. Not preallocated: most devices have few.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointInfo, { MAX_ENDPOINTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Link to what its container may send; written by the daemon.
#[btf_map(name = "interfaces")]
pub static INTERFACES: HashMap<u32, InterfaceInfo, { MAX_ENDPOINTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Dropped packets by `DropReason`.
#[btf_map(name = "drops")]
pub static DROPS: PerCpuArray<u64, { DROP_SLOTS as usize }> = PerCpuArray::new();

/// When the last event of each reason was sent, nanoseconds since boot: the events' rate limit.
#[btf_map(name = "event_times")]
pub static EVENT_TIMES: PerCpuArray<u64, { DROP_SLOTS as usize }> = PerCpuArray::new();

/// Packets by `Stat`.
#[btf_map(name = "stats")]
pub static STATS: PerCpuArray<u64, { STAT_SLOTS as usize }> = PerCpuArray::new();

/// What does not fit the 512 bytes of stack.
#[repr(C)]
pub struct Scratch {
    pub flow: TransientFlow,
    /// A frame under construction.
    pub frame: [u8; FRAME_BYTES],
}

/// Room for the longest answer.
pub const FRAME_BYTES: usize = 112;

/// One [`Scratch`] a CPU.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// `DropEvent`s for the daemon. Declared without a value type: libbpf refuses one for a ring buffer.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<[u8; 0], { EVENT_BYTES as usize }> = RingBuf::new();

/// What the container behind link `ifindex` may send.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<&'static InterfaceInfo> {
    // SAFETY: an entry is replaced whole by the daemon, and stays readable for the program's run.
    unsafe { INTERFACES.get(&ifindex) }
}

/// This CPU's scratch memory; a program has it to itself until it returns.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nothing preempts a TC program on its CPU but another packet's, which runs after this one returns.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}
