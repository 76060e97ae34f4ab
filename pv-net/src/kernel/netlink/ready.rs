//! Waits, for a bounded time, until changes that the kernel has accepted are in effect. Its workers finish some of them
//! later.

use super::Net;
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::{LinkAttribute, State};
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long to wait at most until a link that is up carries packets. The kernel's link-watch worker may be delayed by
/// others.
const CARRY: Duration = Duration::from_millis(250);
/// How long to wait at most until packets to an address are received. Waiting longer would cost more than the loss: an
/// address resolution is repeated after a second.
const RECEIVE: Duration = Duration::from_secs(1);

impl Net {
    /// Waits until the links with these indexes, which are up, also carry packets; for 250 ms at most. The kernel
    /// reports "up" earlier: what is sent before is lost, and an address resolution is repeated only after a second.
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
        // A link that is gone needs no waiting.
        found.ok().flatten().is_none_or(|m| m.attributes.contains(&LinkAttribute::OperState(State::Up)))
    }

    /// Waits until packets to `addresses` of the link with this index are received; for one second at most. An IPv6
    /// address without duplicate address detection can be used as a source at once. But the local route, by which
    /// packets to it are received, is added by the detection's worker (`addrconf_dad_work`; seen on 6.18). Before that,
    /// the answer to the first neighbour solicitation is treated as a packet to forward, and dropped.
    pub async fn wait_until_received(&self, index: u32, addresses: &[IpNetwork]) {
        for address in addresses {
            if let IpAddr::V6(address) = address.ip() {
                self.wait_for_route_to(index, address).await;
            }
        }
    }

    async fn wait_for_route_to(&self, index: u32, address: Ipv6Addr) {
        let start = Instant::now();
        while !self.receives(index, address).await {
            if start.elapsed() > RECEIVE {
                return tracing::warn!(%address, index, "no local route for an address that was added");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether the kernel would receive packets to `address` on the link with this index.
    async fn receives(&self, index: u32, address: Ipv6Addr) -> bool {
        let question =
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).output_interface(index).build();
        let found: Result<Option<RouteMessage>, _> = self.handle.route().get(question).execute().try_next().await;
        matches!(found, Ok(Some(route)) if route.header.kind == RouteType::Local)
    }
}
