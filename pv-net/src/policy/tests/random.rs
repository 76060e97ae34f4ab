//! Random rules and packets for one small device, on which many rules overlap.

use super::reference::Packet;
use super::{Action, LinkLocal, Member, Peer, PortMatch, Rule, Selector, Sockets, Topology};
use proptest::prelude::*;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A name, address or network.
pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

/// Three pools and three containers, the last of which is in two pools.
pub fn topology() -> Topology {
    let member = |n: &str, identity, pools: &[&str], addresses: &[&str]| Member {
        name: name(n),
        identity,
        pools: pools.iter().map(|p| name(p)).collect(),
        addresses: addresses.iter().map(|a| name(a)).collect(),
        link_local: Vec::new(),
        sockets: None,
        name_servers: Vec::new(),
    };
    let mut first = member("c1", 11, &["a"], &["10.0.1.2", "fd00:1::2", "fe80::2"]);
    first.link_local.push(LinkLocal { addr: name("fe80::2"), beside: name("fd00:1::2"), pool: name("a") });
    Topology {
        containers: vec![
            first,
            member("c2", 12, &["a"], &["10.0.1.3", "fd00:1::3"]),
            member("c3", 13, &["a", "b"], &["10.0.1.4", "10.0.2.4", "fd00:2::4"]),
        ],
        networks: ["10.0.1.0/24", "fd00:1::/64", "10.0.2.0/24", "fd00:2::/64"].map(name).to_vec(),
        host: ["10.0.1.1", "fd00:1::1", "192.0.2.7", "127.0.0.1"].map(name).to_vec(),
        ..Topology::default()
    }
}

fn selector() -> impl Strategy<Value = Selector> {
    let cidrs = [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "10.0.1.2/32",
        "10.0.1.0/30",
        "192.0.2.0/24",
        "192.0.2.7/32",
        "198.51.100.0/25",
        "fd00::/8",
        "fd00:1::/64",
        "fd00:1::2/128",
        "fd00:2::4/127",
        "::/64",
        "fe80::/10",
    ];
    prop_oneof![
        prop::sample::select(vec!["c1", "c2", "c3", "gone"]).prop_map(|n| Selector::Container(name(n))),
        prop::sample::select(vec!["a", "b", "empty"]).prop_map(|n| Selector::Pool(name(n))),
        prop::sample::select(cidrs.to_vec()).prop_map(|n| Selector::Cidr(name(n))),
        Just(Selector::Host),
        Just(Selector::World),
    ]
}

fn range() -> impl Strategy<Value = RangeInclusive<u16>> {
    let port = || prop_oneof![1u16..12, 78u16..90, Just(65535u16), 1u16..];
    (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn ports() -> impl Strategy<Value = PortMatch> {
    prop_oneof![
        4 => range().prop_map(|r| PortMatch::Tcp(Some(r))),
        3 => range().prop_map(|r| PortMatch::Udp(Some(r))),
        1 => Just(PortMatch::Tcp(None)),
        1 => Just(PortMatch::Udp(None)),
        1 => Just(PortMatch::Icmp),
    ]
}

/// What a container may do with sockets.
pub fn sockets() -> impl Strategy<Value = Sockets> {
    let ports = || prop::collection::vec(ports(), 1..4);
    let peer = (selector(), ports()).prop_map(|(to, ports)| Peer { to, ports });
    (prop::collection::vec(self::ports(), 0..4), prop::collection::vec(peer, 0..4), any::<bool>())
        .prop_map(|(listen, connect, resolve)| Sockets { listen, connect, resolve })
        .prop_map(without_icmp)
}

/// Nothing of ICMP can be granted.
fn without_icmp(mut sockets: Sockets) -> Sockets {
    sockets.listen.retain(|ports| *ports != PortMatch::Icmp);
    sockets.connect.iter_mut().for_each(|peer| peer.ports.retain(|ports| *ports != PortMatch::Icmp));
    sockets
}

/// The same device; one container may have any sockets, two others only certain ones.
pub fn limited(one: Sockets, other: Sockets) -> Topology {
    let mut topology = topology();
    topology.containers[0].sockets = Some(Arc::new(one));
    topology.containers[2].sockets = Some(Arc::new(other));
    let servers = |pool: &str, addresses: &[&str]| (name(pool), addresses.iter().map(|a| name(a)).collect());
    topology.containers[2].name_servers.push(name("192.0.2.8"));
    topology.name_servers = [servers("a", &["10.0.1.1", "fd00:1::1"]), servers("b", &["198.51.100.9"])].into();
    topology
}

/// Up to thirteen rules.
pub fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let rule = (selector(), selector(), prop::collection::vec(ports(), 0..4), action)
        .prop_map(|(from, to, ports, action)| Rule { name: None, from, to, ports, action });
    prop::collection::vec(rule, 1..14)
}

/// An end of a flow: identity and address. Containers may also use an address that is not theirs.
fn end(v6: bool) -> impl Strategy<Value = (u32, IpAddr)> {
    let v4 = [
        (11, "10.0.1.2"),
        (12, "10.0.1.3"),
        (13, "10.0.1.4"),
        (13, "10.0.2.4"),
        (12, "10.0.1.2"),
        (0, "10.0.1.1"),
        (0, "10.0.1.200"),
        (0, "192.0.2.7"),
        (0, "192.0.2.8"),
        (0, "198.51.100.9"),
        (0, "8.8.8.8"),
        (0, "10.9.9.9"),
        (0, "127.0.0.1"),
    ];
    let six = [
        (11, "fd00:1::2"),
        (12, "fd00:1::3"),
        (13, "fd00:2::4"),
        (11, "fe80::2"),
        (12, "fe80::9"),
        (0, "fd00:1::1"),
        (0, "fd00:1::77"),
        (0, "fd00:2::5"),
        (0, "2001:db8::1"),
        (0, "::7"),
        (0, "fd99::1"),
    ];
    prop::sample::select(if v6 { six.to_vec() } else { v4.to_vec() }).prop_map(|(id, a)| (id, name(a)))
}

/// A packet between two ends, which may be containers, the device, other addresses of the pools, or outside.
pub fn packet() -> impl Strategy<Value = Packet> {
    let proto = prop::sample::select(vec![6u8, 6, 6, 17, 17, 1, 58, 132]);
    let port = prop_oneof![0u16..14, 76u16..92, Just(65535u16), any::<u16>()];
    any::<bool>().prop_flat_map(|v6| (end(v6), end(v6))).prop_flat_map(move |(src, dst)| {
        (proto.clone(), port.clone()).prop_map(move |(proto, port)| Packet {
            src_identity: src.0,
            src: src.1,
            dst_identity: dst.0,
            dst: dst.1,
            proto,
            port,
        })
    })
}
