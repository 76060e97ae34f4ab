//! Makes the rules' view of the device from what the daemon knows.

use super::{LinkLocal, Member, is_link_local};
use crate::model::{Attachment, ContainerName, Mac, Network, Sockets};
use pv_net_common::Ip;
use std::net::IpAddr;
use std::sync::Arc;

/// The rules' view of a container with these attachments.
#[must_use]
pub fn member(
    name: &ContainerName,
    identity: u32,
    attachments: &[Attachment],
    sockets: Option<Arc<Sockets>>,
) -> Member {
    let link_local = |a: &Attachment| IpAddr::from(Ip::link_local(a.mac.0));
    let own = |a: &Attachment| [a.ipv6.map(IpAddr::from), a.ipv4.map(IpAddr::from)].into_iter().flatten();
    let beside = |a: &Attachment| Some(LinkLocal { addr: link_local(a), beside: own(a).next()?, pool: a.pool.clone() });
    Member {
        name: name.clone(),
        identity,
        pools: attachments.iter().map(|a| a.pool.clone()).collect(),
        addresses: attachments.iter().flat_map(|a| own(a).chain([link_local(a)])).collect(),
        link_local: attachments.iter().filter_map(beside).collect(),
        sockets,
        name_servers: attachments.iter().filter_map(|a| a.network.as_ref()).flat_map(given_servers).collect(),
    }
}

fn given_servers(network: &Network) -> impl Iterator<Item = IpAddr> {
    let v4 = network.v4.iter().flat_map(|given| &given.dns).copied().map(IpAddr::from);
    v4.chain(network.v6.iter().flat_map(|given| &given.dns).copied().map(IpAddr::from))
}

/// The device's own addresses, as far as the rules are about them. Of link-local addresses only those of the pools'
/// `bridges` (by index and MAC) count: containers reach no others, and each host-side link has one that comes and goes
/// with its container.
#[must_use]
pub fn host_addresses(all: impl Iterator<Item = (u32, IpAddr)>, bridges: &[(u32, Mac)]) -> Vec<IpAddr> {
    let of_bridge = |link: u32| bridges.iter().any(|(index, _)| *index == link);
    let kept = all.filter(|(link, addr)| !is_link_local(*addr) || of_bridge(*link)).map(|(_, addr)| addr);
    // The kernel gives a bridge its link-local address only with the first port, so it is added here in any case.
    let expected = bridges.iter().map(|(_, mac)| IpAddr::from(Ip::link_local(mac.0)));
    let mut host: Vec<IpAddr> = kept.chain(expected).collect();
    host.sort_unstable();
    host.dedup();
    host
}
