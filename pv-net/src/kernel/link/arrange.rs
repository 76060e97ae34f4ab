//! Gives a container the routes that go with its interfaces.

use crate::kernel::netlink::{NetError, Netns, in_time};
use crate::plan::{InsideStep, Leg, inside_steps, ways_by};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Gives the container in `netns` the routes for these interfaces, and removes those that pv-net made for others.
///
/// An interface that cannot have its routes, such as one that the container has set down, does not keep the others from
/// theirs: it is returned, by its index inside, with the first thing that failed.
///
/// # Errors
/// When the kernel refuses something that concerns all interfaces.
pub async fn arrange(legs: &[Leg], netns: &Netns) -> Result<BTreeMap<u32, NetError>, NetError> {
    in_time(async {
        let net = netns.net()?;
        let inside = net.inside().await?;
        let mut failed = BTreeMap::new();
        for step in inside_steps(legs, &inside) {
            tracing::debug!(%step, "inside");
            match (net.arrange(&step).await, step) {
                (Ok(()), _) => {}
                (Err(e), InsideStep::AddRoute(route)) => {
                    failed.entry(route.link).or_insert(e);
                }
                (Err(e), _) => return Err(e),
            }
        }
        Ok(failed)
    })
    .await
}

/// Removes the routes by `gateways`, and then these addresses, from the link with the index `link` in `netns`.
/// `claimed`: its default routes came before those of the container.
///
/// # Errors
/// When the kernel refuses.
pub async fn leave(
    netns: &Netns,
    link: u32,
    gateways: &[IpAddr],
    claimed: bool,
    addresses: &[IpNetwork],
) -> Result<(), NetError> {
    let net = netns.net()?;
    for route in gateways.iter().flat_map(|gateway| ways_by(*gateway, link, claimed)) {
        net.arrange(&InsideStep::RemoveRoute(route)).await?;
    }
    let Some(there) = net.link_at(link).await? else { return Ok(()) };
    for address in addresses {
        net.delete_address(&there.name, link, *address).await?;
    }
    Ok(())
}
