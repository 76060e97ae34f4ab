//! Gives a container the routes that go with its interfaces.

use crate::kernel::netlink::{LinkInfo, NetError, Netns, in_time};
use crate::model::{IfName, Mac};
use crate::plan::{Leg, inside_steps};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// An interface of a container with its part in the routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegSpec {
    /// Index of the host-side link.
    pub host_index: u32,
    /// Its name inside the container, unless the container has renamed it.
    pub container_if: IfName,
    /// MAC inside the container.
    pub mac: Mac,
    /// Its addresses with the pool's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// The gateways of its pool.
    pub gateways: Vec<IpAddr>,
    /// Whether it has the default route for IPv4.
    pub default4: bool,
    /// Whether it has the default route for IPv6.
    pub default6: bool,
}

impl LegSpec {
    /// The container's end, whatever name it has by now.
    fn is_end(&self, link: &LinkInfo) -> bool {
        link.kind.as_deref() == Some("veth") && link.other_end == Some(self.host_index) && link.mac == Some(self.mac.0)
    }

    fn at(&self, link: u32) -> Leg {
        let Self { addresses, gateways, default4, default6, .. } = self;
        Leg { link, addresses: addresses.clone(), gateways: gateways.clone(), default4: *default4, default6: *default6 }
    }
}

/// Gives the container in `netns` the routes for these interfaces, which are up, and removes those that pv-net made for
/// others.
///
/// # Errors
/// When an interface is not there, or the kernel refuses.
pub async fn arrange(legs: &[LegSpec], netns: &Netns) -> Result<(), NetError> {
    in_time(async {
        let net = netns.net()?;
        let links = if legs.is_empty() { Vec::new() } else { net.links().await? };
        let leg = |spec: &LegSpec| {
            let link = links.iter().find(|link| spec.is_end(link));
            let name = spec.container_if.to_string();
            link.map(|link| spec.at(link.index)).ok_or(NetError::Vanished { name })
        };
        let legs = legs.iter().map(leg).collect::<Result<Vec<Leg>, NetError>>()?;
        // With one interface, and none before, there is nothing to remove, and only a default route to add.
        let inside = net.inside(|inside| legs.len() > 1 || !inside.rules.is_empty()).await?;
        for step in inside_steps(&legs, &inside) {
            tracing::debug!(%step, "inside");
            net.arrange(&step).await?;
        }
        Ok(())
    })
    .await
}
