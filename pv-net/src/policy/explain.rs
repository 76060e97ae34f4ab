//! Translates the words of `policy explain` into look-ups.

use super::Topology;
use crate::model::{ContainerName, PoolName, Rule, Selector};
use pv_net_common::PolicySide;
use pv_net_common::ip_proto::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};
use std::net::IpAddr;

/// One end of the flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub addr: IpAddr,
    /// The container that has it.
    pub container: Option<ContainerName>,
    /// The key of the look-up.
    pub side: PolicySide,
    /// The address is the device's own.
    pub host: bool,
    /// For a container's link-local address: the pool on whose link it is valid.
    pub link: Option<PoolName>,
}

/// Why a word names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SideError {
    /// Neither an address nor a name.
    #[error("{word:?} is no container, no address, and neither host nor world")]
    Unknown {
        /// The word.
        word: String,
    },
    /// A container without addresses.
    #[error("container {word}: has no address")]
    NoAddress {
        /// The container.
        word: String,
    },
}

/// Documentation addresses, which nobody has (RFC 5737, RFC 3849). They stand for the world.
const EXAMPLES: [[u16; 8]; 6] = [
    [0, 0, 0, 0, 0, 0xffff, 0xcb00, 0x7101],
    [0, 0, 0, 0, 0, 0xffff, 0xc633, 0x6401],
    [0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201],
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1],
    [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1],
    [0x3fff, 0, 0, 0, 0, 0, 0, 1],
];

/// All ends that `word` can mean, IPv4 first: a container at each of its addresses, an address, the device at each of
/// its own addresses, or the world.
///
/// # Errors
/// When it names nobody.
pub fn side(word: &str, topology: &Topology, rules: &[Rule]) -> Result<Vec<Party>, SideError> {
    let mut addrs: Vec<IpAddr> = match word {
        "host" => topology.host.iter().copied().filter(|a| !is_link_local(*a) && !a.is_loopback()).collect(),
        "world" => world(topology, rules),
        _ => {
            if let Ok(addr) = word.parse::<IpAddr>() {
                vec![addr.to_canonical()]
            } else {
                let member = topology.containers.iter().find(|c| c.name.as_str() == word);
                let member = member.ok_or_else(|| SideError::Unknown { word: word.to_owned() })?;
                member.addresses.iter().copied().filter(|a| !is_link_local(*a)).collect()
            }
        }
    };
    addrs.sort_by_key(IpAddr::is_ipv6);
    if addrs.is_empty() {
        return Err(SideError::NoAddress { word: word.to_owned() });
    }
    Ok(addrs.into_iter().flat_map(|addr| parties(addr, topology)).collect())
}

/// All who have `addr`: a link-local address may exist in each pool.
fn parties(addr: IpAddr, topology: &Topology) -> Vec<Party> {
    let all = topology.containers.iter().flat_map(|m| m.link_local.iter().map(move |l| (m, l)));
    let on_links: Vec<Party> = all
        .filter(|(_, l)| l.addr == addr)
        .map(|(m, l)| Party {
            addr,
            container: Some(m.name.clone()),
            side: PolicySide { identity: m.identity, addr: addr.into() },
            host: false,
            link: Some(l.pool.clone()),
        })
        .collect();
    if on_links.is_empty() { vec![party(addr, topology)] } else { on_links }
}

/// Whether an address is valid only on its link.
#[must_use]
pub fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The one who has `addr`.
#[must_use]
pub fn party(addr: IpAddr, topology: &Topology) -> Party {
    let member = topology.containers.iter().find(|c| c.addresses.contains(&addr));
    let side = PolicySide { identity: member.map_or(0, |m| m.identity), addr: addr.into() };
    Party { addr, container: member.map(|m| m.name.clone()), side, host: topology.host.contains(&addr), link: None }
}

/// An address of each family that nobody has and, if possible, that is in no network of a rule.
fn world(topology: &Topology, rules: &[Rule]) -> Vec<IpAddr> {
    let nobody = |a: &IpAddr| !topology.host.contains(a) && !topology.networks.iter().any(|n| n.contains(*a));
    let named = |a: IpAddr| {
        let inside = |s: &Selector| matches!(s, Selector::Cidr(net) if net.contains(a));
        rules.iter().filter(|r| inside(&r.from) || inside(&r.to)).count()
    };
    let examples = EXAMPLES.map(|words| IpAddr::V6(words.into()).to_canonical());
    let best =
        |v6: bool| examples.iter().copied().filter(|a| a.is_ipv6() == v6).filter(nobody).min_by_key(|a| named(*a));
    best(false).into_iter().chain(best(true)).collect()
}

/// IP protocol number and port for `tcp`, `udp` or `icmp`.
///
/// # Errors
/// When it is another protocol, or the port is missing or superfluous.
pub fn port_and_proto(proto: &str, port: Option<u16>, v6: bool) -> Result<(u8, u16), String> {
    match (proto, port) {
        ("tcp", Some(port)) => Ok((IPPROTO_TCP, port)),
        ("udp", Some(port)) => Ok((IPPROTO_UDP, port)),
        ("icmp" | "icmpv6", None | Some(0)) => Ok((if v6 { IPPROTO_ICMPV6 } else { IPPROTO_ICMP }, 0)),
        ("tcp" | "udp", None) => Err(format!("{proto} needs a port, as in {proto}/80")),
        ("icmp" | "icmpv6", Some(_)) => Err(format!("{proto} has no ports: it is just {proto:?}")),
        _ => Err(format!("{proto:?} is not tcp, udp or icmp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Member;

    #[test]
    fn words_are_somebody() {
        let member = Member {
            name: "web".parse().expect("name"),
            identity: 7,
            pools: std::iter::once("p".parse().expect("name")).collect(),
            addresses: ["fd00::5", "10.0.3.5", "fe80::5"].map(|a| a.parse().expect("address")).to_vec(),
            link_local: Vec::new(),
            sockets: None,
            name_servers: Vec::new(),
        };
        let topology = Topology {
            containers: vec![member],
            networks: vec!["10.0.3.0/24".parse().expect("net"), "203.0.113.0/24".parse().expect("net")],
            host: vec!["10.0.3.1".parse().expect("address")],
            ..Topology::default()
        };
        for (word, want) in [
            ("web", vec![("10.0.3.5", 7, false), ("fd00::5", 7, false)]),
            ("10.0.3.5", vec![("10.0.3.5", 7, false)]),
            ("::ffff:10.0.3.5", vec![("10.0.3.5", 7, false)]),
            ("10.0.3.9", vec![("10.0.3.9", 0, false)]),
            ("host", vec![("10.0.3.1", 0, true)]),
            ("world", vec![("198.51.100.1", 0, false), ("2001:db8::1", 0, false)]),
        ] {
            let got = side(word, &topology, &[]).expect("somebody");
            let got: Vec<_> = got.iter().map(|p| (p.addr.to_string(), p.side.identity, p.host)).collect();
            let want: Vec<_> = want.iter().map(|(a, id, host)| ((*a).to_owned(), *id, *host)).collect();
            assert_eq!(got, want, "{word}");
        }
        assert!(side("db", &topology, &[]).is_err());
    }
}
