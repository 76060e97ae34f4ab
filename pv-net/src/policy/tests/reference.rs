//! A reference for the meaning of the rules: goes through them one by one. It is slow, simple, and written
//! independently of the compiler. Tests compare the compiled policy, the programs in the kernel and nftables with it.

use super::{Action, Member, PortMatch, Rule, Selector, Topology};
use std::net::IpAddr;

/// A packet that opens a flow.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The sending container's identity, or zero.
    pub src_identity: u32,
    /// Its source address.
    pub src: IpAddr,
    /// The receiving container's identity, or zero.
    pub dst_identity: u32,
    /// Its destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Destination port.
    pub port: u16,
}

/// What the rules say: the number of the deciding rule, and its action.
pub fn verdict(rules: &[Rule], topology: &Topology, packet: &Packet) -> Option<(usize, Action)> {
    let mut first_allow = None;
    let mut deny = None;
    for (number, rule) in rules.iter().enumerate() {
        if !matches(&rule.from, topology, packet.src_identity, packet.src) {
            continue;
        }
        if !matches(&rule.to, topology, packet.dst_identity, packet.dst) {
            continue;
        }
        if !rule.ports.is_empty() && !rule.ports.iter().any(|p| is_about(p, packet)) {
            continue;
        }
        if rule.action == Action::Deny {
            deny = deny.or(Some((number, Action::Deny)));
        }
        if rule.action == Action::Allow && first_allow.is_none() {
            first_allow = Some((number, Action::Allow));
        }
    }
    deny.or_else(|| limited(rules.len(), topology, packet)).or(first_allow)
}

/// The sender whose limits refuse the packet, or else the receiver, as the number of a rule behind those of the configuration.
fn limited(rules: usize, topology: &Topology, packet: &Packet) -> Option<(usize, Action)> {
    let limited: Vec<_> = topology.containers.iter().filter_map(|c| Some((c, c.sockets.as_ref()?))).collect();
    let place = |identity| limited.iter().position(|(container, _)| container.identity == identity);
    let to = |selector: &Selector| matches(selector, topology, packet.dst_identity, packet.dst);
    let sends = place(packet.src_identity).filter(|place| {
        let (container, sockets) = limited[*place];
        let reaches = sockets.connect.iter().any(|peer| to(&peer.to) && peer.ports.iter().any(|p| is_about(p, packet)));
        let mut servers = container
            .pools
            .iter()
            .filter_map(|pool| topology.name_servers.get(pool))
            .flatten()
            .chain(&container.name_servers);
        let is_question = sockets.resolve && matches!((packet.proto, packet.port), (6 | 17, 53));
        let asks = is_question && servers.any(|server| to(&Selector::Cidr((*server).into())));
        !reaches && !asks
    });
    let receives = place(packet.dst_identity).filter(|place| {
        let (_, sockets) = limited[*place];
        !sockets.listen.iter().any(|p| is_about(p, packet))
    });
    sends.or(receives).map(|place| (rules + place, Action::Deny))
}

fn is_about(ports: &PortMatch, packet: &Packet) -> bool {
    match ports {
        PortMatch::Icmp => packet.proto == 1 || packet.proto == 58,
        PortMatch::Tcp(None) => packet.proto == 6,
        PortMatch::Udp(None) => packet.proto == 17,
        PortMatch::Tcp(Some(range)) => packet.proto == 6 && range.contains(&packet.port),
        PortMatch::Udp(Some(range)) => packet.proto == 17 && range.contains(&packet.port),
    }
}

fn matches(selector: &Selector, topology: &Topology, identity: u32, addr: IpAddr) -> bool {
    let container: Option<&Member> = topology.containers.iter().find(|c| c.identity == identity);
    let is_host = identity == 0 && topology.host.contains(&addr);
    let in_a_pool = topology.networks.iter().any(|n| n.contains(addr));
    match selector {
        Selector::Container(name) => container.is_some_and(|c| c.name == *name),
        Selector::Pool(name) => container.is_some_and(|c| c.pools.contains(name)),
        // A container matches by its own addresses only: if it sends from an address that it does not have, no network
        // matches. Its link-local address is also in the networks of its interface's other address.
        Selector::Cidr(net) => {
            let beside = |c: &&Member| c.link_local.iter().any(|l| l.addr == addr && net.contains(l.beside));
            let inside = net.contains(addr) || container.as_ref().is_some_and(beside);
            inside && container.is_none_or(|c| c.addresses.contains(&addr))
        }
        Selector::Host => is_host,
        Selector::World => identity == 0 && !is_host && !in_a_pool,
    }
}
