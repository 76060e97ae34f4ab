//! The data plane in the kernel: its programs, maps and pins.
//!
//! What is pinned outlives the daemon: a new one adopts maps, programs and links, and replaces programs of another build
//! behind the pinned links atomically. This module decides nothing; it carries out and reads back.

mod batch;
mod clock;
mod clsact;
mod error;
mod flow_quotas;
mod flows;
mod frame;
mod garbage;
mod hooks;
mod load;
mod owners;
mod pin;
mod policy;
mod probe;
mod programs;
mod reader;
mod stages;
mod sweep;
mod table;
mod xdp;

pub use clsact::{add_qdisc, remove_clsact};
pub use error::BpfError;
pub use flows::{FlowRecord, FlowState, Ticks, next_sweep};
pub use frame::Ran;
pub use garbage::Ended;
pub use load::{Adopted, DataPlane, Hook, Options};
pub use pin::remove_all;
pub use policy::{PolicyProbe, PolicyTables};
pub use probe::{Probe, probe};
pub use reader::{Reader, kernel_events};
pub use sweep::{Sweeper, Sweeping, Swept};
pub use table::{PortMapPrefix, SourcePrefix};
pub use xdp::FilterSources;
