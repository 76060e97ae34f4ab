//! Makes links between namespaces without `ip`: a guest of `cargo xtask vm` has none.

use crate::Namespace;
use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use pv_net::kernel::netlink::Net;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// A veth pair: `here` in `ns`, `there` in `other`.
pub(crate) fn pair(ns: &Namespace, here: &str, other: &Namespace, there: &str) -> Result<()> {
    let file = File::open(other.path())?;
    let peer = LinkUnspec::new_with_name(there).setns_by_fd(file.as_raw_fd()).build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(here.to_owned())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    make(ns, message).with_context(|| format!("veth {here} in {}, {there} in {}", ns.name(), other.name()))
}

/// Makes the link that `message` describes.
pub(crate) fn make(ns: &Namespace, message: LinkMessage) -> Result<()> {
    inside(ns, async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(handle.link().add(message).execute().await?)
    })
}

/// Whether a link could not be made because the kernel does not know its kind.
pub(crate) fn is_unknown_kind(why: &anyhow::Error) -> bool {
    let Some(rtnetlink::Error::NetlinkError(said)) = why.downcast_ref::<rtnetlink::Error>() else { return false };
    Errno::from_raw(-said.raw_code()) == Errno::EOPNOTSUPP
}

/// Makes `port` a port of the bridge or VRF `controller`.
pub(crate) fn enslave(ns: &Namespace, port: &str, controller: &str) -> Result<()> {
    inside(ns, async {
        let net = Net::here()?;
        let to = net.link(controller).await?.context("nothing to be a port of")?.index;
        let index = net.link(port).await?.context("no such link")?.index;
        Ok(net.enslave(port, index, to).await?)
    })
    .with_context(|| format!("port {port} of {controller} in {}", ns.name()))
}

/// Index and MAC of a link.
pub(crate) fn of_name(ns: &Namespace, link: &str) -> Result<(u32, [u8; 6])> {
    let info = inside(ns, async { Net::here()?.link(link).await?.context("no such link") });
    let info = info.with_context(|| format!("link {link} in {}", ns.name()))?;
    Ok((info.index, info.mac.with_context(|| format!("{link} has no MAC"))?))
}

/// Adds a permanent neighbour entry for `address`, which does not answer ARP or neighbour discovery itself.
pub(crate) fn neighbour(ns: &Namespace, link: u32, address: IpAddr, mac: [u8; 6]) -> Result<()> {
    inside(ns, async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let request = handle.neighbours().add(link, address).link_layer_address(&mac);
        Ok(request.state(NeighbourState::Permanent).execute().await?)
    })
    .with_context(|| format!("neighbour {address} in {}", ns.name()))
}

/// Adds the default route: over `link` by the router `via`.
pub(crate) fn default_route(ns: &Namespace, link: &str, via: IpAddr) -> Result<()> {
    let (index, _) = of_name(ns, link)?;
    let everywhere: IpAddr = if via.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(everywhere, 0)?.gateway(via)?;
    let route = route.output_interface(index).build();
    inside(ns, async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(handle.route().add(route).execute().await?)
    })
    .with_context(|| format!("default route by {via} in {}", ns.name()))
}

/// Gives `link` its addresses, usable at once, and sets it up.
pub(crate) fn configure(ns: &Namespace, link: &str, addresses: &[&str]) -> Result<()> {
    // Link-local addresses are usable at once: neighbour discovery needs them.
    let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_dad");
    ns.run(|| std::fs::write(&path, "0").with_context(|| path.clone()))?;
    inside(ns, async {
        let net = Net::here()?;
        let index = net.link(link).await?.context("no such link")?.index;
        let addresses: Vec<IpNetwork> =
            addresses.iter().map(|text| text.parse().with_context(|| (*text).to_owned())).collect::<Result<_>>()?;
        for address in &addresses {
            net.add_address(link, index, *address, false).await?;
        }
        net.set_up(link, index).await?;
        net.wait_until_received(index, &addresses).await;
        Ok(())
    })
    .with_context(|| format!("link {link} in {}", ns.name()))
}

fn inside<T: Send>(ns: &Namespace, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    ns.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn connected_namespaces_reach_each_other_at_once() -> Result<()> {
        let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
        near.connect(
            ("wan0", &["192.0.2.1/24", "2001:db8::1/64"]),
            &far,
            ("eth0", &["192.0.2.9/24", "2001:db8::9/64"]),
        )?;
        for (client, server) in [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9")] {
            echo::serve(&far, server.parse()?, 7000)?;
            let seen = echo::udp(&near, (server.parse::<std::net::IpAddr>()?, 7000).into(), b"hello")?;
            anyhow::ensure!(seen.ip() == client.parse::<std::net::IpAddr>()?, "seen as {seen}");
        }
        let again = near.connect(("wan0", &[]), &far, ("eth1", &[]));
        anyhow::ensure!(again.is_err(), "a link of the same name was made twice");
        Ok(())
    }
}
