//! The container's end of an interface: settings and addresses, whatever kind of link it is.

use super::{LinkKind, LinkSpec};
use crate::kernel::netlink::{LinkInfo, Net, NetError, Netns};
use crate::model::IfName;
use ipnetwork::IpNetwork;
use pv_net_common::Ip;
use std::net::IpAddr;

/// Does the work of [`LinkSpec::address_inside`].
pub(super) async fn address(spec: &LinkSpec, host: &LinkInfo, netns: &Netns) -> Result<(), NetError> {
    let net = netns.net()?;
    let link = inner(&net, spec, host).await?;
    let name = link.name.as_str();
    let own: IfName = name.parse().map_err(|e| NetError::Unnamed { name: name.to_owned(), why: e })?;
    let wants_ipv6 = spec.addresses.iter().any(IpNetwork::is_ipv6);
    let mut has_ipv6 = true;
    // Nobody sends router advertisements here, and the address comes from the lease. The link-local address is EUI-64,
    // as the source guard expects, and unique, so duplicate address detection is switched off: with `dad_transmits`
    // alone the address stays tentative for up to a second (RFC 4861 section 6.3.7), and `accept_dad` alone has no
    // effect where `all` enables it.
    // Ipvlan interfaces of one parent have one MAC, and the kernel puts a number of its own into their EUI-64, so theirs is
    // made here.
    let is_shared = matches!(spec.kind, LinkKind::Ipvlan { .. });
    let generated = if is_shared { "1" } else { "0" };
    let settings = [
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("dad_transmits", "0"),
        ("accept_dad", "0"),
        ("addr_gen_mode", generated),
    ];
    for (key, value) in settings {
        has_ipv6 &= netns.set_ipv6(&own, key, value)?;
    }
    if wants_ipv6 {
        if !has_ipv6 {
            return Err(NetError::NoIpv6 { name: name.to_owned() });
        }
        netns.set_ipv6(&own, "disable_ipv6", "0")?;
    }
    if link.mtu != spec.mtu {
        net.set_mtu(name, link.index, spec.mtu).await?;
    }
    // Set before the link is up, since a connection keeps the size that it began with.
    net.set_segment_bytes(name, link.index, spec.segment_bytes).await;
    let link_local = IpNetwork::new(IpAddr::from(Ip::link_local(spec.mac.0)), 64).ok();
    let link_local = link_local.filter(|_| is_shared && wants_ipv6);
    for address in spec.addresses.iter().chain(&link_local) {
        net.add_address(name, link.index, *address, false).await?;
    }
    Ok(())
}

/// Does the work of [`LinkSpec::raise_inside`].
pub(super) async fn raise(spec: &LinkSpec, host: &LinkInfo, netns: &Netns) -> Result<(), NetError> {
    let net = netns.net()?;
    let link = inner(&net, spec, host).await?;
    if let Some(lo) = net.link("lo").await?
        && !lo.up
    {
        net.set_up("lo", lo.index).await?;
    }
    net.set_up(&link.name, link.index).await?;
    net.wait_until_received(link.index, &spec.addresses).await;
    Ok(())
}

/// The container's end of the link `host`, whatever name the container has given it.
async fn inner(net: &Net, spec: &LinkSpec, host: &LinkInfo) -> Result<LinkInfo, NetError> {
    let found = match host.other_end {
        Some(index) => net.link_at(index).await?,
        None => None,
    };
    found.ok_or_else(|| NetError::Vanished { name: spec.container_if.to_string() })
}
