//! Links that pv-net makes: the interfaces of containers, one file for each kind, and the bridges of pools.
//!
//! The daemon describes an interface by a [`LinkSpec`] and knows nothing of its kind: a further kind is a variant of
//! [`LinkKind`] and a file beside `veth.rs`.

mod arrange;
mod bridge;
mod configure;
mod device_if;
mod ipvlan;
mod macvlan;
mod netkit;
#[cfg(test)]
mod tests;
mod veth;

pub use arrange::{arrange, leave};
pub use bridge::set_link_sysctl;
pub use ipvlan::is_known as knows_ipvlan;
pub use macvlan::parent_misfit;
pub use netkit::is_known as knows_netkit;
pub use veth::{end_in, has_end_of};

use super::KernelError;
use super::bpf::{DataPlane, children};
use super::netlink::{LinkInfo, Net, NetError, Netns, alias, in_time};
use crate::model::{ContainerName, IfName, Mac, MacvlanMode};
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

/// The desired state of a container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// How the interface is connected to its pool.
    pub kind: LinkKind,
    /// Name of the host-side link.
    pub host_if: IfName,
    /// Name inside the container, unless the container has renamed it.
    pub container_if: IfName,
    /// MAC inside the container.
    pub mac: Mac,
    /// MTU of the interface, bytes.
    pub mtu: u32,
    /// Largest TCP segment before it is split for the wire, bytes.
    pub segment_bytes: u32,
    /// Addresses with the pool's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// `ifalias` of the host-side link.
    pub alias: String,
}

/// How a container's interface is connected to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A veth pair with one end as a port of the pool's bridge, and the other in the container's namespace.
    Veth {
        /// Index of the bridge.
        bridge: u32,
    },
    /// As veth, with a netkit pair.
    Netkit {
        /// Index of the bridge.
        bridge: u32,
    },
    /// A macvlan on a link of the device. Its programs are attached before it is moved into the container's namespace.
    Macvlan {
        /// Index of that link.
        parent: u32,
        /// How interfaces on it reach each other.
        mode: MacvlanMode,
    },
    /// As macvlan, with the MAC of the parent: an ipvlan in mode l2.
    Ipvlan {
        /// Index of the parent.
        parent: u32,
    },
}

impl LinkSpec {
    /// Makes the interface down, so that nothing passes before the programs are attached.
    /// [`address_inside`](Self::address_inside) and [`raise_inside`](Self::raise_inside) complete it. Returns its
    /// host-side link.
    ///
    /// An interface with the same alias that is in this namespace is adopted. One with another alias of pv-net is a
    /// leftover and is made anew. A pair of the other kind is adopted too: what is in use keeps its kind. A new one is
    /// marked as unfinished ([`alias::unfinished`]) until [`finish`].
    ///
    /// `plane` is needed for kinds whose programs are attached before they are in the container's namespace.
    ///
    /// # Errors
    /// When a name is taken in either namespace, or the kernel refuses. What was made is removed again.
    pub async fn make(&self, net: &Net, netns: &Netns, plane: Option<&mut DataPlane>) -> Result<LinkInfo, KernelError> {
        match self.kind {
            LinkKind::Veth { bridge } => Ok(veth::make(net, self, netns, |peer| veth::pair(self, bridge, peer)).await?),
            LinkKind::Netkit { bridge } => {
                Ok(veth::make(net, self, netns, |peer| netkit::pair(self, bridge, peer)).await?)
            }
            LinkKind::Macvlan { parent, .. } | LinkKind::Ipvlan { parent } => {
                let plane = plane.ok_or(KernelError::NotLoaded)?;
                macvlan::make(net, self, parent, netns, plane).await
            }
        }
    }

    /// Configures the container's end of the link `host` and adds its addresses; what is there already stays. The end
    /// may be down: the kernel's worker makes the addresses usable while the programs are being attached.
    ///
    /// # Errors
    /// When the kernel refuses, or has no IPv6 and an address needs it.
    pub async fn address_inside(&self, host: &LinkInfo, netns: &Netns) -> Result<(), NetError> {
        in_time(configure::address(self, host, netns)).await
    }

    /// Sets the container's end of the link `host` up. Its routes are added by [`arrange`]. The host side must be up
    /// before: a veth whose peer is up carries packets as soon as it is up itself. Otherwise a worker of the kernel
    /// opens its queue later, and what the container sends until then is lost; an ARP request is repeated only after a
    /// second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn raise_inside(&self, host: &LinkInfo, netns: &Netns) -> Result<(), NetError> {
        in_time(configure::raise(self, host, netns)).await
    }
}

/// Name of the host-side link of `interface` of `container`. It begins with readable parts, and is the same every time.
#[must_use]
pub fn host_if_name(container: &ContainerName, interface: &IfName) -> IfName {
    let mut hash = Sha256::new();
    hash.update(container.as_str());
    hash.update([0]);
    hash.update(interface.as_str());
    let hash = hash.finalize();
    let readable: String = container.as_str().chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    let name = format!("pv{readable}-{:02x}{:02x}{:02x}{:x}", hash[0], hash[1], hash[2], hash[3] >> 4);
    name.parse().expect("2 + 5 + 1 + 7 letters, digits and a dash are an interface name")
}

/// Removes the mark of an unfinished attach from `link`. Whatever is missing of the link from now on was removed by
/// somebody.
///
/// # Errors
/// When the kernel refuses to set the alias, or to rename a pin.
pub async fn finish(net: &Net, link: &LinkInfo) -> Result<(), KernelError> {
    if children::is_number(link.index) {
        return Ok(children::finish(link.index)?);
    }
    match link.alias.as_deref().filter(|a| alias::is_unfinished(a)) {
        Some(begun) => {
            let whole = alias::finished(begun).to_owned();
            Ok(net.set_link(&link.name, link.index, |l| l.alias(whole)).await?)
        }
        None => Ok(()),
    }
}
