//! Links, addresses and routes through rtnetlink, in-process. Nothing here decides what should exist.

mod batch;
pub mod clsact;
mod elsewhere;
mod error;
mod host_route;
mod inside;
mod legs;
mod nsid;
mod ready;
mod route;
pub mod segments;
mod watch;

pub(in crate::kernel) use batch::{add_with_alias, errno_of_new};
pub use error::NetError;
pub use inside::{Netns, in_time};
pub use route::default_route_of;
pub use watch::{NetEvent, watch};

pub use crate::model::alias;
pub use crate::plan::{Address as AddressInfo, Link as LinkInfo};

use crate::kernel::bpf::children::{self, is_number};
use crate::kernel::kill_point;
use crate::model::{IfName, Mac};
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo};
use rtnetlink::packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo as Info, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, LinkUnspec};
use std::net::IpAddr;

/// A connection to rtnetlink in one namespace; cheap to clone.
#[derive(Clone, Debug)]
pub struct Net {
    pub(in crate::kernel) handle: Handle,
    /// It is in the device's namespace, where macvlan interfaces of containers are found by their numbers.
    device: bool,
}

impl Net {
    /// Connects to rtnetlink in the calling thread's namespace. The connection lives on the current tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn here() -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| NetError::new("open", "netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self { handle, device: true })
    }

    /// All links, and the macvlan and ipvlan interfaces of containers.
    ///
    /// # Errors
    /// When the kernel refuses to list the links.
    pub async fn links(&self) -> Result<Vec<LinkInfo>, NetError> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(NetError::nl("list", "links"))?;
        let mut links: Vec<LinkInfo> = messages.iter().map(LinkInfo::from).collect();
        links.extend(self.children().await);
        Ok(links)
    }

    /// The link with this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses to look it up.
    pub async fn link(&self, name: &str) -> Result<Option<LinkInfo>, NetError> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(LinkInfo::from)),
            Err(e) => match NetError::nl("find link", name)(e) {
                e if e.is(libc::ENODEV) => Ok(self.child_named(name).await),
                e => Err(e),
            },
        }
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses to look it up.
    pub async fn link_at(&self, index: u32) -> Result<Option<LinkInfo>, NetError> {
        if is_number(index) {
            return Ok(self.child_at(index).await);
        }
        match self.handle.link().get().match_index(index).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(LinkInfo::from)),
            Err(e) => match NetError::nl("find link", &index.to_string())(e) {
                e if e.is(libc::ENODEV) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// All addresses with the index of their link.
    ///
    /// # Errors
    /// When the kernel refuses to list the addresses.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNetwork)>, NetError> {
        Ok(self.address_infos().await?.iter().map(|info| (info.link, info.address)).collect())
    }

    /// All addresses with their state, in the kernel's order.
    ///
    /// # Errors
    /// When the kernel refuses to list the addresses.
    pub async fn address_infos(&self) -> Result<Vec<AddressInfo>, NetError> {
        let messages: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(NetError::nl("list", "addresses"))?;
        Ok(messages.iter().filter_map(info_of).collect())
    }

    /// Changes the settings of one link.
    pub(in crate::kernel) async fn set_link(
        &self,
        name: &str,
        index: u32,
        change: impl FnOnce(rtnetlink::LinkMessageBuilder<LinkUnspec>) -> rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        if is_number(index) {
            return match children::at(index) {
                Some(child) => self.set_child(&child, change).await,
                None => Ok(()),
            };
        }
        kill_point::pass();
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(NetError::nl("change link", name))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// When the kernel refuses, such as `ENODEV`.
    pub async fn set_up(&self, name: &str, index: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.up()).await
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// When the kernel refuses, such as `ENODEV`.
    pub async fn set_down(&self, name: &str, index: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.down()).await
    }

    /// Renames a link. Kernels before 6.2 rename no link that is up; there the link is set down meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses, such as `EEXIST` when another link has the name.
    pub async fn rename(&self, link: &str, index: u32, name: &IfName) -> Result<(), NetError> {
        let rename = |l: rtnetlink::LinkMessageBuilder<LinkUnspec>| l.name(name.to_string());
        match self.set_link(link, index, rename).await {
            Err(e) if e.is(libc::EBUSY) => {
                self.set_down(link, index).await?;
                let renamed = self.set_link(link, index, rename).await;
                let now = if renamed.is_ok() { name.as_str() } else { link };
                let up = self.set_up(now, index).await;
                renamed.and(up)
            }
            other => other,
        }
    }

    /// Sets a link's MTU in bytes.
    ///
    /// # Errors
    /// When the kernel refuses, such as `EINVAL` for a value that the driver does not support.
    pub async fn set_mtu(&self, name: &str, index: u32, mtu: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.mtu(mtu)).await
    }

    /// Makes a link a port of the bridge with index `bridge`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn enslave(&self, name: &str, index: u32, bridge: u32) -> Result<(), NetError> {
        self.set_link(name, index, |l| l.controller(bridge)).await
    }

    /// Adds a static entry to the bridge's table: `mac` is behind its port `name`. A bridge learns from any frame, so
    /// without this another port, of a LAN for example, could draw the device's packets to a container with one frame
    /// from its MAC. The flag is `NTF_STICKY` (kernel 4.20).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn hold_mac(&self, name: &str, index: u32, mac: Mac) -> Result<(), NetError> {
        kill_point::pass();
        let request = self.handle.neighbours().add_bridge(index, &mac.0);
        let request = request.flags(NeighbourFlags::Controller | NeighbourFlags::Sticky).state(NeighbourState::Noarp);
        let done = request.replace().execute().await;
        done.map_err(NetError::nl("hold the MAC behind", name))
    }

    /// Deletes a link; a missing one is fine.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than `ENODEV`.
    pub async fn delete_link(&self, name: &str, index: u32) -> Result<(), NetError> {
        if is_number(index) {
            return match children::at(index) {
                Some(child) => self.delete_child(&child).await,
                None => Ok(()),
            };
        }
        kill_point::pass();
        match self.handle.link().del(index).execute().await.map_err(NetError::nl("delete link", name)) {
            Err(e) if e.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Adds an address. For IPv6 there is no duplicate address detection (RFC 4862 section 5.4), as a pool hands out
    /// each address only once. One that is `deprecated` (RFC 4862 section 5.5.4) is only for connections that name it, and
    /// brings no route. An address that is there already is fine. The address can be used after
    /// [`Net::wait_until_received`].
    ///
    /// # Errors
    /// When the kernel refuses for another reason than `EEXIST`.
    pub async fn add_address(
        &self,
        link: &str,
        index: u32,
        address: IpNetwork,
        deprecated: bool,
    ) -> Result<(), NetError> {
        kill_point::pass();
        let mut request = self.handle.address().add(index, address.ip(), address.prefix());
        if address.is_ipv6() {
            let attributes = &mut request.message_mut().attributes;
            let mut flags = AddressFlags::Nodad;
            if deprecated {
                flags |= AddressFlags::Noprefixroute;
                let mut times = CacheInfo::default();
                (times.ifa_preferred, times.ifa_valid) = (0, u32::MAX);
                attributes.push(AddressAttribute::CacheInfo(times));
            }
            attributes.push(AddressAttribute::Flags(flags));
        }
        let what = format!("{address} on {link}");
        match request.execute().await.map_err(NetError::nl("add address", &what)) {
            Err(e) if e.is(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Deletes an address; a missing one is fine.
    ///
    /// # Errors
    /// When the addresses cannot be listed, or the kernel refuses to delete it.
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

/// The address that a message is about; `None` when it names none.
#[must_use]
pub fn info_of(message: &AddressMessage) -> Option<AddressInfo> {
    let (link, address) = address_of(message)?;
    let find = |a: &AddressAttribute| if let AddressAttribute::Flags(flags) = a { Some(*flags) } else { None };
    let low = || AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let flags = message.attributes.iter().find_map(find).unwrap_or_else(low);
    let has = |flag: AddressFlags| flags.contains(flag);
    let optimistic = has(AddressFlags::Optimistic);
    Some(AddressInfo {
        link,
        address,
        beyond_link: u8::from(message.header.scope) < AddressScope::Link.into(),
        secondary: has(AddressFlags::Secondary),
        avoided: has(AddressFlags::Deprecated) || optimistic,
        unusable: has(AddressFlags::Tentative) && !optimistic || has(AddressFlags::Dadfailed),
    })
}

fn address_of(message: &AddressMessage) -> Option<(u32, IpNetwork)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    // On point-to-point links IFA_ADDRESS is the peer's address, and IFA_LOCAL is the link's own.
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
            other_ns: None,
            controller: None,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            l3s: false,
        };
        // Other kinds of links have six-byte addresses too: loopback, and radios in monitor mode.
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => info.name.clone_from(name),
                LinkAttribute::Address(mac) if is_ethernet => info.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
                LinkAttribute::IfAlias(alias) => info.alias = Some(alias.clone()),
                LinkAttribute::Link(index) => info.other_end = Some(*index),
                LinkAttribute::LinkNetNsId(id) => info.other_ns = Some(*id),
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
