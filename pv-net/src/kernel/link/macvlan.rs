//! A macvlan or ipvlan on a link of the device: it is made in the device's namespace, gets its programs, and is moved into the
//! container's. So it is never without its guard there.

use super::{LinkKind, LinkSpec, ipvlan};
use crate::kernel::KernelError;
use crate::kernel::bpf::{DataPlane, children};
use crate::kernel::netlink::{LinkInfo, Net, NetError, Netns, add_with_alias, alias, in_time};
use crate::model::MacvlanMode;
use rtnetlink::packet_route::link::{LinkMessage, MacVlanMode};
use rtnetlink::{LinkMacVlan, LinkMessageBuilder};
use std::path::Path;

/// Makes the interface, or adopts it: see [`LinkSpec::make`]. It stays down.
pub(super) async fn make(
    net: &Net,
    spec: &LinkSpec,
    parent: u32,
    netns: &Netns,
    plane: &mut DataPlane,
) -> Result<LinkInfo, KernelError> {
    let name = spec.host_if.as_str();
    if let Some(old) = net.link(name).await? {
        let moved = children::is_number(old.index);
        if !moved && !alias::is_ours(old.alias.as_deref()) {
            let kind = old.kind.unwrap_or_else(|| "device".to_owned());
            return Err(NetError::Foreign { name: name.to_owned(), kind }.into());
        }
        let same = old.alias.as_deref().map(alias::finished) == Some(&spec.alias);
        if moved && same && old.controller == Some(parent) && is_in(net, &old, netns, spec).await? {
            return Ok(old);
        }
        net.delete_link(name, old.index).await?;
        if moved {
            plane.detach(old.index)?;
        }
    }
    let ns = net.numbered(netns.file()).await?;
    let message = request(spec, parent);
    let made = add_with_alias("make link", name, message, &alias::unfinished(&spec.alias)).await;
    made.map_err(|e| refusal(e, &spec.kind))?;
    let vanished = || NetError::Vanished { name: name.to_owned() };
    let link = net.link(name).await?.ok_or_else(vanished)?;
    let number = match guard_and_move(net, spec, &link, ns, netns, plane).await {
        Ok(number) => number,
        Err(e) => {
            // It may have been moved before the step that failed.
            net.delete_link(name, link.index).await?;
            let number = children::number_of(&spec.host_if);
            net.delete_link(name, number).await?;
            plane.detach(number)?;
            return Err(e);
        }
    };
    net.link_at(number).await?.ok_or_else(|| vanished().into())
}

async fn guard_and_move(
    net: &Net,
    spec: &LinkSpec,
    link: &LinkInfo,
    ns: i32,
    netns: &Netns,
    plane: &mut DataPlane,
) -> Result<u32, KernelError> {
    let number = plane.guard_child(&spec.host_if, link.index, ns, (&spec.alias, spec.mac.0))?;
    match net.move_link(&link.name, link.index, netns.file(), &spec.container_if).await {
        Ok(()) => Ok(number),
        Err(e) if e.is(libc::EEXIST) => Err(NetError::InterfaceExists { name: spec.container_if.to_string() }.into()),
        Err(e) => Err(e.into()),
    }
}

/// The request for the interface.
fn request(spec: &LinkSpec, parent: u32) -> LinkMessage {
    match spec.kind {
        LinkKind::Ipvlan { .. } => ipvlan::request(spec, parent),
        LinkKind::Veth { .. } | LinkKind::Netkit { .. } | LinkKind::Macvlan { .. } => {
            LinkMessageBuilder::<LinkMacVlan>::new(spec.host_if.as_str())
                .link(parent)
                .mode(kernel_mode(spec.kind))
                .address(spec.mac.0.to_vec())
                .mtu(spec.mtu)
                .build()
        }
    }
}

/// Whether the interface is in `netns`, under whatever name, and still has the MAC of its lease if it has one of its own.
async fn is_in(net: &Net, link: &LinkInfo, netns: &Netns, spec: &LinkSpec) -> Result<bool, NetError> {
    let Some(index) = super::end_in(net, link.index, netns).await? else { return Ok(false) };
    let inside = netns.net()?;
    let found = in_time(inside.link_at(index)).await?;
    Ok(found.is_some_and(|l| match spec.kind {
        LinkKind::Ipvlan { .. } => l.kind.as_deref() == Some("ipvlan"),
        _ => l.kind.as_deref() == Some("macvlan") && l.mac == Some(spec.mac.0),
    }))
}

/// In the kernel's mode `bridge` an interface takes frames from every other one in that mode on its parent, also from one
/// that a container has made itself, where no program sees them. In mode `vepa` all leave by the parent, whose program
/// returns what a container of a bridged pool sends to another one.
const fn kernel_mode(kind: LinkKind) -> MacVlanMode {
    let LinkKind::Macvlan { mode, .. } = kind else { return MacVlanMode::Vepa };
    match mode {
        MacvlanMode::Bridge | MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    }
}

/// The kernel gives the same error whatever is wrong with a parent.
fn refusal(e: NetError, kind: &LinkKind) -> NetError {
    if !e.is(libc::EINVAL) && !e.is(libc::EBUSY) {
        return e;
    }
    let why = match kind {
        LinkKind::Ipvlan { .. } => {
            return NetError::new(
                "make link",
                "ipvlan",
                std::io::Error::other("the parent carries links of another kind"),
            );
        }
        LinkKind::Macvlan { mode: MacvlanMode::Passthru, .. } => {
            "in mode passthru the parent carries one interface alone, and it has another one"
        }
        _ => "the parent carries an interface in mode passthru, or links of another kind",
    };
    NetError::new("make link", "macvlan", std::io::Error::other(why))
}

/// Why `parent` cannot have macvlan interfaces, or ipvlan interfaces if they are to have its MAC (`shares_mac`), by what the
/// kernel says of it; `None` when it can.
#[must_use]
pub fn parent_misfit(parent: &LinkInfo, shares_mac: bool) -> Option<&'static str> {
    let sys = Path::new("/sys/class/net").join(&parent.name);
    if parent.loopback || parent.mac.is_none() {
        return Some("is not an Ethernet link");
    }
    if !shares_mac && (sys.join("wireless").exists() || sys.join("phy80211").exists()) {
        return Some("is a wireless link: an access point takes frames from its one MAC alone");
    }
    if parent.controller.is_some() {
        return Some("is a port of another link");
    }
    None
}
