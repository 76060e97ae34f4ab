//! Routes, as far as pv-net needs to know them.

use super::{Net, NetError};
use crate::plan::{Address, Way, Ways};
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

    /// The routes of all tables but the local one, with their gateways. A router has very many: those with a gateway are
    /// left out unless they are to a part of a network of one of the device's `addresses`.
    ///
    /// # Errors
    /// When the kernel refuses to list the routes.
    pub async fn ways(&self, addresses: &[Address]) -> Result<Ways, NetError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let is_near = |way: &Way| way.on_link || addresses.iter().any(|a| a.address.contains(way.to.ip()));
        let mut ways = Ways::default();
        for family in [v4, v6] {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(NetError::nl("list", "routes"))? {
                let gateways = gateways(&route);
                ways.routes.extend(ways_of(&route, gateways.is_empty()).into_iter().filter(is_near));
                ways.gateways.extend(gateways);
            }
        }
        Ok(ways)
    }
}

/// The ways of a route that is no default route, by each of its links; 0 for one that leads nowhere.
fn ways_of(route: &RouteMessage, on_link: bool) -> Vec<Way> {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => address(to),
        _ => None,
    });
    let prefix = route.header.destination_prefix_length;
    let Some(to) = to.filter(|_| prefix > 0 && leads_on(route)).and_then(|to| IpNetwork::new(to, prefix).ok()) else {
        return Vec::new();
    };
    let mut links = outputs(route);
    if links.is_empty() {
        links.push(0);
    }
    links.into_iter().map(|link| Way { to, link, on_link: on_link && link != 0 }).collect()
}

fn gateways(route: &RouteMessage) -> Vec<IpAddr> {
    let own = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(gateway) => address(gateway),
        _ => None,
    };
    let mut all = Vec::new();
    for attribute in &route.attributes {
        all.extend(own(attribute));
        if let RouteAttribute::MultiPath(hops) = attribute {
            all.extend(hops.iter().flat_map(|hop| &hop.attributes).filter_map(own));
        }
    }
    all
}

/// The address of a route's attribute.
pub(super) fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::from(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::from(*a)),
        _ => None,
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
