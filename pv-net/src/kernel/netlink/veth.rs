//! A container's interface: a veth pair, one end a port of the pool's bridge, the other in the container's namespace.

use super::batch::add_with_alias;
use super::{LinkInfo, Net, NetError, alias};
use crate::kernel::kill_point;
use crate::kernel::netns::Netns;
use crate::kernel::sysctl;
use crate::model::{ContainerName, IfName, Mac};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// A container's interface as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethSpec {
    /// Name of the host-side link.
    pub host_if: IfName,
    /// Index of the bridge.
    pub bridge_index: u32,
    /// Name inside the container.
    pub container_if: IfName,
    /// MAC inside the container.
    pub mac: Mac,
    /// MTU of both ends, bytes.
    pub mtu: u32,
    /// Largest TCP segment on both ends before it is cut for the wire, bytes.
    pub segment_bytes: u32,
    /// Addresses with the pool's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Gateways of the default routes; none when another interface has them.
    pub gateways: Vec<IpAddr>,
    /// `ifalias` of the host-side link.
    pub alias: String,
}

/// Name of the host-side link of `interface` of `container`: readable at its start, and always the same.
#[must_use]
pub fn host_if_name(container: &ContainerName, interface: &IfName) -> IfName {
    let mut hash = Sha256::new();
    hash.update(container.as_str());
    hash.update([0]);
    hash.update(interface.as_str());
    let hash = hash.finalize();
    let readable: String = container.as_str().chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    let name = format!("pv{readable}-{:02x}{:02x}{:02x}{:x}", hash[0], hash[1], hash[2], hash[3] >> 4);
    name.parse().expect("2 + 5 + 1 + 7 letters, digits and a dash are an interface name")
}

/// Makes the pair, and leaves both ends down: nothing passes before the programs are attached. [`address_inside`] and
/// [`raise_inside`] do the rest.
///
/// A pair with the same alias whose other end is in this namespace is adopted; one with another alias of pv-net's is
/// a leftover and made anew. A new pair is marked as unfinished ([`alias::unfinished`]) until [`finish_veth`].
///
/// # Errors
/// When a name is taken in either namespace, or the kernel refuses; what was made is removed again.
pub async fn attach_veth(net: &Net, spec: &VethSpec, netns: &Netns) -> Result<LinkInfo, NetError> {
    let name = spec.host_if.as_str();
    if let Some(old) = net.link(name).await? {
        if !alias::is_ours(old.alias.as_deref()) {
            let kind = old.kind.unwrap_or_else(|| "device".to_owned());
            return Err(NetError::Foreign { name: name.to_owned(), kind });
        }
        if old.alias.as_deref().map(alias::finished) == Some(&spec.alias) && has_peer(netns, spec).await? {
            net.hold_mac(name, old.index, spec.mac).await?;
            return Ok(old);
        }
        net.delete_link(name, old.index).await?;
    }
    create(spec, netns).await?;
    let link = net.link(name).await?.ok_or_else(|| NetError::Vanished { name: name.to_owned() })?;
    let finish = async {
        net.hold_mac(name, link.index, spec.mac).await?;
        net.set_segment_bytes(name, link.index, spec.segment_bytes).await;
        // The host side is a bridge port: it speaks no IPv6 of its own.
        sysctl::set_ipv6(&spec.host_if, "disable_ipv6", "1")?;
        Ok(())
    };
    match finish.await {
        Ok(()) => Ok(link),
        Err(e) => {
            net.delete_link(name, link.index).await?;
            Err(e)
        }
    }
}

/// One request makes both ends where they belong, so nothing half-made is ever seen.
async fn create(spec: &VethSpec, netns: &Netns) -> Result<(), NetError> {
    let peer: LinkMessage = LinkUnspec::new_with_name(spec.container_if.as_str())
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .setns_by_fd(netns.file().as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(spec.host_if.to_string())
        .mtu(spec.mtu)
        .controller(spec.bridge_index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    match add_with_alias("make link", spec.host_if.as_str(), message, &alias::unfinished(&spec.alias)).await {
        // The host-side name was free a moment ago, so it is the other one.
        Err(e) if e.is(libc::EEXIST) => Err(NetError::InterfaceExists { name: spec.container_if.to_string() }),
        other => other,
    }
}

/// The attach that made `link` is over: what is missing of it from now on was taken away by somebody.
///
/// # Errors
/// The kernel's.
pub async fn finish_veth(net: &Net, link: &LinkInfo) -> Result<(), NetError> {
    match link.alias.as_deref().filter(|a| alias::is_unfinished(a)) {
        Some(begun) => {
            let whole = alias::finished(begun).to_owned();
            net.set_link(&link.name, link.index, |l| l.alias(whole)).await
        }
        None => Ok(()),
    }
}

/// Whether `spec.container_if` inside `netns` is the pair's other end: a veth with the MAC that is the lease's alone.
async fn has_peer(netns: &Netns, spec: &VethSpec) -> Result<bool, NetError> {
    let (name, mac) = (spec.container_if.clone(), spec.mac.0);
    let look = async move { Net::here()?.link(name.as_str()).await };
    let inside = netns.run(move || in_runtime(look)).await??;
    Ok(inside.is_some_and(|l| l.mac == Some(mac) && l.kind.as_deref() == Some("veth")))
}

/// Runs `work` on a runtime of its own: the netlink socket belongs to the namespace of the calling thread.
pub(crate) fn in_runtime<T>(work: impl Future<Output = Result<T, NetError>>) -> Result<T, NetError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NetError::new("start", "a runtime in the namespace", e))?
        .block_on(work)
}

