//! DHCPv6 (RFC 8415): the reply of a pool's server to a message.
//!
//! Pure: the reply follows from the message, the frame that it came in, the leases and the time ([`answer()`]).
//! `services/dhcp6` writes the leases and sends the replies. What one client may have is counted by what the bridge knows
//! of a frame, its MAC and the port that it came by: link-local address and DUID can be made up.

pub mod answer;
mod associations;
pub mod choose;
mod fqdn;
pub mod frame;
pub mod held;
pub mod metrics;
pub mod server;
pub mod table;
#[cfg(test)]
mod tests;
pub mod wire;

pub use answer::{Answer, Ignored, Server, answer};
pub use held::Held;
pub use metrics::Metrics;
pub use table::Table;

/// The port that servers listen on (RFC 8415 section 7.2).
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 546;
