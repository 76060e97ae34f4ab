//! Named cases of addresses and uplinks.

use super::*;
use crate::model::Mac;
use crate::plan::Candidate;

fn link(index: u32, name: &str) -> LinkState {
    LinkState {
        index,
        name: name.to_owned(),
        mac: Some([2; 6]),
        mtu: 1500,
        up: true,
        carrier: true,
        inner: false,
        unseen: None,
        vrf: None,
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("net")
}

#[test]
fn links_with_an_address_or_a_default_route_lead_out() {
    let links = [
        LinkState { inner: true, mac: None, ..link(1, "lo") },
        link(2, "lan0"),
        link(3, "wan0"),
        link(4, "docker0"),
        link(5, "pvbr3"),
        LinkState { inner: true, ..link(6, "port0") },
        LinkState { mac: None, ..link(7, "wg0") },
        LinkState { mac: None, ..link(8, "wwan0") },
        link(9, "idle0"),
        link(10, "local0"),
        link(11, "lan6"),
        LinkState { unseen: Some(Unseen::Vrf), ..link(12, "vrf0") },
    ];
    let addresses = [
        (1, net("192.0.2.255/32")),
        (2, net("10.1.0.1/24")),
        (4, net("172.17.0.1/16")),
        (5, net("10.0.3.1/24")),
        (6, net("10.2.0.1/24")),
        (7, net("10.9.0.1/24")),
        (10, net("fe80::1/64")),
        (10, net("169.254.3.1/16")),
        (11, net("fd00:1::1/64")),
        (12, net("10.8.0.1/32")),
    ];
    let names = |default_routes: &[u32]| {
        let found = ways_out(&links, &addresses, &default_routes.iter().copied().collect(), &["pvbr3"].into());
        found.iter().map(|l| l.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[3]), ["wan0", "lan0", "docker0", "lan6"]);
    // Programs cannot read a link without Ethernet headers; since a default route leads there, a condition must say
    // so.
    assert_eq!(names(&[8, 1, 5]), ["wwan0", "lan0", "docker0", "lan6"]);
}

#[test]
fn pools_that_overlap_a_network_of_the_device_are_found() {
    let text = r#"{"network": {"pools": {
        "mine": {"bridge": "pvbr3", "subnet": "172.17.3.0/24", "subnet6": "fd00:5056::/64"},
        "other": {"bridge": "pvbr4", "subnet": "10.0.4.0/24"},
        "direct": {"type": "macvlan", "parent": "wan0", "subnet": "172.17.9.0/24"}
    }}}"#;
    let device = crate::config::parse_device("device.json", text).expect("valid");
    let links = [
        LinkState { inner: true, mac: None, ..link(1, "lo") },
        link(2, "docker0"),
        link(3, "pvbr3"),
        LinkState { mac: None, ..link(4, "wg0") },
        LinkState { inner: true, ..link(5, "pv-port") },
        link(6, "wan0"),
    ];
    let found = |addresses: &[(u32, &str)]| {
        let addresses: Vec<_> = addresses.iter().map(|(index, a)| (*index, net(a))).collect();
        let bridges = ["pvbr3", "pvbr4"].into();
        let found = overlaps(device.pools.values(), &links, &addresses, &bridges);
        found.into_iter().map(|(pool, why)| format!("{pool}: {}", why.join("; "))).collect::<Vec<_>>().join("\n")
    };
    for (name, addresses, said) in [
        ("its own bridge", [(3, "172.17.3.1/24"), (3, "fd00:5056::1/64")], ""),
        ("loopback, and a port", [(1, "172.17.3.7/32"), (5, "172.17.3.8/24")], ""),
        ("elsewhere", [(2, "172.18.0.1/16"), (6, "fd00:5057::1/64")], ""),
        ("link-local", [(6, "169.254.0.1/16"), (6, "fe80::1/64")], ""),
        (
            "docker",
            [(2, "172.17.0.1/16"), (6, "192.0.2.1/24")],
            "mine: 172.17.3.0/24 overlaps 172.17.0.0/16 of link docker0",
        ),
        (
            "a part of it",
            [(4, "10.0.4.129/28"), (6, "192.0.2.1/24")],
            "other: 10.0.4.0/24 overlaps 10.0.4.128/28 of link wg0",
        ),
        ("IPv6", [(6, "fd00::1/16"), (6, "192.0.2.1/24")], "mine: fd00:5056::/64 overlaps fd00::/16 of link wan0"),
    ] {
        let found = found(&addresses);
        assert!(found.starts_with(said) && found.is_empty() == said.is_empty(), "{name}: {found}");
    }
}

#[test]
fn a_link_that_programs_cannot_read_is_unfit() {
    assert_eq!(unfit(&link(2, "eth0")), None);
    assert_eq!(unfit(&LinkState { mac: None, ..link(2, "wwan0") }), Some("is not an Ethernet link"));
    for (unseen, word) in [(Unseen::L3s, "l3s"), (Unseen::Vrf, "VRF")] {
        let why = unfit(&LinkState { unseen: Some(unseen), ..link(2, "eth0") });
        assert!(why.is_some_and(|why| why.contains(word)), "{why:?}");
    }
}

