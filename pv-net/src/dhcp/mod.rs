//! DHCPv4 (RFC 2131) on the bridges of pools that ask for it: what is answered to whom. Pure; the sockets are in
//! `services/dhcp`.
//!
//! A container's interface, known by the MAC that the source guard lets it send from, is given the address that it has
//! anyway. Any other client of the bridge gets one of the pool's range, and the same again while that can be: its lease
//! stays in the book when it is over, until somebody else needs the address. An address that is new to its client is
//! looked for by ARP before it is given to it, most of them before there is a client (`ahead.rs`); what is agreed to is on
//! the disk before the client is told.

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
pub use rate::Rates;
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
