//! Links, addresses and routes through rtnetlink, in-process. Nothing here decides what should exist.

mod batch;
mod bridge;
mod clsact;
mod error;
mod ready;
mod route;
pub mod segments;
mod veth;
mod watch;

pub use bridge::{Borrowing, BridgeSpec, ensure_bridge, to_borrow};
pub use error::NetError;
pub use route::default_route_of;
pub(crate) use veth::in_runtime;
pub use veth::{VethSpec, address_inside, attach_veth, finish_veth, has_end_of, host_if_name, raise_inside};
pub use watch::{NetEvent, watch};

pub use crate::model::alias;
pub use crate::plan::Link as LinkInfo;

use crate::kernel::kill_point;
use crate::model::Mac;
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo as Info, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, LinkUnspec};
use std::net::IpAddr;

/// A connection to one namespace's rtnetlink; cheap to clone.
#[derive(Clone)]
pub struct Net {
    handle: Handle,
}

/// An address of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// Index of its link.
    pub link: u32,
    /// The address, with its network's prefix length.
    pub address: IpNetwork,
    /// Tentative, deprecated, temporary and so on. For IPv4 secondary is what is temporary for IPv6.
    pub flags: AddressFlags,
    /// Its scope (`rtnetlink(7)`) is wider than its link.
    pub beyond_link: bool,
}

impl Net {
    /// Connects to the calling thread's namespace; the connection lives on the current tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn here() -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| NetError::new("open", "netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All links.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn links(&self) -> Result<Vec<LinkInfo>, NetError> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(NetError::nl("list", "links"))?;
        Ok(messages.iter().map(LinkInfo::from).collect())
    }

    /// The link called `name`, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn link(&self, name: &str) -> Result<Option<LinkInfo>, NetError> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(LinkInfo::from)),
            Err(e) => match NetError::nl("find link", name)(e) {
                e if e.is(libc::ENODEV) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// All addresses with the index of their link.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNetwork)>, NetError> {
        Ok(self.address_infos().await?.iter().map(|info| (info.link, info.address)).collect())
    }

    /// All addresses with their state, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn address_infos(&self) -> Result<Vec<AddressInfo>, NetError> {
        let messages: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(NetError::nl("list", "addresses"))?;
        Ok(messages.iter().filter_map(info_of).collect())
    }

    /// Changes one link.
    async fn set_link(
        &self,
        name: &str,
        index: u32,
        change: impl FnOnce(rtnetlink::LinkMessageBuilder<LinkUnspec>) -> rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        kill_point::pass();
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(NetError::nl("set up link", name))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_up(&self, name: &str, index: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.up()).await
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_down(&self, name: &str, index: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.down()).await
    }

    /// Sets a link's MTU, bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_mtu(&self, name: &str, index: u32, mtu: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.mtu(mtu)).await
    }

    /// Makes a link a port of bridge `bridge`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn enslave(&self, name: &str, index: u32, bridge: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.controller(bridge)).await
    }

    /// Tells the bridge that `mac` is behind its port `name`, whoever else sends from it. A bridge learns from any frame, so
    /// another port of it, of a LAN say, could draw the device's packets to a container by one frame with its MAC. The flag
    /// is of kernel 4.20 (`NTF_STICKY`).
    ///
    /// # Errors
    /// The kernel's.
    pub async fn hold_mac(&self, name: &str, index: u32, mac: Mac) -> Result<(), NetError> {
        kill_point::pass();
        let request = self.handle.neighbours().add_bridge(index, &mac.0);
        let request = request.flags(NeighbourFlags::Controller | NeighbourFlags::Sticky).state(NeighbourState::Noarp);
        let done = request.replace().execute().await;
        done.map_err(NetError::nl("hold the MAC behind", name))
    }

    /// Deletes a link; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_link(&self, name: &str, index: u32) -> Result<(), NetError> {
        kill_point::pass();
        match self.handle.link().del(index).execute().await.map_err(NetError::nl("delete link", name)) {
            Err(e) if e.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Adds an address, IPv6 without duplicate address detection (RFC 4862 section 5.4), as the pool hands every address
    /// out once. One that is there is fine. It can be used after [`Net::wait_until_received`].
    ///
    /// # Errors
    /// The kernel's.
    pub async fn add_address(&self, link: &str, index: u32, address: IpNetwork) -> Result<(), NetError> {
        kill_point::pass();
        let mut request = self.handle.address().add(index, address.ip(), address.prefix());
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let what = format!("{address} on {link}");
        match request.execute().await.map_err(NetError::nl("add address", &what)) {
            Err(e) if e.is(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Deletes an address; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_address(&self, link: &str, index: u32, address: IpNetwork) -> Result<(), NetError> {
        let what = format!("{address} on {link}");
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(NetError::nl("list addresses of", link))?;
        for message in messages.into_iter().filter(|m| address_of(m) == Some((index, address))) {
            kill_point::pass();
            match self.handle.address().del(message).execute().await.map_err(NetError::nl("delete address", &what)) {
                Err(e) if e.is(libc::EADDRNOTAVAIL) || e.is(libc::ENODEV) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// The address that a message is about; none when it names none.
#[must_use]
pub fn info_of(message: &AddressMessage) -> Option<AddressInfo> {
    let (link, address) = address_of(message)?;
    let find = |a: &AddressAttribute| if let AddressAttribute::Flags(flags) = a { Some(*flags) } else { None };
    let low = || AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let flags = message.attributes.iter().find_map(find).unwrap_or_else(low);
    Some(AddressInfo { link, address, flags, beyond_link: u8::from(message.header.scope) < AddressScope::Link.into() })
}

fn address_of(message: &AddressMessage) -> Option<(u32, IpNetwork)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // IFA_ADDRESS is the peer's on point-to-point links; IFA_LOCAL is ours, where it is given.
    let ip: IpAddr = find(true).or_else(|| find(false))?;
    Some((message.header.index, IpNetwork::new(ip, message.header.prefix_len).ok()?))
}

impl From<&LinkMessage> for LinkInfo {
    fn from(message: &LinkMessage) -> Self {
        let mut info = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            alias: None,
            other_end: None,
            controller: None,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            l3s: false,
        };
        // Others have addresses of six octets too: loopback, and radios that hand up raw frames.
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => info.name.clone_from(name),
                LinkAttribute::Address(mac) if is_ethernet => info.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
                LinkAttribute::IfAlias(alias) => info.alias = Some(alias.clone()),
                LinkAttribute::Link(index) => info.other_end = Some(*index),
                LinkAttribute::Controller(index) => info.controller = Some(*index),
                LinkAttribute::LinkInfo(parts) => {
                    info.kind = parts.iter().find_map(kind_of);
                    info.l3s = parts.iter().any(is_l3s);
                }
                _ => {}
            }
        }
        info
    }
}

fn kind_of(part: &Info) -> Option<String> {
    match part {
        Info::Kind(InfoKind::Other(name)) => Some(name.clone()),
        Info::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn is_l3s(part: &Info) -> bool {
    let Info::Data(InfoData::IpVlan(parts)) = part else { return false };
    parts.contains(&InfoIpVlan::Mode(IpVlanMode::L3S))
}

#[cfg(test)]
mod tests;
