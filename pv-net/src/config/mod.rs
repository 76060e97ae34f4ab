//! Configuration files: text in; valid [`model`](crate::model) types, or all errors of the file, out.
//!
//! [`raw`] has the form of the files, from which the JSON Schemas are generated. `device`, `run` and `services` check the
//! values. Pure, except for [`load`], which reads the files.

mod checker;
mod describe;
mod device;
mod dhcp;
mod dhcp6;
mod dns;
mod duplicates;
mod field;
mod leases;
pub mod load;
mod net;
mod policy;
mod ra;
pub mod raw;
mod run;
mod services;
mod start;
mod timeouts;
mod uplink_filter;
mod uses;

pub use checker::ConfigError;
pub use device::parse_device;
pub use run::{parse_run, parse_run_named};
pub use services::parse_services;
pub use uses::{check_container, check_uplinks};

#[cfg(test)]
mod tests;
