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
            let of_pools = member.pools.iter().filter_map(|pool| topology.name_servers.get(pool)).flatten();
            let servers = of_pools.chain(&member.name_servers);
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

#[cfg(test)]
mod tests {
    use super::super::tests::random::{limited, name};
    use super::*;
    use crate::model::Sockets;

    #[test]
    fn names_are_asked_of_the_servers_of_pools_and_of_those_that_networks_have_given() {
        let asks = Sockets { resolve: true, ..Sockets::default() };
        let all = confined(&limited(Sockets::default(), asks));
        let servers = |limits: &Confined| limits.connect.iter().map(|peer| peer.to.clone()).collect::<Vec<_>>();
        assert_eq!(servers(&all[0]), []);
        let wanted = ["10.0.1.1", "fd00:1::1", "198.51.100.9", "192.0.2.8"];
        let wanted = wanted.map(|address| Selector::Cidr(IpNetwork::from(name::<IpAddr>(address))));
        assert_eq!(servers(&all[1]), wanted);
        assert!(all[1].connect.iter().all(|peer| peer.ports == [name("udp/53"), name("tcp/53")]));
    }
}
