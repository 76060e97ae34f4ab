//! Names of programs and maps: what `bpftool` shows and what the pins are called.

/// Program on ingress of a container's host-side link.
pub const PROG_FROM_CONTAINER: &str = "pv_from_container";
/// Program on egress of the same link: what the bridge or the host's stack delivers.
pub const PROG_TO_CONTAINER: &str = "pv_to_container";
/// Program on ingress of an uplink.
pub const PROG_FROM_UPLINK: &str = "pv_from_uplink";
/// Program on ingress of a pool's bridge: what the bridge hands to the device's stack.
pub const PROG_FROM_BRIDGE: &str = "pv_from_bridge";
/// XDP program on an uplink.
pub const PROG_XDP_UPLINK: &str = "pv_xdp_uplink";
/// XDP program on an uplink for kernels before 5.18, which do not support frames in several buffers.
pub const PROG_XDP_UPLINK_SINGLE: &str = "pv_xdp_uplink_single";
/// Socket hooks on the device's cgroup.
pub const PROG_SOCK: [&str; 10] = [
    "pv_sock_bind4",
    "pv_sock_bind6",
    "pv_sock_connect4",
    "pv_sock_connect6",
    "pv_sock_sendmsg4",
    "pv_sock_sendmsg6",
    "pv_sock_recvmsg4",
    "pv_sock_recvmsg6",
    "pv_sock_peer4",
    "pv_sock_peer6",
];
/// A read-only global of the object: whether programs may call `bpf_set_retval`.
pub const GLOBAL_HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
/// A read-only global of the object: whether `bpf_redirect_peer` sets the packet's type right.
pub const GLOBAL_PEER_SCRUBS: &str = "PEER_SCRUBS";
/// Programs that the ones above tail-call, in the order of [`crate::Stage`].
pub const PROG_STAGES: [&str; 16] = [
    "pv_stage_from_container",
    "pv_stage_to_uplink",
    "pv_stage_from_uplink",
    "pv_stage_icmp",
    "pv_stage_answer",
    "pv_stage_open",
    "pv_stage_half_open",
    "pv_stage_inside",
    "pv_stage_revalidate",
    "pv_stage_known",
    "pv_stage_inbound",
    "pv_stage_bare",
    "pv_stage_send",
    "pv_stage_untag",
    "pv_stage_stack",
    "pv_stage_route",
];
/// Programs of hooks that stages tail-call to have a changed frame read from its beginning. In the `stages` map they
/// follow [`PROG_STAGES`], in this order.
pub const PROG_ENTRIES_AGAIN: [&str; 2] = [PROG_FROM_UPLINK, PROG_FROM_BRIDGE];
/// Programs for macvlan interfaces, loaded when the first one is attached. In the `stages` map they follow
/// [`PROG_ENTRIES_AGAIN`], in this order.
pub const PROG_CHILD_STAGES: [&str; 3] = ["pv_stage_child_out", "pv_stage_child_in", "pv_stage_child_flow"];
/// Program on egress of the parent of macvlan interfaces: what leaves by the wire.
pub const PROG_PARENT: &str = "pv_parent_out";
/// Program on ingress of the parent: keeps what containers send to each other from the device.
pub const PROG_PARENT_IN: &str = "pv_parent_in";
/// Program on egress of the device's own interface beside those of containers: what the device sends to them.
pub const PROG_DEVICE_OUT: &str = "pv_device_out";
/// Program on ingress of the same interface: what they send to the device.
pub const PROG_DEVICE_IN: &str = "pv_device_in";
/// Program that writes the kernel's tick counter into [`MAP_CONFIG`], run by `BPF_PROG_TEST_RUN`.
pub const PROG_CLOCK: &str = "pv_clock";
/// Program that answers a [`crate::PolicyQuery`] from the policy maps, run by `BPF_PROG_TEST_RUN`.
pub const PROG_POLICY_PROBE: &str = "pv_policy_probe";

