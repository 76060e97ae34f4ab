//! The services, which run beside the controller. Each has its own timers, handles and state, reads snapshots, and
//! sends reports.

mod bridge_ports;
mod declared;
mod dhcp;
mod dhcp6;
mod dhcp_client;
mod dns;
mod link_local;
mod memory;
mod pantavisor;
mod places;
mod ra;
mod resolved;
mod runner;
mod sweep;

pub use declared::declared;
pub use dhcp::dhcp;
pub use dhcp_client::dhcp_client;
pub use dhcp6::{Dhcp6, dhcp6};
pub use dns::dns;
pub use memory::memory;
pub use pantavisor::{Pantavisor, Rejection, pantavisor};
pub use ra::ra;
pub use resolved::resolved;
pub use runner::{Follow, runner};
pub use sweep::sweep;

use crate::failure::{Failure, Kind};

/// The failure of a service whose work on another thread has panicked.
fn panicked(what: &str, e: &tokio::task::JoinError) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}
