//! Gives a container the routes that go with its interfaces.

use crate::kernel::netlink::{NetError, Netns, in_time};
use crate::plan::{InsideStep, Leg, inside_steps};
use std::collections::BTreeMap;

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
