//! What happens, as it happens: to everybody who listens, and kept for nobody. Nothing is decided by it; what is so is in
//! the snapshot.

mod bus;
mod changes;
mod kernel;
mod names;

pub use bus::{Bus, Heard, Listener};
pub use changes::changes;
pub use kernel::forward;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventView {
    /// A packet was dropped.
    Drop(DropEventView),
    /// A program of the device was refused a port.
    Bind(BindEventView),
    /// Something about the device or a container is another than before.
    Change(ChangeEventView),
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropEventView {
    /// Seconds since boot.
    pub time: f64,
    /// Why.
    pub reason: String,
    /// Container that sent it.
    pub container: Option<String>,
    /// Link that it came in on.
    pub interface: String,
    /// Source address; none for what is not IP.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port, or echo identifier.
    pub sport: u16,
    /// Destination port, or echo identifier.
    pub dport: u16,
    /// Protocol.
    pub proto: String,
}

/// A program of the device that could not bind to a port, for a container publishes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BindEventView {
    /// Seconds since boot.
    pub time: f64,
    /// `port-published`.
    pub reason: String,
    /// Container that publishes the port.
    pub container: Option<String>,
    /// The address that the program named.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Protocol.
    pub proto: String,
    /// Name of the program, at most 15 bytes of it.
    pub program: String,
    /// Its process.
    pub pid: u32,
}

/// Something that the daemon did or noticed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeEventView {
    /// Seconds since boot.
    pub time: f64,
    /// What happened.
    pub event: Change,
    /// The container that it is about; none when it is about the device.
    pub container: Option<String>,
    /// The condition, when it is about one.
    pub text: Option<String>,
}

/// What happened to the device or to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// All of its links are there.
    Attached,
    /// It was detached.
    Detached,
    /// It is attached, and a link of it went away.
    LinkLost,
    /// The configuration was read again.
    Reloaded,
    /// Something is not as it should be.
    Condition,
    /// And is so no more.
    ConditionCleared,
}