/// [`crate::GlobalConfig`], one entry.
pub const MAP_CONFIG: &str = "config";
/// [`crate::FlowKey`] to [`crate::FlowEntry`]: established flows, one entry a direction.
pub const MAP_FLOWS: &str = "flows";
/// Reply [`crate::FlowKey`] to [`crate::HalfOpenFlow`]: flows that open or close, LRU.
pub const MAP_HALF_OPEN: &str = "half_open";
/// [`crate::ClaimSlot`] to reply [`crate::FlowKey`], LRU: the entries that each opener has in [`MAP_HALF_OPEN`]. Not
/// pinned.
pub const MAP_CLAIMS: &str = "claims";
/// [`crate::nat::slot`] to [`crate::NatOwner`]: who has each port of masquerade's range.
pub const MAP_NAT_OWNERS: &str = "nat_owners";
/// Link index to [`crate::FlowCount`]: flows of the link's container, counted by the programs.
pub const MAP_FLOW_COUNTS: &str = "flow_counts";
/// Link index to [`crate::FlowLimit`]: how many flows of the link's container the daemon has removed, and how many
/// there may be.
pub const MAP_FLOW_LIMITS: &str = "flow_limits";
/// [`crate::EndpointKey`] to [`crate::EndpointInfo`]: where each container address is.
pub const MAP_ENDPOINTS: &str = "endpoints";
/// [`crate::EndpointKey`] to [`crate::EndpointInfo`]: addresses of containers' macvlan interfaces. They are apart from
/// [`MAP_ENDPOINTS`], because nothing is delivered to them by the programs on other links.
pub const MAP_CHILDREN: &str = "children";
/// [`crate::SenderKey`] to [`crate::LinkId`]: whose frames leave by the parent of macvlan interfaces.
pub const MAP_SENDERS: &str = "senders";
/// Interface index to [`crate::InterfaceInfo`]: what a container may send.
pub const MAP_INTERFACES: &str = "interfaces";
/// Per-CPU packet counters by [`crate::DropReason`].
pub const MAP_DROPS: &str = "drops";
/// Per-CPU packet counters by [`crate::Stat`].
pub const MAP_STATS: &str = "stats";
/// Ring buffer of [`crate::DropEvent`] and [`crate::BindEvent`].
pub const MAP_EVENTS: &str = "events";
/// [`crate::PolicyId`] to [`crate::PolicyClass`]: containers, by identity.
pub const MAP_POLICY_IDS: &str = "policy_ids";
/// [`crate::PolicyAddr`] to [`crate::PolicyClass`], longest prefix: everybody else, by address.
pub const MAP_POLICY_CIDRS: &str = "policy_cidrs";
/// [`crate::PolicyPair`] to [`crate::PolicyVerdict`], longest prefix: what the rules say.
pub const MAP_POLICY_PAIRS: &str = "policy_pairs";

/// [`crate::FragmentKey`] to [`crate::FragmentInfo`], LRU: packets whose first fragment was let pass.
pub const MAP_FRAGMENTS: &str = "fragments";
/// [`crate::EndpointKey`]: the device's own addresses.
pub const MAP_LOCALS: &str = "locals";
/// [`crate::FilterSource`] to the index of a bridge, LPM: networks of pools.
pub const MAP_NETWORKS: &str = "networks";
/// Link index to [`crate::UplinkInfo`].
pub const MAP_UPLINKS: &str = "uplinks";
/// [`crate::SourceKey`] to [`crate::Ip`], LPM: the source address that masquerade uses.
pub const MAP_SOURCES: &str = "sources";
/// [`crate::PortMapKey`] to [`crate::PortMapTarget`], LPM: published ports.
pub const MAP_PORT_MAP: &str = "port_map";
/// [`crate::SockKey`] to [`crate::SockOrigin`], LRU.
pub const MAP_SOCK_ORIGINS: &str = "sock_origins";

/// [`crate::FilterSource`] to [`crate::DropReason`], LPM: sources that XDP drops.
pub const MAP_FILTER_SOURCES: &str = "filter_sources";
/// [`crate::FilterRate`], one entry.
pub const MAP_FILTER_RATE: &str = "filter_rate";
/// Source to its token bucket, LRU.
pub const MAP_FILTER_BUCKETS: &str = "filter_buckets";

/// [`crate::Stage`] to program. Pinned beside the programs, since it belongs to one load of the object.
pub const MAP_STAGES: &str = "stages";

/// Every map that is pinned with the others.
pub const MAPS: [&str; 26] = [
    MAP_CONFIG,
    MAP_FLOWS,
    MAP_HALF_OPEN,
    MAP_NAT_OWNERS,
    MAP_FLOW_COUNTS,
    MAP_FLOW_LIMITS,
    MAP_ENDPOINTS,
    MAP_INTERFACES,
    MAP_CHILDREN,
    MAP_SENDERS,
    MAP_DROPS,
    MAP_STATS,
    MAP_EVENTS,
    MAP_FRAGMENTS,
    MAP_LOCALS,
    MAP_NETWORKS,
    MAP_UPLINKS,
    MAP_SOURCES,
    MAP_PORT_MAP,
    MAP_SOCK_ORIGINS,
    MAP_POLICY_IDS,
    MAP_POLICY_CIDRS,
    MAP_POLICY_PAIRS,
    MAP_FILTER_SOURCES,
    MAP_FILTER_RATE,
    MAP_FILTER_BUCKETS,
];
