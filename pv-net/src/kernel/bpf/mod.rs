//! The data plane in the kernel: its programs, maps and pins.
//!
//! What is pinned outlives the daemon: the next daemon adopts maps, programs and links. If it is another build, it
//! makes its programs and maps beside those in force, which guard all links until the new ones are complete. This
//! module decides nothing; it carries out steps and reads state back.

mod batch;
pub mod children;
mod clock;
mod clsact;
mod device_ifs;
mod ended;
mod error;
mod filter;
mod flow_quotas;
mod flows;
mod frame;
mod garbage;
mod held;
mod hooks;
mod links;
mod load;
mod mend;
mod nat_ports;
mod object;
mod options;
mod owners;
mod pin;
mod place;
mod plane;
mod policy;
mod probe;
mod programs;
mod reader;
mod selftest;
mod set;
mod sockets;
mod surroundings;
mod swap;
mod sweep;
mod sys;
mod table;
mod takeover;
mod xdp;

pub use clsact::{add_qdisc, remove_clsact};
pub use ended::Ended;
pub use error::BpfError;
pub use flows::{FlowRecord, FlowState, Ticks, next_sweep};
pub use frame::Ran;
pub use mend::Mended;
pub use options::{Adopted, Hook, Options};
pub use pin::remove_all;
pub use plane::DataPlane;
pub use policy::{PolicyProbe, PolicyTables};
pub use probe::{Probe, probe};
pub use reader::{Reader, kernel_events};
pub use sweep::{Sweeper, Sweeping, Swept};
