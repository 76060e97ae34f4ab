//! Every map of the data plane but those of the policy and the scratch memory. Key and value types are in
//! `pv-net-common`; the daemon sets some of the sizes at load time.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use pv_net_common::{
    ClaimSlot, EndpointInfo, EndpointKey, FilterRate, FilterSource, FlowCount, FlowEntry, FlowKey, FlowLimit,
    FragmentInfo, FragmentKey, GlobalConfig, HalfOpenFlow, InterfaceInfo, Ip, LinkId, NatOwner, PortMapKey,
    PortMapTarget, SenderKey, SockKey, SockOrigin, SourceKey, UplinkInfo,
    drop_reason::DROP_SLOTS,
    endpoint::{
        LOCAL_ADDRESS, MAX_LOCALS, MAX_NETWORKS, MAX_PORT_MAPPINGS, MAX_SOCKETS, MAX_SOURCES, MAX_UPLINKS,
        POOL_BRIDGED, POOL_DEVICE, POOL_SHARED,
    },
    flow::{CLAIM_TURN_SLOTS, DEFAULT_FLOWS, DEFAULT_HALF_OPEN, EVENT_BYTES, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_LINKS},
    names,
    nat::OWNER_SLOTS,
    stats::STAT_SLOTS,
    uplink_filter::{MAX_FILTER_BUCKETS, MAX_FILTER_SOURCES},
};

/// One entry: epoch, generation and layout version, written by the daemon; ticks, written by `pv_clock`.
#[btf_map(name = "config")]
pub static CONFIG: Array<GlobalConfig, 1> = Array::new();

/// Established flows, two entries each. A plain hash, so that no new flow can evict another. Preallocated, so that an
/// insert fails only when the table is full, never for want of memory.
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<FlowKey, FlowEntry, { DEFAULT_FLOWS as usize }> = HashMap::new();

/// Flows that open or close, one entry each, keyed by their replies. An LRU: a flood of new flows evicts only entries
/// of this table.
#[btf_map(name = "half_open")]
pub static HALF_OPEN: LruHashMap<FlowKey, HalfOpenFlow, { DEFAULT_HALF_OPEN as usize }> = LruHashMap::new();

/// A ring for each opener with the keys of its entries in `half_open`; each CPU has its own part of each ring. An LRU:
/// unused rings make room.
#[btf_map(name = "claims")]
pub static CLAIMS: LruHashMap<ClaimSlot, FlowKey, { DEFAULT_HALF_OPEN as usize }> = LruHashMap::new();

/// The position in each ring, indexed by the lower bits of the opener's link.
#[btf_map(name = "claim_turns")]
pub static CLAIM_TURNS: PerCpuArray<u32, { CLAIM_TURN_SLOTS as usize }> = PerCpuArray::new();

/// Who has each port of masquerade's range: a port of a container keeps its outside port for all peers. An array,
/// because each new flow looks at several entries.
#[btf_map(name = "nat_owners")]
pub static NAT_OWNERS: Array<NatOwner, { OWNER_SLOTS as usize }> = Array::new();

