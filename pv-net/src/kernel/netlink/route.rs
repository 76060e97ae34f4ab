//! Routes, as far as pv-net needs to know them.

use super::{Net, NetError};
use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

impl Net {
    /// Indexes of the links that default routes of the main table lead to: those of IPv4, and those of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses to list the routes.
    pub async fn default_route_links(&self) -> Result<[BTreeSet<u32>; 2], NetError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut links = [BTreeSet::new(), BTreeSet::new()];
        for (links, family) in links.iter_mut().zip([v4, v6]) {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(family)
                .execute()
                .try_collect()
                .await
                .map_err(NetError::nl("list", "routes"))?;
            links.extend(routes.iter().flat_map(default_route_of));
        }
        Ok(links)
    }
}

/// Indexes of the links that `route` leads to; empty unless it is a default route of the main table.
#[must_use]
pub fn default_route_of(route: &RouteMessage) -> Vec<u32> {
    if is_default(route) { outputs(route) } else { Vec::new() }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
}

/// Whether packets of a container can use this route: it is neither a route to the device itself nor one to link-local
/// addresses, which come and go with every link.
pub(super) fn leads_on(route: &RouteMessage) -> bool {
    let to_link_local = route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => to.is_unicast_link_local() || to.is_multicast(),
        _ => false,
    });
    route.header.table != libc::RT_TABLE_LOCAL && !to_link_local
}

/// The link of a route, or the links of its next hops if it has several.
pub(super) fn outputs(route: &RouteMessage) -> Vec<u32> {
    let mut links = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|h| h.interface_index)),
            _ => {}
        }
    }
    links
}
