//! What the API shows, made from a snapshot. Pure, but for what is read from the maps when it is asked for.

mod container;
mod explain;
mod flow;
mod policy;
mod pool;
mod status;

pub use container::{ContainerView, container, containers};
pub use explain::{Probe, explain, host_addresses};
pub use flow::{FlowView, flows};
pub use policy::{RuleView, VerdictQuery, VerdictView, rules};
pub use pool::{LeaseView, PoolView, PortView, leases, pools, ports};
pub use status::{StatusView, counters, status};
