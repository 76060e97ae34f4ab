//! The DNS service: which client may see which name of the device, and what other servers answer about other names.
//!
//! The decisions are pure: [`zone`], [`answer`] and [`prepared`] about the device's own names, [`response`], [`cache`],
//! [`servers`] and [`share`] about other servers. [`Dns`] combines them; the sockets for containers are in
//! `services/dns`.
//!
//! hickory-proto reads and writes messages. Its decoder reads an answer from outside, which is then passed on byte by
//! byte: only the times to live are changed, at the offsets that the decoder has found.

pub mod answer;
pub mod cache;
mod cookie;
mod device;
mod exchange;
pub mod metrics;
pub mod name;
pub mod prepared;
pub mod reply;
pub mod resolv_conf;
mod resolver;
pub mod response;
pub mod reverse;
pub mod servers;
mod service;
pub mod share;
pub mod show;
#[cfg(test)]
mod tests;
pub mod tls;
mod watched;
pub mod wire;
pub mod zone;

pub use resolver::{Asker, Dns, Now, Pending, Resolved};
pub use watched::Exchange;
pub use zone::{Client, NamedClient, PORT, Whose, Zone};
