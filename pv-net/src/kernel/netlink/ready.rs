//! Waiting, for a bounded time, until what the kernel said yes to is in effect: its workers finish some of it later.

use super::Net;
use futures_util::{StreamExt, TryStreamExt};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::link::{LinkAttribute, State};
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long a link may take from being up to carrying packets; the kernel's worker for it waits for others.
const CARRY: Duration = Duration::from_millis(250);
/// How long an address may take from being there to receiving. To wait for longer would cost more than the loss does:
/// an address resolution is repeated after a second.
const RECEIVE: Duration = Duration::from_secs(1);

impl Net {
    /// Waits until the links of `indices`, that are up, carry packets too; not for ever. The kernel says yes to "up"
    /// before: what is sent then is lost, and an address resolution is repeated only after a second.
    pub async fn wait_until_it_carries(&self, indices: &[u32]) {
        let start = Instant::now();
        for index in indices {
            while start.elapsed() < CARRY && !self.carries(*index).await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn carries(&self, index: u32) -> bool {
        let found = self.handle.link().get().match_index(index).execute().try_next().await;
        // A link that is gone is nothing to wait for.
        found.ok().flatten().is_none_or(|m| m.attributes.contains(&LinkAttribute::OperState(State::Up)))
    }

    /// Waits until packets to `addresses` of link `index` are received; not for ever. An IPv6 address without duplicate
    /// address detection can be sent from at once, but the route that makes a packet to it the machine's own comes from
    /// the worker of that detection (`addrconf_dad_work`; seen on 6.18). Until then the answer to the first neighbour
    /// solicitation is taken for a packet to be forwarded, and dropped.
    pub async fn wait_until_received(&self, index: u32, addresses: &[IpNetwork]) {
        for address in addresses {
            if let IpAddr::V6(address) = address.ip()
                && !self.receives(index, address).await
            {
                self.wait_for_route_to(index, address).await;
            }
        }
    }

    async fn wait_for_route_to(&self, index: u32, address: Ipv6Addr) {
        let Ok((connection, _, mut changes)) = rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv6Route]) else {
            return;
        };
        let connection = tokio::spawn(connection);
        let arrival = async { while !self.receives(index, address).await && changes.next().await.is_some() {} };
        if tokio::time::timeout(RECEIVE, arrival).await.is_err() {
            tracing::warn!(%address, index, "no local route for an address that was added");
        }
        connection.abort();
    }

    /// Whether packets to `address` are for this machine, by link `index`.
    async fn receives(&self, index: u32, address: Ipv6Addr) -> bool {
        let question =
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).output_interface(index).build();
        let found: Result<Option<RouteMessage>, _> = self.handle.route().get(question).execute().try_next().await;
        matches!(found, Ok(Some(route)) if route.header.kind == RouteType::Local)
    }
}
