//! The desired state of the kernel, and the steps that lead there from the present one. Pure: the same input gives the
//! same plan.
//!
//! The present state is [`Observed`], and each write is an [`Op`].

mod bridge;
mod desired;
mod device_if;
mod diff;
mod firewall;
mod inside;
mod names;
mod observed;
mod op;
mod own_ports;
mod port_map;
mod reach;
mod report;
mod source;
mod tables;
mod uplink_filter;
mod uplinks;

pub use bridge::{Borrowing, Bridge, Foreign, bridge, disturbs_listeners};
pub use desired::{Desired, Endpoint, PoolLink, addresses, endpoint, misplaced};
pub use device_if::{DeviceIf, HostRoute, device_if_gone, device_if_settings, device_if_traces, device_ifs};
pub use diff::{diff, endpoint_ops, forget};
pub use firewall::{Bridged, DroppingChain, kept_by_firewall, strict_filters};
pub use inside::{FIRST_TABLE, Inside, InsideStep, Leg, LegRoute, MAIN_TABLE, SourceRule, inside_steps, ways_by};
pub use names::{Marked, misnamed, restored_marks, restored_names};
pub use observed::{Address, DeletedIndex, Link, Observed, ProgramState};
pub use op::{HookPoint, LinkSysctl, Op};
pub use own_ports::{PortSet, nat_range, reserved};
pub use port_map::{Published, prefixes, range_of, reservations};
pub use reach::{Way, Ways, is_on_parent};
pub use report::{Changes, ReloadPlan};
pub use source::{Candidate, Sources, UplinkSources};
pub use tables::{Entry, NetworkPrefix, PortMapPrefix, Prefix, SourcePrefix, Tables};
pub use uplink_filter::{filter_rate, filter_sources};
pub use uplinks::{
    LinkState, Unseen, apart, fitting, locals, networks, overlaps, set_down, unfit, uplink_infos, ways_out,
};

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
