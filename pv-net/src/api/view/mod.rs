//! The API's answers, made from a snapshot. Pure, except for what is read from the maps on request.

mod container;
mod explain;
mod flow;
mod names;
mod policy;
mod pool;
mod query;
mod service;
mod status;

pub use container::{ContainerView, container, containers};
pub use explain::{Probe, explain, host_addresses};
pub use flow::{FlowView, flows};
pub use names::{ResolveQuery, ResolveView, resolve};
pub use policy::{RuleView, VerdictQuery, VerdictView, rules};
pub use pool::{LeaseView, PoolView, PortView, leases, pools, ports};
pub use query::{QueryView, query};
pub use service::{ServiceView, services};
pub use status::{HealthView, StatusView, counters, status};
