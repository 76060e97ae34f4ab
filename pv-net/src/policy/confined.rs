//! Containers that may have certain sockets only. What their `run.json` does not grant is refused, as by a rule that denies
//! everything else.

use super::{Member, Topology};
use crate::model::{ContainerName, HostAccess, Peer, Pool, PoolName, PortMatch, Selector};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The port of name servers.
const DNS: u16 = 53;

/// One container's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Confined {
    /// The container.
    pub name: ContainerName,
    /// What others may send to it.
    pub listen: Vec<PortMatch>,
    /// What it may send.
    pub connect: Vec<Peer>,
}

/// The limits of all containers that have any, in the order of `topology`.
pub(super) fn confined(topology: &Topology) -> Vec<Confined> {
    let limits = |member: &Member| {
        let sockets = member.sockets.as_deref()?;
        let mut connect = sockets.connect.clone();
        if sockets.resolve {
            let servers = member.pools.iter().filter_map(|pool| topology.name_servers.get(pool)).flatten();
            let ports = || vec![PortMatch::Udp(Some(DNS..=DNS)), PortMatch::Tcp(Some(DNS..=DNS))];
            connect.extend(servers.map(|server| Peer { to: Selector::Cidr(IpNetwork::from(*server)), ports: ports() }));
        }
        Some(Confined { name: member.name.clone(), listen: sockets.listen.clone(), connect })
    };
    topology.containers.iter().filter_map(limits).collect()
}

/// The name servers that the containers of each pool ask: its gateways, or where they cannot reach these, the servers that
/// it names, except those with TLS.
#[must_use]
pub fn name_servers(pools: &BTreeMap<PoolName, Pool>) -> BTreeMap<PoolName, Vec<IpAddr>> {
    let of = |pool: &Pool| {
        let dns = pool.dns.as_ref()?;
        let upstream = || dns.upstream.iter().filter(|server| server.tls.is_none()).map(|server| server.address.ip());
        let servers = match pool.host_access {
            HostAccess::None => upstream().collect(),
            HostAccess::Services | HostAccess::All => pool.gateways().map(|gateway| gateway.ip()).collect(),
        };
        Some((pool.name.clone(), servers))
    };
    pools.values().filter_map(of).collect()
}
