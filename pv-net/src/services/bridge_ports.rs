//! Which port of a bridge a message came by, and whether it is read. What a client may send and have is counted by its
//! port, since a port cannot be made up.

use crate::dhcp::{Origin, Rates, Sender};
use crate::kernel::netlink::Net;
use crate::model::Mac;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long the port of a MAC is taken from memory.
const KNOWN: Duration = Duration::from_secs(1);
/// Ports of MACs that are remembered: more than are looked up while they are known.
const MOST_KNOWN: usize = 1 << 14;

/// The messages that are read of those that come by the ports of a bridge.
pub(super) struct BridgePorts {
    net: Net,
    link: u32,
    rates: Rates,
    known: HashMap<Mac, (u32, Instant)>,
}

impl BridgePorts {
    /// Those of the bridge with the index `link`.
    pub fn of(link: u32, net: Net) -> Self {
        Self { net, link, rates: Rates::default(), known: HashMap::new() }
    }

    /// Where a message of `mac` came from; `None` if its sender exceeds the rate, so that it is not read. The port of a
    /// container is not looked up, since nothing is counted by it.
    pub async fn admit(&mut self, mac: Mac, sender: Sender) -> Option<Origin> {
        if sender == Sender::Container {
            return self.rates.take(mac, None, Instant::now()).then_some(Origin { mac, port: 0 });
        }
        let from = self.find(mac, sender).await?;
        self.rates.take(mac, Some(from.port), Instant::now()).then_some(from)
    }

    /// The port that `mac` was seen behind last; `None` for a stranger when too many are being looked up. Those who have
    /// something are as few as the ports may have, so that no made-up MACs keep them out. Where the port cannot be told it
    /// is 0, and all such clients share what one port may have.
    pub async fn find(&mut self, mac: Mac, sender: Sender) -> Option<Origin> {
        let now = Instant::now();
        let is_known = |at: Instant| now.saturating_duration_since(at) < KNOWN;
        if let Some((port, _)) = self.known.get(&mac).filter(|(_, at)| is_known(*at)) {
            return Some(Origin { mac, port: *port });
        }
        if !self.rates.may_look_up(sender, now) {
            return None;
        }
        if self.known.len() >= MOST_KNOWN {
            self.known.retain(|_, (_, at)| is_known(*at));
        }
        let port = self.net.bridge_port_of(self.link, mac).await.ok().flatten().unwrap_or(0);
        self.known.insert(mac, (port, now));
        Some(Origin { mac, port })
    }
}
