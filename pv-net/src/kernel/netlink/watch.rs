//! Watches links, addresses and routes that come and go.

use super::{LinkInfo, NetError, alias, clsact, route};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
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
        /// It was a container's link, by its alias.
        ours: bool,
    },
    /// A link was made or changed.
    Link {
        /// Interface index.
        index: u32,
        /// Its name, if the message has it.
        name: Option<String>,
        /// Its `ifalias`, empty if it has none; `None` for a message about a bridge's port, which does not have it.
        alias: Option<String>,
        /// It is set up (`IFF_UP`).
        up: bool,
    },
    /// A link is no longer a port of its bridge.
    LeftBridge {
        /// Interface index.
        index: u32,
    },
    /// A route that packets of a container may use has changed, or a routing rule or next hop.
    Route {
        /// The links that the route leads to, as far as the message names them.
        outputs: Vec<u32>,
    },
    /// A filter of pv-net on a link was replaced or removed, or the link's clsact qdisc was removed.
    Filter {
        /// Id of the program that is there now; `None` when the filter is gone.
        program: Option<u32>,
    },
    /// An address, or a route that packets of a container cannot use, has changed.
    Changed,
}

impl NetEvent {
    /// The event for a message of the kernel; `None` when the message reports no change.
    #[must_use]
    pub fn of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            // Messages were lost because the socket's buffer was full (`ENOBUFS`): anything may have changed.
            NetlinkPayload::Overrun(_) => return Some(Self::Route { outputs: Vec::new() }),
            _ => return None,
        };
        Some(match message {
            // A bridge reports a port that leaves it as a deleted link of its own family.
            RouteNetlinkMessage::DelLink(m) if m.header.interface_family == AddressFamily::Bridge => {
                Self::LeftBridge { index: m.header.index }
            }
            RouteNetlinkMessage::DelLink(m) => {
                let link = LinkInfo::from(m);
                let ours = link.pair().is_some() && alias::is_ours(link.alias.as_deref());
                Self::LinkGone { index: link.index, name: link.name, ours }
            }
            RouteNetlinkMessage::NewLink(m) => {
                let names = m.attributes.iter();
                let mut name =
                    names.filter_map(|a| if let LinkAttribute::IfName(name) = a { Some(name) } else { None });
                let up = m.header.flags.contains(LinkFlags::Up);
                let is_whole = m.header.interface_family == AddressFamily::Unspec;
                let alias = is_whole.then(|| LinkInfo::from(m).alias.unwrap_or_default());
                Self::Link { index: m.header.index, name: name.next_back().cloned(), alias, up }
            }
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) if route::leads_on(m) => {
                Self::Route { outputs: route::outputs(m) }
            }
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => Self::Changed,
            RouteNetlinkMessage::NewTrafficFilter(m) => Self::Filter { program: Some(clsact::own_program(m)?) },
            RouteNetlinkMessage::DelTrafficFilter(m) => {
                clsact::own_program(m).map(|_| Self::Filter { program: None })?
            }
            RouteNetlinkMessage::DelQueueDiscipline(m) if clsact::is_clsact(m) => Self::Filter { program: None },
            RouteNetlinkMessage::NewQueueDiscipline(_)
            | RouteNetlinkMessage::DelQueueDiscipline(_)
            | RouteNetlinkMessage::NewTrafficClass(_)
            | RouteNetlinkMessage::DelTrafficClass(_)
            | RouteNetlinkMessage::NewTrafficChain(_)
            | RouteNetlinkMessage::DelTrafficChain(_) => return None,
            // Routing rules and next hops.
            _ => Self::Route { outputs: Vec::new() },
        })
    }
}

/// Events of the calling thread's namespace, until the receiver is dropped.
///
/// # Errors
/// When the netlink socket cannot be made.
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
        MulticastGroup::Tc,
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