/// Link to the number of flows of its container in `flows`. The daemon makes the entries, the programs count.
#[btf_map(name = "flow_counts")]
pub static FLOW_COUNTS: HashMap<LinkId, FlowCount, { MAX_LINKS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Link to the number of flows that the daemon removed from `flows`, and how many there may be. Written by the daemon.
#[btf_map(name = "flow_limits")]
pub static FLOW_LIMITS: HashMap<LinkId, FlowLimit, { MAX_LINKS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Address of a container to where it is. Written by the daemon. Not preallocated: most devices have few.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointInfo, { MAX_ENDPOINTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Address of a container's macvlan interface to where it is. Written by the daemon.
#[btf_map(name = "children")]
pub static CHILDREN: HashMap<EndpointKey, EndpointInfo, { MAX_ENDPOINTS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Parent of macvlan interfaces and source MAC to the interface that sends with it. Written by the daemon.
#[btf_map(name = "senders")]
pub static SENDERS: HashMap<SenderKey, LinkId, { MAX_LINKS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Host-side link to what its container may send. Written by the daemon.
#[btf_map(name = "interfaces")]
pub static INTERFACES: HashMap<LinkId, InterfaceInfo, { MAX_LINKS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The stages' programs, by [`pv_net_common::Stage`]. Written by the daemon.
#[btf_map(name = "stages")]
pub static STAGES: ProgramArray<
    { names::PROG_STAGES.len() + names::PROG_ENTRIES_AGAIN.len() + names::PROG_CHILD_STAGES.len() },
> = ProgramArray::new();

/// Packets whose first fragment passed. An LRU, with a fixed number of places for each link.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentInfo, { MAX_FRAGMENTS as usize }> = LruHashMap::new();

/// The device's own addresses, and the broadcast addresses of its networks, with their kind; written by the daemon.
#[btf_map(name = "locals")]
pub static LOCALS: HashMap<EndpointKey, u32, { MAX_LOCALS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Networks of the pools, with the index of their bridge; written by the daemon.
#[btf_map(name = "networks")]
pub static NETWORKS: LpmTrie<FilterSource, u32, { MAX_NETWORKS as usize }> = LpmTrie::new();

/// Uplinks and the pools' bridges; written by the daemon.
#[btf_map(name = "uplinks")]
pub static UPLINKS: HashMap<u32, UplinkInfo, { MAX_UPLINKS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Uplink and destination to the address that masquerade uses; written by the daemon.
#[btf_map(name = "sources")]
pub static SOURCES: LpmTrie<SourceKey, Ip, { MAX_SOURCES as usize }> = LpmTrie::new();

/// Published ports; written by the daemon.
#[btf_map(name = "port_map")]
pub static PORT_MAP: LpmTrie<PortMapKey, PortMapTarget, { MAX_PORT_MAPPINGS as usize }> = LpmTrie::new();

/// Sockets of the device that the socket hooks connected to a container.
#[btf_map(name = "sock_origins")]
pub static SOCK_ORIGINS: LruHashMap<SockKey, SockOrigin, { MAX_SOCKETS as usize }> = LruHashMap::new();

/// Sources that XDP drops, and the `DropReason` that each is counted under. Written by the daemon.
#[btf_map(name = "filter_sources")]
pub static FILTER_SOURCES: LpmTrie<FilterSource, u32, { MAX_FILTER_SOURCES as usize }> = LpmTrie::new();

/// One entry: the rate that each source may send at. Written by the daemon.
#[btf_map(name = "filter_rate")]
pub static FILTER_RATE: Array<FilterRate, 1> = Array::new();

/// Source to its token bucket. An LRU: silent sources make room.
#[btf_map(name = "filter_buckets")]
pub static FILTER_BUCKETS: LruHashMap<FilterSource, u64, { MAX_FILTER_BUCKETS as usize }> = LruHashMap::new();

/// Dropped packets by `DropReason`.
#[btf_map(name = "drops")]
pub static DROPS: PerCpuArray<u64, { DROP_SLOTS as usize }> = PerCpuArray::new();

/// When the last event of each reason was sent, in nanoseconds since boot, for the events' rate limit. The last slot is
/// for refused binds.
#[btf_map(name = "event_times")]
pub static EVENT_TIMES: PerCpuArray<u64, { DROP_SLOTS as usize + 1 }> = PerCpuArray::new();

/// Packets by `Stat`.
#[btf_map(name = "stats")]
pub static STATS: PerCpuArray<u64, { STAT_SLOTS as usize }> = PerCpuArray::new();

/// `DropEvent`s and `BindEvent`s for the daemon. Declared without a value type, since libbpf refuses one for a ring
/// buffer.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<[u8; 0], { EVENT_BYTES as usize }> = RingBuf::new();

/// What the container behind `link` may send.
#[inline(always)]
pub fn interface(link: LinkId) -> Option<&'static InterfaceInfo> {
    // SAFETY: an entry is replaced whole by the daemon, and stays readable for the program's run.
    unsafe { INTERFACES.get(&link) }
}

/// Whether `addr` is one of the device's own.
#[inline(always)]
pub fn is_local(addr: Ip) -> bool {
    // SAFETY: an entry is one word.
    LOCALS.get_ptr(&EndpointKey { addr }).is_some_and(|kind| unsafe { *kind } == LOCAL_ADDRESS)
}

/// Whether `addr` is the device's own, or the broadcast address of a network that the device is in. Nobody else may
/// send with such a source.
#[inline(always)]
pub fn is_of_device(addr: Ip) -> bool {
    LOCALS.get_ptr(&EndpointKey { addr }).is_some()
}

/// Index of the bridge of the pool whose network `addr` is in.
#[inline(always)]
pub fn network(addr: Ip) -> Option<u32> {
    NETWORKS.get(&Key::new(FilterSource::HEAD_BITS + 128, FilterSource::new(addr))).copied()
}

/// The container that has `addr`; none for a link-local address, which is unique only within its pool.
#[inline(always)]
pub fn endpoint(addr: Ip) -> Option<&'static EndpointInfo> {
    if addr.is_link_local() { None } else { holder(addr) }
}

/// The container that has `addr`, seen from `link`: a link-local address is looked up in that link's pool.
#[inline(always)]
pub fn endpoint_at(addr: Ip, link: LinkId) -> Option<&'static EndpointInfo> {
    if addr.is_link_local() { endpoint_in(addr, interface(link)?.pool_id) } else { holder(addr) }
}

/// The container that has `addr`, seen from the bridge of pool `pool_id`.
#[inline(always)]
pub fn endpoint_in(addr: Ip, pool_id: u32) -> Option<&'static EndpointInfo> {
    if !addr.is_link_local() {
        return holder(addr);
    }
    // The `endpoints` map has the pool's number in this word, which is zero in every real link-local address (RFC 4291
    // section 2.5.6). Other values would be forged.
    if addr.words_be[1] == 0 { holder(addr.of_pool(pool_id)) } else { None }
}

#[inline(always)]
fn holder(addr: Ip) -> Option<&'static EndpointInfo> {
    // SAFETY: an entry is replaced whole by the daemon, and stays readable for the program's run.
    ENDPOINTS.get_ptr(&EndpointKey { addr }).map(|p| unsafe { &*p })
}

/// The macvlan interface that has `addr`, seen from pool `pool_id`: a link-local address is looked up in that pool.
#[inline(always)]
pub fn child_at(addr: Ip, pool_id: u32) -> Option<&'static EndpointInfo> {
    if addr.is_link_local() && addr.words_be[1] != 0 {
        return None;
    }
    let addr = if addr.is_link_local() { addr.of_pool(pool_id) } else { addr };
    // SAFETY: an entry is replaced whole by the daemon, and stays readable for the program's run.
    CHILDREN.get_ptr(&EndpointKey { addr }).map(|p| unsafe { &*p })
}

/// Whether the device reaches the container with this address by its own interface on a parent. What it answers to somebody
/// on another link who claims that address goes to the container.
#[inline(always)]
pub fn is_reached_by_parent(addr: Ip) -> bool {
    child_at(addr, 0).is_some_and(|of| of.pool_flags & POOL_BRIDGED != 0)
}

/// The ipvlan interface that has `addr` on the parent with index `parent`.
#[inline(always)]
pub fn shared_at(addr: Ip, parent: u32) -> Option<LinkId> {
    if addr.is_link_local() {
        let link = sender(parent, addr.link_local_mac())?;
        let is_it = |of: &InterfaceInfo| of.pool_flags & POOL_SHARED != 0 && of.link_local == addr;
        return interface(link).is_some_and(is_it).then_some(link);
    }
    let link = child_at(addr, 0).filter(|of| of.pool_flags & POOL_SHARED != 0)?.link;
    interface(link).is_some_and(|of| of.bridge == parent).then_some(link)
}

/// Whose MAC it is on the parent with index `parent`.
#[inline(always)]
pub fn sender(parent: u32, mac: [u8; 6]) -> Option<LinkId> {
    let key = SenderKey { parent, mac, pad: 0 };
    // SAFETY: a map value of one word.
    SENDERS.get_ptr(&key).map(|link| unsafe { *link })
}

/// Whether this is the device's own interface on a parent.
#[inline(always)]
pub fn is_devices(link: LinkId) -> bool {
    interface(link).is_some_and(|of| of.pool_flags & POOL_DEVICE != 0)
}

/// The device's own interface on the parent with index `parent`, if `mac` is that interface's.
#[inline(always)]
pub fn device_at(parent: u32, mac: [u8; 6]) -> Option<LinkId> {
    sender(parent, mac).filter(|link| is_devices(*link))
}

/// Whether the interface is a container's, in a pool whose containers reach each other on the device, or the device's own.
#[inline(always)]
pub fn is_bridged(link: LinkId) -> bool {
    interface(link).is_some_and(|me| me.pool_flags & POOL_BRIDGED != 0)
}

/// The uplink or bridge with this index.
#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<&'static UplinkInfo> {
    // SAFETY: as above.
    UPLINKS.get_ptr(&ifindex).map(|p| unsafe { &*p })
}

/// The current epoch: flows of an older one are decided again.
#[inline(always)]
pub fn epoch() -> u32 {
    CONFIG.get(0).map_or(0, |c| c.epoch)
}

/// Whether routes or uplinks have changed since `epoch`, in which a flow was decided.
#[inline(always)]
pub fn routes_changed_since(epoch: u32) -> bool {
    CONFIG.get(0).is_some_and(|c| c.routes.wrapping_sub(epoch) as i32 > 0)
}
