//! Links, addresses and routes that come and go.

use super::{LinkInfo, NetError, alias, route};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::mpsc;

/// A change in the device's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A link was deleted, or has moved to another namespace.
    LinkGone {
        /// Interface index.
        index: u32,
        /// Its name.
        name: String,
        /// It was a container's, by its alias.
        ours: bool,
    },
    /// A link was made or changed.
    Link {
        /// Interface index.
        index: u32,
        /// It is set up.
        up: bool,
    },
    /// A link is no port of its bridge any more.
    LeftBridge {
        /// Interface index.
        index: u32,
    },
    /// A route changed that may lead beyond its link, or a routing rule or next hop.
    Route {
        /// The links that it leads to, as far as the message names them.
        outputs: Vec<u32>,
    },
    /// An address changed, or a route that leads nowhere else.
    Changed,
}

impl NetEvent {
    /// What a message of the kernel says; nothing for one that is no change.
    #[must_use]
    pub fn of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        let NetlinkPayload::InnerMessage(message) = payload else { return None };
        Some(match message {
            // A bridge says of a port that leaves it that it is gone.
            RouteNetlinkMessage::DelLink(m) if m.header.interface_family == AddressFamily::Bridge => {
                Self::LeftBridge { index: m.header.index }
            }
            RouteNetlinkMessage::DelLink(m) => {
                let link = LinkInfo::from(m);
                let ours = link.kind.as_deref() == Some("veth") && alias::is_ours(link.alias.as_deref());
                Self::LinkGone { index: link.index, name: link.name, ours }
            }
            RouteNetlinkMessage::NewLink(m) => {
                Self::Link { index: m.header.index, up: m.header.flags.contains(LinkFlags::Up) }
            }
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) if route::leads_on(m) => {
                Self::Route { outputs: route::outputs(m) }
            }
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => Self::Changed,
            // Routing rules, next hops.
            _ => Self::Route { outputs: Vec::new() },
        })
    }
}

/// Events of the calling thread's namespace, until the receiver is dropped.
///
/// # Errors
/// When the socket cannot be made.
pub fn watch() -> Result<mpsc::UnboundedReceiver<NetEvent>, NetError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
        MulticastGroup::Nexthop,
    ];
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups)
        .map_err(|e| NetError::new("open", "netlink socket for events", e))?;
    tokio::spawn(connection);
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let Some(event) = NetEvent::of(&message.payload) else { continue };
            if send.send(event).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}
