//! Configuration files: text in, valid [`model`](crate::model) types or every error of the file out.
//!
//! [`raw`] is the form of the files, from which the JSON Schemas are made; `device` and `run` check it. Pure, but for
//! [`load`], that alone reads files.

mod checker;
mod describe;
mod device;
mod duplicates;
mod field;
pub mod load;
mod net;
mod policy;
pub mod raw;
mod run;
mod timeouts;
mod uplink_filter;
mod uses;

pub use checker::ConfigError;
pub use device::parse_device;
pub use run::{parse_run, parse_run_named};
pub use uses::{check_container, check_uplinks};

#[cfg(test)]
mod tests;
