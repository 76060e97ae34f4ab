//! Routes of the device to containers, by its own interfaces on parents.

use super::legs::PROTOCOL;
use super::route::address;
use super::{Net, NetError};
use crate::kernel::kill_point;
use crate::plan::HostRoute;
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

impl Net {
    /// The routes of pv-net that lead to these links.
    ///
    /// # Errors
    /// When the kernel refuses to list the routes.
    pub async fn host_routes(&self, links: &BTreeSet<u32>) -> Result<BTreeSet<HostRoute>, NetError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut found = BTreeSet::new();
        for family in [v4, v6] {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(NetError::nl("list", "routes"))? {
                found.extend(read(&route).filter(|route| links.contains(&route.link)));
            }
        }
        Ok(found)
    }

    /// Adds a route; one that is there already is fine.
    ///
    /// # Errors
    /// When the kernel refuses, also because somebody else has made a route to the same address.
    pub async fn add_host_route(&self, route: HostRoute) -> Result<(), NetError> {
        kill_point::pass();
        let what = format!("to {}", route.to);
        let failed = |e| NetError::nl("add route", &what)(e);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message(route)));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut answers = self.handle.clone().request(request).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            let NetlinkPayload::Error(e) = answer.payload else { continue };
            if e.raw_code() == 0 {
                continue;
            }
            let is_there = e.raw_code().abs() == libc::EEXIST
                && self.host_routes(&BTreeSet::from([route.link])).await?.contains(&route);
            if !is_there {
                return Err(failed(rtnetlink::Error::NetlinkError(e)));
            }
        }
        Ok(())
    }

    /// Removes a route, and what the kernel knows of the neighbour: the next one with that address has another MAC. A
    /// missing one is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_host_route(&self, route: HostRoute) -> Result<(), NetError> {
        kill_point::pass();
        let what = format!("to {}", route.to);
        match self.handle.route().del(message(route)).execute().await.map_err(NetError::nl("remove route", &what)) {
            Err(e) if e.is(libc::ESRCH) || e.is(libc::ENODEV) => {}
            other => other?,
        }
        let mut neighbour = NeighbourMessage::default();
        let (family, address) = match route.to {
            IpAddr::V4(to) => (AddressFamily::Inet, NeighbourAddress::Inet(to)),
            IpAddr::V6(to) => (AddressFamily::Inet6, NeighbourAddress::Inet6(to)),
        };
        (neighbour.header.family, neighbour.header.ifindex) = (family, route.link);
        neighbour.attributes.push(NeighbourAttribute::Destination(address));
        kill_point::pass();
        let removed = self.handle.neighbours().del(neighbour).execute().await;
        match removed.map_err(NetError::nl("forget neighbour", &route.to.to_string())) {
            Err(e) if e.is(libc::ENOENT) || e.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

fn message(route: HostRoute) -> RouteMessage {
    let from = |from: IpAddr| match from {
        IpAddr::V4(a) => RouteAttribute::PrefSource(RouteAddress::Inet(a)),
        IpAddr::V6(a) => RouteAttribute::PrefSource(RouteAddress::Inet6(a)),
    };
    let mut message = match route.to {
        IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .output_interface(route.link)
            .protocol(PROTOCOL)
            .scope(RouteScope::Link)
            .build(),
        IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, 128)
            .output_interface(route.link)
            .protocol(PROTOCOL)
            .build(),
    };
    message.attributes.extend(route.from.map(from));
    message
}

/// The route as [`message`] describes it, or without a source any more; `None` for any other.
fn read(message: &RouteMessage) -> Option<HostRoute> {
    if message.header.protocol != PROTOCOL || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut to, mut from, mut link) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => to = address(a),
            RouteAttribute::PrefSource(a) => from = address(a),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to: IpAddr = to?;
    let whole = if to.is_ipv4() { 32 } else { 128 };
    (message.header.destination_prefix_length == whole).then_some(HostRoute { to, from, link: link? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_written_is_read_back() {
        for (to, from) in [("192.0.2.50", "192.0.2.1"), ("2001:db8::50", "2001:db8::1")] {
            let route = HostRoute { to: to.parse().expect("address"), link: 7, from: from.parse().ok() };
            for route in [route, HostRoute { from: None, ..route }] {
                assert_eq!(read(&message(route)), Some(route));
            }
        }
    }
}
