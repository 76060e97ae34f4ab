//! Names of programs and maps: what `bpftool` shows and what the pins are called.

/// Program on ingress of a container's host-side link.
pub const PROG_FROM_CONTAINER: &str = "pv_from_container";
/// Program that writes the kernel's tick counter into [`MAP_CONFIG`] when it is test-run.
pub const PROG_CLOCK: &str = "pv_clock";
/// Program that answers a [`crate::PolicyQuery`] from the policy maps when it is test-run.
pub const PROG_POLICY_PROBE: &str = "pv_policy_probe";

/// [`crate::GlobalConfig`], one entry.
pub const MAP_CONFIG: &str = "config";
/// [`crate::FlowKey`] to [`crate::FlowEntry`]: established flows, one entry a direction.
pub const MAP_FLOWS: &str = "flows";
/// Reply [`crate::FlowKey`] to [`crate::TransientFlow`]: opening and closing flows, LRU.
pub const MAP_TRANSIENT: &str = "transient";
/// [`crate::EndpointKey`] to [`crate::EndpointInfo`]: where each container address is.
pub const MAP_ENDPOINTS: &str = "endpoints";
/// Interface index to [`crate::InterfaceInfo`]: what a container may send.
pub const MAP_INTERFACES: &str = "interfaces";
/// Per-CPU packet counters by [`crate::DropReason`].
pub const MAP_DROPS: &str = "drops";
/// Per-CPU packet counters by [`crate::Stat`].
pub const MAP_STATS: &str = "stats";
/// Ring buffer of [`crate::DropEvent`].
pub const MAP_EVENTS: &str = "events";
/// [`crate::PolicyId`] to [`crate::PolicyClass`]: containers, by identity.
pub const MAP_POLICY_IDS: &str = "policy_ids";
/// [`crate::PolicyAddr`] to [`crate::PolicyClass`], longest prefix: everybody else, by address.
pub const MAP_POLICY_CIDRS: &str = "policy_cidrs";
/// [`crate::PolicyPair`] to [`crate::PolicyVerdict`], longest prefix: what the rules say.
pub const MAP_POLICY_PAIRS: &str = "policy_pairs";

/// Every map that is pinned.
pub const MAPS: [&str; 11] = [
    MAP_CONFIG,
    MAP_FLOWS,
    MAP_TRANSIENT,
    MAP_ENDPOINTS,
    MAP_INTERFACES,
    MAP_DROPS,
    MAP_STATS,
    MAP_EVENTS,
    MAP_POLICY_IDS,
    MAP_POLICY_CIDRS,
    MAP_POLICY_PAIRS,
];
