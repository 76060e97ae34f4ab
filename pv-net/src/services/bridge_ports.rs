//! Which port of a bridge a MAC is behind: what a client may have is counted by its port, since a port cannot be made up.

use crate::kernel::netlink::Net;
use crate::model::Mac;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long the port of a MAC is taken from memory.
const KNOWN: Duration = Duration::from_secs(1);
/// Ports of MACs that are remembered.
const MOST_KNOWN: usize = 4096;

/// Which port of the bridge a MAC was seen behind.
pub(super) struct BridgePorts {
    net: Net,
    link: u32,
    known: HashMap<Mac, (u32, Instant)>,
}

impl BridgePorts {
    /// Those of the bridge with the index `link`.
    pub fn of(link: u32, net: Net) -> Self {
        Self { net, link, known: HashMap::new() }
    }

    /// The index of the port. Where it cannot be told it is 0, and all such clients share what one port may have.
    pub async fn find(&mut self, mac: Mac) -> u32 {
        let now = Instant::now();
        if let Some((port, at)) = self.known.get(&mac)
            && now.saturating_duration_since(*at) < KNOWN
        {
            return *port;
        }
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        let port = self.net.bridge_port_of(self.link, mac).await.ok().flatten().unwrap_or(0);
        self.known.insert(mac, (port, now));
        port
    }
}
