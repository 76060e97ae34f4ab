//! What a container offers to others.

use super::Transport;

/// A service of a container, on a port of its own (`services.json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What others find it by: a label, in lower case.
    pub name: String,
    /// What is spoken, such as `tcp` or `http`.
    pub kind: String,
    /// What that is spoken over.
    pub transport: Transport,
    /// The container's port.
    pub port: u16,
}
