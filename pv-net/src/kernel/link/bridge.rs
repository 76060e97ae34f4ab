//! A pool's bridge.

use crate::kernel::forwarding::AdvertisedRoutes;
use crate::kernel::netlink::{Net, NetError, add_with_alias};
use crate::kernel::sysctl;
use crate::model::Mac;
use crate::plan::{Bridge, LinkSysctl};
use futures_util::StreamExt;
use rtnetlink::LinkBridge;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

impl Net {
    /// Makes a bridge, down and without an address.
    ///
    /// # Errors
    /// When the kernel refuses, such as `EEXIST`; there is no new link then.
    pub async fn make_bridge(&self, bridge: &Bridge) -> Result<(), NetError> {
        let name = bridge.name.as_str();
        let message = LinkBridge::new(name).address(bridge.mac.0.to_vec()).mtu(bridge.mtu).build();
        add_with_alias("make bridge", name, message, &bridge.alias).await
    }

    /// Sets a link's MAC. A bridge whose MAC was set does not follow the MACs of its ports.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mac(&self, name: &str, index: u32, mac: Mac) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.address(mac.0.to_vec())).await
    }

    /// Index of the port of a bridge behind which `mac` is, as far as the bridge has learned it. Needs Linux 5.0.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn bridge_port_of(&self, bridge: u32, mac: Mac) -> Result<Option<u32>, NetError> {
        let mut asks = NeighbourMessage::default();
        asks.header.family = AddressFamily::Bridge;
        asks.attributes =
            vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), NeighbourAttribute::Controller(bridge)];
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(asks));
        message.header.flags = NLM_F_REQUEST;
        let failed = NetError::nl("find the port of", "a MAC");
        let mut answers = match self.handle.clone().request(message) {
            Ok(answers) => answers,
            Err(e) => return Err(failed(e)),
        };
        match answers.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found))) => {
                Ok(Some(found.header.ifindex))
            }
            Some(NetlinkPayload::Error(e)) if e.to_io().raw_os_error() != Some(libc::ENOENT) => {
                Err(failed(rtnetlink::Error::NetlinkError(e)))
            }
            _ => Ok(None),
        }
    }

    /// Sets a link's `ifalias`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_alias(&self, name: &str, index: u32, alias: &str) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.alias(alias.to_owned())).await
    }
}

/// Writes a sysctl of a link. Without IPv6 in the kernel, missing IPv6 settings are no error, except `disable_ipv6`.
///
/// # Errors
/// When the sysctl cannot be written.
pub fn set_link_sysctl(LinkSysctl { family, link, key }: &LinkSysctl, value: &str) -> Result<(), NetError> {
    let forwards = *family == "ipv6" && *key == "forwarding" && value == "1";
    let _routes = forwards.then(AdvertisedRoutes::keep);
    let is_there = sysctl::set(family, link, key, value)?;
    if !is_there && *key == "disable_ipv6" {
        return Err(NetError::NoIpv6 { name: link.to_string() });
    }
    Ok(())
}
