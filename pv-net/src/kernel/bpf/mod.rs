//! The data plane in the kernel: its programs, maps and pins.
//!
//! What is pinned outlives the daemon: a new one adopts the maps and replaces the programs behind the pinned links
//! atomically. This module decides nothing; it carries out and reads back.

mod clsact;
mod error;
mod flows;
mod load;
mod pin;
mod probe;
mod table;

pub use error::BpfError;
pub use flows::{FlowRecord, Ticks};
pub use load::{Adopted, DataPlane, Hook, Options};
pub use pin::remove_all;
pub use probe::{Probe, probe};
