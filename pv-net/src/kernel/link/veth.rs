//! A pair with one end as a port of the pool's bridge, and the other in the container's namespace: veth, and what is the
//! same for netkit.

use super::{LinkKind, LinkSpec};
use crate::kernel::netlink::{LinkInfo, Net, NetError, Netns, add_with_alias, alias, in_time};
use crate::kernel::sysctl;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::os::fd::AsRawFd;

/// Makes the pair with both ends down, or adopts it: see [`LinkSpec::make`]. `pair` makes the request for a new one out of
/// that for the container's end.
pub(super) async fn make(
    net: &Net,
    spec: &LinkSpec,
    netns: &Netns,
    pair: impl FnOnce(LinkMessage) -> LinkMessage,
) -> Result<LinkInfo, NetError> {
    let name = spec.host_if.as_str();
    if let Some(old) = net.link(name).await? {
        if !alias::is_ours(old.alias.as_deref()) {
            let kind = old.kind.unwrap_or_else(|| "device".to_owned());
            return Err(NetError::Foreign { name: name.to_owned(), kind });
        }
        if old.alias.as_deref().map(alias::finished) == Some(&spec.alias) && has_own_end(net, &old, netns, spec).await?
        {
            net.hold_mac(name, old.index, spec.mac).await?;
            return Ok(old);
        }
        net.delete_link(name, old.index).await?;
    }
    create(spec, netns, pair).await?;
    let link = net.link(name).await?.ok_or_else(|| NetError::Vanished { name: name.to_owned() })?;
    let finish = async {
        net.hold_mac(name, link.index, spec.mac).await?;
        net.set_segment_bytes(name, link.index, spec.segment_bytes).await;
        // The host side is a bridge port and needs no IPv6 address of its own.
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

/// The request for a veth pair with this other end.
pub(super) fn pair(spec: &LinkSpec, bridge: u32, peer: LinkMessage) -> LinkMessage {
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(spec.host_if.to_string())
        .mtu(spec.mtu)
        .controller(bridge)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build()
}

/// Makes both ends where they belong in one request, so that no half of a pair is ever visible.
async fn create(spec: &LinkSpec, netns: &Netns, pair: impl FnOnce(LinkMessage) -> LinkMessage) -> Result<(), NetError> {
    let peer: LinkMessage = LinkUnspec::new_with_name(spec.container_if.as_str())
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .setns_by_fd(netns.file().as_raw_fd())
        .build();
    let name = spec.host_if.as_str();
    match add_with_alias("make link", name, pair(peer), &alias::unfinished(&spec.alias)).await {
        // The host-side name was free a moment ago, so the name inside the container is taken.
        Err(e) if e.is(libc::EEXIST) => Err(NetError::InterfaceExists { name: spec.container_if.to_string() }),
        Err(e) if e.is(libc::EOPNOTSUPP) && matches!(spec.kind, LinkKind::Netkit { .. }) => {
            Err(NetError::NoNetkit { name: name.to_owned() })
        }
        other => other,
    }
}

/// Whether the other end of `link` is in `netns`, under whatever name, and still has the MAC of its lease.
async fn has_own_end(net: &Net, link: &LinkInfo, netns: &Netns, spec: &LinkSpec) -> Result<bool, NetError> {
    let Some(end) = end_of(net, link, netns).await? else { return Ok(false) };
    let inside = netns.net()?;
    let end = in_time(inside.link_at(end)).await?;
    Ok(end.is_some_and(|l| l.mac == Some(spec.mac.0)))
}

/// The index inside `netns` of the other end of `link`; `None` when its other end is not there. Only the device's
/// kernel is asked, about the device's own link: what a container tells of its links it can arrange as it likes.
async fn end_of(net: &Net, link: &LinkInfo, netns: &Netns) -> Result<Option<u32>, NetError> {
    let is_ours = link.pair().is_some() || matches!(link.kind.as_deref(), Some("macvlan" | "ipvlan"));
    let (true, Some(end), Some(ns)) = (is_ours, link.other_end, link.other_ns) else {
        return Ok(None);
    };
    Ok((net.number_of(netns.file()).await? == Some(ns)).then_some(end))
}

/// The index inside `netns` of the other end of the device's link `index`; `None` when there is no such link, or its
/// other end is not there.
///
/// # Errors
/// When the kernel refuses to look up the link or the namespace.
pub async fn end_in(net: &Net, index: u32, netns: &Netns) -> Result<Option<u32>, NetError> {
    match net.link_at(index).await? {
        Some(link) => end_of(net, &link, netns).await,
        None => Ok(None),
    }
}

/// Whether the other end of one of the device's `links` is in `netns`.
///
/// # Errors
/// When the kernel refuses to look up a link or the namespace.
pub async fn has_end_of(net: &Net, links: &[u32], netns: &Netns) -> Result<bool, NetError> {
    for index in links {
        if end_in(net, *index, netns).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
