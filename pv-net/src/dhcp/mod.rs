//! DHCPv4 (RFC 2131) on the bridges of pools that ask for it: what is answered to whom. Pure; the sockets are in
//! `services/dhcp`.
//!
//! A container's interface is given the address that it has anyway. It is known by its MAC, which the source guard ensures.
//! Any other client of the bridge gets an address of the pool's range, and the same one again as long as nobody else needs
//! it: its lease stays in the book when it is over. Before a client is given an address that it did not have, an ARP probe
//! asks whether somebody uses it; the next addresses are probed before there is a client (`ahead.rs`). A lease is on disk
//! before the client is told of it.

mod ahead;
mod config;
pub mod frame;
pub(crate) mod hostname;
pub mod message;
mod metrics;
mod probe;
mod rate;
mod reply;
mod server;
pub(crate) mod shares;
mod table;
#[cfg(test)]
mod tests;

pub use config::{Config, Interface, is_outside, stale};
pub use metrics::{Metrics, Received, Sent, Silence};
pub use rate::{Rates, Sender};
pub use reply::Reply;
pub use server::{Act, Origin, Outcome, Server, Written};

use std::time::Instant;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Seconds since 1970 (UTC): what leases end by.
    pub unix: u64,
    /// What short times are measured by.
    pub at: Instant,
}
