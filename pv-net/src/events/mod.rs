//! Events: sent to all listeners when they happen, and not stored. Nothing is decided by an event; the state is in the
//! snapshot.

mod changes;
mod kernel;
mod names;

pub use changes::changes;
pub use kernel::forward;

use crate::bus;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The bus that carries events.
pub type Bus = bus::Bus<EventView>;

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventView {
    /// A packet was dropped.
    Drop(DropEventView),
    /// A program of the device was refused a port.
    Bind(BindEventView),
    /// Something about the device or a container has changed.
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
    /// Source address; none for a packet that is not IP.
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

/// A program of the device could not bind a port, because a container publishes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BindEventView {
    /// Seconds since boot.
    pub time: f64,
    /// Always `port-published`.
    pub reason: String,
    /// Container that publishes the port.
    pub container: Option<String>,
    /// The address that the program named.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Protocol.
    pub proto: String,
    /// Name of the program, at most 15 bytes.
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
    /// The container that it is about; none for the device.
    pub container: Option<String>,
    /// The text of the condition, or of the repair; the name of the interface.
    pub text: Option<String>,
}

/// What happened to the device or to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// All links of a container exist.
    Attached,
    /// A container was detached.
    Detached,
    /// An interface was added to an attached container; the text is its name.
    InterfaceAttached,
    /// An interface was removed from a container that stays attached; the text is its name.
    InterfaceDetached,
    /// A container is attached, and one of its links went away.
    LinkLost,
    /// The configuration was read again.
    Reloaded,
    /// Something that somebody else had changed was repaired; the text says what was wrong and what was done.
    Repaired,
    /// A client of DHCP has an address that it had not: which one and who is in the text.
    Leased,
    /// Somebody uses an address that is for clients of DHCP, and that he was not given.
    AddressConflict,
    /// A new condition: something is wrong.
    Condition,
    /// A condition is over.
    ConditionCleared,
}