#[test]
fn an_uplink_in_a_vrf_without_a_pools_bridge_is_said() {
    let within = |index, name, vrf: &str| LinkState { vrf: Some(vrf.to_owned()), ..link(index, name) };
    let links = [link(2, "eth0"), within(3, "eth1", "red"), link(4, "pvbr4"), within(5, "pvbr5", "red")];
    let names = ["a", "b", "c"].map(|name| name.parse::<PoolName>().expect("name"));
    let [a, b, c] = &names;
    let said = |uplink: usize, bridges: &[(&PoolName, u32)]| {
        let why = apart(&links[uplink], &links, bridges);
        why.map(|why| why.split(':').next().unwrap_or_default().to_owned())
    };
    assert_eq!(said(0, &[(a, 4), (b, 5)]), None);
    assert_eq!(said(1, &[(b, 5)]), None);
    assert_eq!(said(1, &[(a, 4), (b, 5)]).as_deref(), Some("is in VRF red, and pool a is not"));
    assert_eq!(said(1, &[(a, 4), (c, 2)]).as_deref(), Some("is in VRF red, and pools a, c are not"));
}

#[test]
fn only_uplinks_that_are_down_are_set_down() {
    let links = [link(2, "wan0"), LinkState { up: false, ..link(3, "lan0") }, LinkState { up: false, ..link(4, "x") }];
    let uplinks = ["wan0", "lan0"].map(|name| name.parse().expect("name")).into();
    assert_eq!(set_down(&links, &uplinks), BTreeSet::from([3]));
}

#[test]
fn of_too_many_addresses_link_local_ones_are_left_out_first() {
    let room = MAX_LOCALS / 2;
    let global = |n: u32| Ip::from(std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)));
    let link_local = |n: u32| Ip::from(std::net::Ipv6Addr::from(0xfe80_u128 << 112 | u128::from(n)));
    for (globals, link_locals, left_out, kept) in [(1, room - 1, 0, room - 1), (room - 1, 3, 2, 1), (room + 4, 3, 7, 0)]
    {
        let all = (0..globals).map(global).chain((0..link_locals).map(link_local));
        let all = all.map(|a| (a, LOCAL_ADDRESS)).collect();
        let (fit, excess) = fitting(all);
        assert_eq!((fit.len(), excess), (room as usize, left_out));
        assert_eq!(fit.keys().filter(|a| a.is_link_local()).count(), kept as usize);
    }
}

#[test]
fn an_uplink_masquerades_with_its_own_addresses() {
    let first = LinkState { mtu: 1400, ..link(4, "eth0") };
    let other = LinkState { mac: None, ..link(5, "eth1") };
    let candidates = ["192.0.2.7/24", "2001:db8::7/64", "fd00:1::7/64"].map(|a| Candidate {
        address: net(a),
        avoided: false,
        temporary: false,
        secondary: false,
    });
    let sources = |n: usize| BTreeMap::from([(4, UplinkSources::new(&candidates[..n], false))]);
    let uplinks = BTreeSet::from(["eth0".parse().expect("name")]);
    let pool = PoolLink { index: 9, mac: Mac([1; 6]), mtu: 1500, id: 1, borrowed: false, on_parent: false };
    let links = [first, other];
    let infos = |n: usize| uplink_infos(&links, &sources(n), &uplinks, std::iter::once(&pool));
    let two = infos(2);
    assert_eq!(two.keys().copied().collect::<Vec<_>>(), [4, 9]);
    assert_eq!(IpAddr::from(two[&4].addr4).to_string(), "192.0.2.7");
    assert_eq!(IpAddr::from(two[&4].addr6).to_string(), "2001:db8::7");
    assert_eq!((two[&4].mtu, two[&4].flags, two[&9].flags), (1400, 0, UPLINK_POOL));
    // Unique local destinations have an entry of their own.
    assert_eq!(infos(3)[&4], UplinkInfo { flags: UPLINK_SOURCES, ..two[&4] });
}

#[test]
fn broadcast_addresses_are_local_too() {
    let all = ["192.0.2.7/24", "203.0.113.1/31", "2001:db8::7/64"].map(|a| (4, net(a)));
    let kinds: BTreeMap<String, u32> =
        locals(&all).into_iter().map(|(a, kind)| (IpAddr::from(a).to_string(), kind)).collect();
    let want = [
        ("192.0.2.255", LOCAL_BROADCAST),
        ("192.0.2.7", LOCAL_ADDRESS),
        ("2001:db8::7", LOCAL_ADDRESS),
        ("203.0.113.1", LOCAL_ADDRESS),
    ];
    assert_eq!(kinds, want.map(|(a, kind)| (a.to_owned(), kind)).into());
}
