//! A pool's bridge.

use super::batch::add_with_alias;
use super::{LinkInfo, Net, NetError, alias};
use crate::kernel::forwarding::{Forwarded, listeners, switch_on, switched_off};
use crate::kernel::sysctl;
use crate::model::{IfName, Mac};
use ipnetwork::IpNetwork;
use rtnetlink::LinkBridge;

/// A bridge as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name.
    pub name: IfName,
    /// Gateway addresses with the pool's prefix length.
    pub gateways: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest TCP segment before it is cut for the wire, bytes.
    pub segment_bytes: u32,
    /// Its MAC: set, so that ports that come and go do not change it.
    pub mac: Mac,
    /// `ifalias` of a bridge that pv-net makes.
    pub alias: String,
}

/// What [`ensure_bridge`] is about to change of a bridge that somebody else made, and is to be given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borrowing {
    /// Addresses that it lacks.
    pub addresses: Vec<IpNetwork>,
    /// It is down.
    pub raises: bool,
    /// What forwarding will change on it.
    pub forwarded: Forwarded,
    /// Other links that take router advertisements: while forwarding is switched on, the kernel would forget what those
    /// have said, so their `accept_ra` is another one for a moment.
    pub meanwhile: Vec<IfName>,
}

/// Looks what [`ensure_bridge`] is about to change that is not pv-net's own.
///
/// # Errors
/// The kernel's.
pub async fn to_borrow(net: &Net, spec: &BridgeSpec) -> Result<Borrowing, NetError> {
    let found = net.link(spec.name.as_str()).await?;
    let forwarded = switched_off(&spec.name);
    let mut borrowing = Borrowing::default();
    if found.is_none() || forwarded.families.iter().any(|family| family == "ipv6") {
        borrowing.meanwhile = listeners().into_iter().filter(|link| *link != spec.name).collect();
    }
    if let Some(link) = found
        && link.kind.as_deref() == Some("bridge")
        && !alias::is_ours(link.alias.as_deref())
    {
        let present = net.addresses().await?;
        let lacks = |gateway: &&IpNetwork| !present.contains(&(link.index, **gateway));
        borrowing.addresses = spec.gateways.iter().filter(lacks).copied().collect();
        borrowing.raises = !link.up;
        borrowing.forwarded = forwarded;
    }
    Ok(borrowing)
}

/// Makes the bridge, or completes the one that is there. Of a bridge that pv-net did not make only addresses that are
/// missing are added, it is set up, forwarding is switched on for it, and its MAC is held as it is, as it would follow that
/// of its ports; its MTU stays.
///
/// Routes for containers are looked up as if their packets came in on the bridge, and the kernel looks none up where
/// forwarding is off.
///
/// # Errors
/// When there is a link of that name that is no bridge, or the kernel refuses. A bridge made by this call is removed
/// again.
pub async fn ensure_bridge(net: &Net, spec: &BridgeSpec) -> Result<LinkInfo, NetError> {
    let name = spec.name.as_str();
    let found = net.link(name).await?;
    match found {
        Some(link) if link.kind.as_deref() != Some("bridge") => {
            Err(NetError::Foreign { name: name.to_owned(), kind: link.kind.unwrap_or_else(|| "device".to_owned()) })
        }
        Some(link) => {
            let ours = alias::is_ours(link.alias.as_deref());
            if ours {
                set_properties(net, spec, &link).await?;
            } else if let Some(mac) = link.mac {
                // Containers have the gateway's MAC in their neighbour tables when a port comes or goes.
                net.set_link(name, link.index, |l| l.address(mac.to_vec())).await?;
            }
            switch_on(&spec.name)?;
            complete(net, spec, &link, ours).await?;
            find(net, name).await
        }
        None => {
            let message = LinkBridge::new(name).address(spec.mac.0.to_vec()).mtu(spec.mtu).build();
            add_with_alias("make bridge", name, message, &spec.alias).await?;
            let link = find(net, name).await?;
            let finish = async {
                switch_on(&spec.name)?;
                complete(net, spec, &link, true).await?;
                find(net, name).await
            };
            match finish.await {
                Ok(link) => Ok(link),
                Err(e) => {
                    net.delete_link(name, link.index).await?;
                    Err(e)
                }
            }
        }
    }
}

async fn find(net: &Net, name: &str) -> Result<LinkInfo, NetError> {
    net.link(name).await?.ok_or_else(|| NetError::Vanished { name: name.to_owned() })
}

async fn set_properties(net: &Net, spec: &BridgeSpec, link: &LinkInfo) -> Result<(), NetError> {
    if link.mac != Some(spec.mac.0) || link.mtu != spec.mtu {
        net.set_link(&link.name, link.index, |l| l.address(spec.mac.0.to_vec()).mtu(spec.mtu)).await?;
    }
    if link.alias.as_deref() != Some(&spec.alias) {
        net.set_link(&link.name, link.index, |l| l.alias(spec.alias.clone())).await?;
    }
    Ok(())
}

/// Addresses and up. The settings of a bridge that is not `ours` stay as they are.
async fn complete(net: &Net, spec: &BridgeSpec, link: &LinkInfo, ours: bool) -> Result<(), NetError> {
    if ours {
        net.set_segment_bytes(&link.name, link.index, spec.segment_bytes).await;
        // The device is the router here: it takes no advice from containers.
        let has_ipv6 = sysctl::set_ipv6(&spec.name, "accept_ra", "0")?;
        if spec.gateways.iter().any(IpNetwork::is_ipv6) {
            if !has_ipv6 {
                return Err(NetError::NoIpv6 { name: link.name.clone() });
            }
            sysctl::set_ipv6(&spec.name, "disable_ipv6", "0")?;
        }
    }
    let present = net.addresses().await?;
    let mut added = Vec::new();
    for gateway in &spec.gateways {
        if !present.contains(&(link.index, *gateway)) {
            net.add_address(&link.name, link.index, *gateway).await?;
            added.push(*gateway);
        }
    }
    if !link.up {
        net.set_up(&link.name, link.index).await?;
    }
    net.wait_until_received(link.index, &added).await;
    Ok(())
}
