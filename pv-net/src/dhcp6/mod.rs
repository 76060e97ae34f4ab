//! DHCPv6 (RFC 8415): the reply of a pool's server to a message.
//!
//! Pure: the reply follows from the message, its sender, the leases and the time ([`answer()`]). `services/dhcp6` writes
//! the leases and sends the replies.

pub mod answer;
pub mod choose;
mod fqdn;
pub mod held;
pub mod metrics;
pub mod rate;
#[cfg(test)]
mod tests;
pub mod wire;

pub use answer::{Answer, Book, Ignored, Server, answer};
pub use held::Held;
pub use metrics::Metrics;
pub use rate::Rates;

/// The port that servers listen on (RFC 8415 section 7.2).
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 546;
