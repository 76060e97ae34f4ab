//! Links that come and go.

use super::{LinkInfo, NetError};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::mpsc;

/// A change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// Interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it was deleted, or has moved to another namespace.
    pub gone: bool,
}

/// Events of the calling thread's namespace, until the receiver is dropped.
///
/// # Errors
/// When the socket cannot be made.
pub fn watch() -> Result<mpsc::UnboundedReceiver<LinkEvent>, NetError> {
    let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .map_err(|e| NetError::new("open", "netlink socket for events", e))?;
    tokio::spawn(connection);
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let (link, gone) = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m)) => (LinkInfo::from(&m), false),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m)) => (LinkInfo::from(&m), true),
                _ => continue,
            };
            if send.send(LinkEvent { index: link.index, name: link.name, gone }).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}
