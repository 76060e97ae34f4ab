//! The sockets that a container's program may have.

use super::{PortMatch, Selector};
use serde::{Deserialize, Serialize};

/// What a container's `run.json` grants its program. The data plane refuses everything else that is sent to the container
/// or by it; replies pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// Ports of the container that others reach, over TCP and UDP.
    #[serde(default)]
    pub listen: Vec<PortMatch>,
    /// Whom it reaches.
    #[serde(default)]
    pub connect: Vec<Peer>,
    /// Whether it asks the name servers of its pools.
    #[serde(default)]
    pub resolve: bool,
}

/// Whom a container reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The receivers.
    pub to: Selector,
    /// Their ports.
    pub ports: Vec<PortMatch>,
}

impl Sockets {
    /// Whether it grants nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it grants sockets of TCP and of UDP that are not for names.
    #[must_use]
    pub fn transports(&self) -> (bool, bool) {
        let mut all = self.listen.iter().chain(self.connect.iter().flat_map(|peer| &peer.ports));
        let has_tcp = all.clone().any(|ports| matches!(ports, PortMatch::Tcp(_)));
        (has_tcp, all.any(|ports| matches!(ports, PortMatch::Udp(_))))
    }
}
