//! Links, addresses and routes that come and go.

use super::{LinkInfo, NetError};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
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
    },
    /// A link, address or route changed.
    Changed,
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
    ];
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups)
        .map_err(|e| NetError::new("open", "netlink socket for events", e))?;
    tokio::spawn(connection);
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let event = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m)) => {
                    let link = LinkInfo::from(&m);
                    NetEvent::LinkGone { index: link.index, name: link.name }
                }
                NetlinkPayload::InnerMessage(_) => NetEvent::Changed,
                _ => continue,
            };
            if send.send(event).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}