/// Gives the container's end its settings and addresses; what is there already stays. It may be down: the kernel's worker
/// makes the addresses usable while the programs are attached.
///
/// # Errors
/// When the kernel refuses, or has no IPv6 that an address needs.
pub async fn address_inside(spec: &VethSpec, netns: &Netns) -> Result<(), NetError> {
    let spec = spec.clone();
    netns.run(move || in_runtime(async move { address(&spec).await })).await?
}

/// Sets the container's end up, with its routes; what is there already stays. The host side comes first: a veth whose
/// peer is up carries packets as soon as it is up itself. Else a worker of the kernel opens its queue some time later,
/// and what the container sends until then is lost: an ARP request is repeated only after a second.
///
/// # Errors
/// When the kernel refuses.
pub async fn raise_inside(spec: &VethSpec, netns: &Netns) -> Result<(), NetError> {
    let spec = spec.clone();
    netns.run(move || in_runtime(async move { raise(&spec).await })).await?
}

/// Whether the container's end of one of the device's `links` is in `netns`.
///
/// # Errors
/// When the namespace cannot be entered, or its links not be listed.
pub async fn has_end_of(links: &[u32], netns: &Netns) -> Result<bool, NetError> {
    let links = links.to_owned();
    let inside = netns.run(move || in_runtime(async move { Net::here()?.links().await })).await??;
    let is_end = |l: &LinkInfo| l.kind.as_deref() == Some("veth") && l.other_end.is_some_and(|i| links.contains(&i));
    Ok(inside.iter().any(is_end))
}

/// Runs inside the container's namespace.
async fn address(spec: &VethSpec) -> Result<(), NetError> {
    let net = Net::here()?;
    let link = inner(&net, spec).await?;
    let name = link.name.as_str();
    let wants_ipv6 = spec.addresses.iter().any(IpNetwork::is_ipv6);
    let mut has_ipv6 = true;
    // Router advertisements come from nobody here; the address is the lease's; link-local is EUI-64, as the source
    // guard expects it, and nobody else's: `dad_transmits` alone leaves it tentative for up to a second (RFC 4861
    // section 6.3.7), `accept_dad` alone is not enough where `all` has it on.
    let settings =
        [("accept_ra", "0"), ("autoconf", "0"), ("dad_transmits", "0"), ("accept_dad", "0"), ("addr_gen_mode", "0")];
    for (key, value) in settings {
        has_ipv6 &= sysctl::set_ipv6(&spec.container_if, key, value)?;
    }
    if wants_ipv6 {
        if !has_ipv6 {
            return Err(NetError::NoIpv6 { name: name.to_owned() });
        }
        sysctl::set_ipv6(&spec.container_if, "disable_ipv6", "0")?;
    }
    // Before it is up: a connection keeps the size that it began with.
    net.set_segment_bytes(name, link.index, spec.segment_bytes).await;
    for address in &spec.addresses {
        net.add_address(name, link.index, *address).await?;
    }
    Ok(())
}

/// Runs inside the container's namespace.
async fn raise(spec: &VethSpec) -> Result<(), NetError> {
    let net = Net::here()?;
    let link = inner(&net, spec).await?;
    if let Some(lo) = net.link("lo").await?
        && !lo.up
    {
        net.set_up("lo", lo.index).await?;
    }
    net.set_up(&link.name, link.index).await?;
    for gateway in &spec.gateways {
        add_default_route(&net, link.index, *gateway).await?;
    }
    net.wait_until_received(link.index, &spec.addresses).await;
    Ok(())
}

async fn inner(net: &Net, spec: &VethSpec) -> Result<LinkInfo, NetError> {
    let name = spec.container_if.as_str();
    net.link(name).await?.ok_or_else(|| NetError::Vanished { name: name.to_owned() })
}

async fn add_default_route(net: &Net, index: u32, gateway: IpAddr) -> Result<(), NetError> {
    let message = match gateway {
        IpAddr::V4(g) => RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(g).build(),
        IpAddr::V6(g) => RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(g).build(),
    };
    let what = format!("default via {gateway}");
    kill_point::pass();
    match net.handle.route().add(message).execute().await.map_err(NetError::nl("add route", &what)) {
        Err(e) if e.is(libc::EEXIST) => Ok(()),
        other => other,
    }
}
