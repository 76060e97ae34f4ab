//! Router advertisements (RFC 4861) to the hosts on a pool's bridge: their contents and their times.
//!
//! Pure: the contents follow from a snapshot ([`Advert`]), the times from what was received and from the clock, which
//! is passed in ([`Schedule`]). The sockets are in `services/ra`.

pub mod advert;
pub mod metrics;
pub mod schedule;
pub mod solicitation;
#[cfg(test)]
mod tests;

pub use advert::{Advert, Prefix};
pub use metrics::Metrics;
pub use schedule::{Schedule, To};
