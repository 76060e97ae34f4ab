//! A pool's bridge.

use super::{LinkInfo, Net, NetError, alias};
use crate::kernel::forwarding::{Forwarded, switch_on};
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

/// What [`ensure_bridge`] found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// The bridge.
    pub link: LinkInfo,
    /// Addresses that were added to a bridge that somebody else made.
    pub borrowed: Vec<IpNetwork>,
    /// It is a bridge that somebody else made, and was down.
    pub raised: bool,
    /// What forwarding changed on a bridge that somebody else made.
    pub forwarded: Forwarded,
}

impl Ensured {
    /// A bridge of which nothing is anybody else's.
    fn ours(link: LinkInfo) -> Self {
        Self { link, borrowed: Vec::new(), raised: false, forwarded: Forwarded::default() }
    }
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
pub async fn ensure_bridge(net: &Net, spec: &BridgeSpec) -> Result<Ensured, NetError> {
    let name = spec.name.as_str();
    let found = net.link(name).await?;
    match found {
        Some(link) if link.kind.as_deref() != Some("bridge") => {
            Err(NetError::Foreign { name: name.to_owned(), kind: link.kind.unwrap_or_else(|| "device".to_owned()) })
        }
        Some(link) => {
            let (ours, was_up) = (alias::is_ours(link.alias.as_deref()), link.up);
            if ours {
                set_properties(net, spec, &link).await?;
            } else if let Some(mac) = link.mac {
                // Containers have the gateway's MAC in their neighbour tables when a port comes or goes.
                net.set_link(name, link.index, |l| l.address(mac.to_vec())).await?;
            }
            let forwarded = switch_on(&spec.name)?;
            let borrowed = complete(net, spec, &link, ours).await?;
            let link = find(net, name).await?;
            if ours {
                return Ok(Ensured::ours(link));
            }
            Ok(Ensured { link, borrowed, raised: !was_up, forwarded })
        }
        None => {
            let message = LinkBridge::new(name).address(spec.mac.0.to_vec()).mtu(spec.mtu).build();
            net.handle.link().add(message).execute().await.map_err(NetError::nl("make bridge", name))?;
            let link = find(net, name).await?;
            let finish = async {
                net.set_link(name, link.index, |l| l.alias(spec.alias.clone())).await?;
                switch_on(&spec.name)?;
                complete(net, spec, &link, true).await?;
                find(net, name).await
            };
            match finish.await {
                Ok(link) => Ok(Ensured::ours(link)),
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

/// Addresses and up; which addresses were missing. The settings of a bridge that is not `ours` stay as they are.
async fn complete(net: &Net, spec: &BridgeSpec, link: &LinkInfo, ours: bool) -> Result<Vec<IpNetwork>, NetError> {
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
    Ok(added)
}
