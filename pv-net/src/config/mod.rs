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
mod health;
mod leases;
pub mod load;
mod net;
mod policy;
mod ra;
pub mod raw;
pub mod revision;
mod run;
mod services;
mod sockets;
mod start;
mod timeouts;
mod uplink_filter;
mod uses;

/// Whose form the files have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// That of pv-net: what it does not know is an error.
    #[default]
    Own,
    /// A [`revision`] of Pantavisor: what pv-net does not know is Pantavisor's.
    Revision,
}

pub use checker::ConfigError;
pub use device::parse_device;
pub use run::{parse_run, parse_run_named};
pub use services::parse_services;
pub use uses::{check_container, check_prefix_lengths, check_uplinks};

#[cfg(test)]
mod tests;
