//! What a pool offers to those in it: names, addresses, router advertisements; and what a container offers to others.

use super::*;
use crate::model::{RaMode, RouterPreference};

#[test]
fn a_pool_answers_for_names_unless_it_is_told_not_to() {
    let dns = |dns: Value| {
        let pool = json!({"subnet": "10.0.3.0/24", "dns": dns});
        let d = device(json!({"network": {"pools": {"p": pool}}}));
        assert_eq!(d.inactive, [""; 0]);
        d.pools.values().next().and_then(|p| p.dns.clone())
    };
    let plain = device(json!({"network": {"pools": {"p": {"subnet": "10.0.3.0/24"}}}}));
    assert_eq!(plain.pools.values().next().and_then(|p| p.dns.clone()), Some(std::sync::Arc::default()));
    assert_eq!((dns(json!(true)), dns(json!({}))), (Some(Default::default()), Some(Default::default())));
    assert_eq!(dns(json!(false)), None);
    let all = dns(json!({"upstream": ["192.0.2.53", "2001:db8::53"], "zones": {"Corp.Example": ["10.9.0.53"]},
        "private_names": ["Lan.Example"]}));
    let all = all.expect("it answers");
    let servers = |all: &[crate::model::NameServer]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(servers(&all.upstream), ["192.0.2.53:53", "[2001:db8::53]:53"]);
    let tls = dns(json!({"upstream": ["tls://192.0.2.53#dns.example"]})).expect("it answers");
    assert_eq!(servers(&tls.upstream), ["tls://192.0.2.53#dns.example"]);
    for (dns, path, why) in [
        (json!({"upstream": ["tls://192.0.2.53"]}), "upstream[0]", "has no name"),
        (json!({"upstream": ["192.0.2.1", "tls://192.0.2.53#a"]}), "upstream", "would go unencrypted"),
        (json!({"zones": {"a.b": ["192.0.2.1", "tls://[::1]#a"]}}), "zones.a.b", "would go unencrypted"),
    ] {
        let text = json!({"network": {"pools": {"p": {"subnet": "10.0.3.0/24", "dns": dns}}}}).to_string();
        expect(why, parse_device("f", &text), &[(&format!("network.pools.p.dns.{path}"), why)]);
    }
    let ca_file = |value: Value| json!({"network": {"dns_ca_file": value}});
    assert_eq!(device(ca_file(json!("/etc/ca.pem"))).dns_ca_file, Some("/etc/ca.pem".into()));
    let wrong = ca_file(json!("ca.pem")).to_string();
    expect("relative", parse_device("f", &wrong), &[("network.dns_ca_file", "no absolute path")]);
    assert_eq!(all.zones.keys().collect::<Vec<_>>(), ["corp.example"]);
    assert_eq!(all.private_names, ["lan.example"]);
    let on_device = |value: Value| device(json!({"network": {"dns_on_device": value}})).dns_on_device;
    assert_eq!((on_device(json!(true)), on_device(json!(false))), (Some([127, 0, 0, 153].into()), None));
    assert_eq!(on_device(json!("::1")), Some(std::net::Ipv6Addr::LOCALHOST.into()));
    let wrong = json!({"network": {"dns_on_device": "10.0.3.1"}}).to_string();
    expect("not loopback", parse_device("f", &wrong), &[("network.dns_on_device", "no address of loopback")]);
    let c = container(json!({"name": "web", "network": {"pool": "p", "aliases": ["WWW", "www.site"]}}));
    assert_eq!(c.aliases, ["www", "www.site"]);
}

#[test]
fn a_pool_advertises_when_it_is_asked_to() {
    let ra = |ra: Value| {
        let d = device(json!({"network": {"pools": {"p": {"subnet6": "fd00:5056::/64", "ra": ra}}}}));
        assert_eq!(d.inactive, [""; 0]);
        d.pools.values().next().and_then(|p| p.ra.clone()).expect("it advertises")
    };
    let plain = ra(json!({}));
    assert_eq!((plain.mode, plain.lifetime_secs, plain.routes.len()), (RaMode::Slaac, 1800, 0));
    let all = ra(json!({"mode": "stateful", "lifetime": "150m", "preference": "low", "routes": ["fd00:5056::/32"]}));
    assert_eq!((all.mode, all.lifetime_secs, all.preference), (RaMode::Stateful, 9000, RouterPreference::Low));
    assert_eq!(all.routes, ["fd00:5056::/32".parse::<ipnetwork::Ipv6Network>().expect("a network")]);
    let plain = device(json!({"network": {"pools": {"p": {"subnet6": "fd00:5056::/64"}}}}));
    assert!(plain.pools.values().all(|p| p.ra.is_none()));
}

#[test]
fn what_cannot_be_advertised_is_refused() {
    let pool = |ra: Value| json!({"subnet6": "fd00:5056::/64", "ra": ra});
    let nets: Vec<String> = (0..17).map(|n| format!("fd00:{n}::/32")).collect();
    for (pool, path, why) in [
        (json!({"subnet": "10.0.3.0/24", "ra": {}}), "ra", "there is no subnet6"),
        (
            json!({"subnet6": "fd00::/64", "type": "macvlan", "parent": "eth0", "ra": {}}),
            "ra",
            "only a pool of type bridge",
        ),
        (
            json!({"subnet6": "fd00::/80", "ra": {}}),
            "ra.mode",
            "hosts make addresses of a /64 alone, and subnet6 is fd00::/80",
        ),
        (
            json!({"subnet6": "fd00::/56", "ra": {"mode": "stateless"}}),
            "ra.mode",
            "hosts make addresses of a /64 alone",
        ),
        (pool(json!({"mode": "dhcp"})), "ra.mode", "unknown variant `dhcp`"),
        (pool(json!({"lifetime": "11s"})), "ra.lifetime", "a lifetime is 12s to 150m"),
        (pool(json!({"lifetime": "3h"})), "ra.lifetime", "a lifetime is 12s to 150m"),
        (pool(json!({"preference": "best"})), "ra.preference", "unknown variant `best`"),
        (pool(json!({"routes": ["::/0"]})), "ra.routes[0]", "is all of IPv6"),
        (pool(json!({"routes": ["fe80::/64"]})), "ra.routes[0]", "is link-local"),
        (pool(json!({"routes": ["ff00::/8"]})), "ra.routes[0]", "is multicast"),
        (pool(json!({"routes": ["fd00::1/64"]})), "ra.routes[0]", "has host bits set: the network is fd00::/64"),
        (pool(json!({"routes": ["fd01::/64", "fd01::/64"]})), "ra.routes[1]", "stands twice"),
        (pool(json!({"routes": nets})), "ra.routes", "has room for 16 routes, these are 17"),
        (pool(json!({"life": "1h"})), "ra.life", "unknown field"),
    ] {
        let text = json!({"network": {"pools": {"p": pool}}}).to_string();
        let errors = parse_device("device.json", &text).expect_err(&text);
        let found = errors.iter().any(|e| e.path == format!("network.pools.p.{path}") && e.why.contains(why));
        assert!(found, "{path}, {why}: {errors:?}");
    }
    // The others of a /80 may be told the way out.
    let d = device(json!({"network": {"pools": {"p": {"subnet6": "fd00::/80", "ra": {"mode": "route-only"}}}}}));
    assert!(d.pools.values().all(|p| p.ra.is_some()));
}

#[test]
fn services_that_a_container_offers() {
    let parse = |services: Value| parse_services("services.json", &services.to_string());
    let all = json!([
        {"name": "API", "type": "http", "port": 8080}, {"name": "log", "type": "udp", "port": 514},
        {"name": "bus", "type": "dbus", "socket": "/run/dbus/system_bus_socket"},
    ]);
    let offers = parse(all.clone()).expect("a list alone");
    assert_eq!(offers, parse(json!({"#spec": "service-manifest-xconnect@1", "services": all})).expect("a manifest"));
    let short: Vec<_> = offers.iter().map(|o| format!("{} {} {} {}", o.name, o.kind, o.transport, o.port)).collect();
    assert_eq!(short, ["api http tcp 8080", "log udp udp 514"]);
    let one = |service: Value| json!({"services": [service]});
    let cases: Vec<Case> = vec![
        ("no name", one(json!({"type": "tcp", "port": 1})), &[("services[0]", "has a \"name\" and a \"type\"")]),
        ("two labels", one(json!({"name": "a.b", "type": "tcp", "port": 1})), &[("services[0].name", "one label")]),
        (
            "the gateway's",
            one(json!({"name": "gateway", "type": "tcp", "port": 1})),
            &[("services[0].name", "gateway's")],
        ),
        ("port 0", one(json!({"name": "a", "type": "tcp", "port": 0})), &[("services[0].port", "1 to 65535")]),
        ("port 65536", one(json!({"name": "a", "type": "tcp", "port": 65536})), &[("services[0].port", "1 to 65535")]),
        ("nowhere", one(json!({"name": "a", "type": "tcp"})), &[("services[0]", "or on a \"socket\"")]),
        (
            "port and socket",
            one(json!({"name": "a", "type": "tcp", "port": 1, "socket": "/x"})),
            &[("services[0]", "or on a \"socket\"")],
        ),
        ("relative", one(json!({"name": "a", "type": "unix", "socket": "x"})), &[("services[0].socket", "absolute")]),
        ("type", one(json!({"name": "a", "type": "a b", "port": 1})), &[("services[0].type", "a type has")]),
        (
            "unknown",
            one(json!({"name": "a", "type": "tcp", "prot": 1})),
            &[("services[0].prot", "did you mean"), ("services[0]", "or on a")],
        ),
        ("spec", json!({"#spec": "x@2", "services": []}), &[("#spec", "service-manifest-xconnect@1")]),
        (
            "twice",
            json!([{"name": "a", "type": "tcp", "port": 1}, {"name": "A", "type": "udp", "port": 1}]),
            &[("services[1].name", "stands twice")],
        ),
    ];
    for (name, file, want) in cases {
        expect(name, parse(file), want);
    }
}

#[test]
fn a_pool_leases_ipv6_addresses_when_it_is_asked_to() {
    let pool = |dhcp6: Value| {
        let d = device(json!({"network": {"pools": {"p": {"subnet6": "fd00:5056::/64", "dhcp6": dhcp6}}}}));
        assert_eq!(d.inactive, [""; 0]);
        d.pools.into_values().next().expect("a pool")
    };
    let plain = pool(json!({}));
    assert_eq!(plain.dhcp6.map(|d| (d.lease_secs, d.ntp.len(), d.range, d.leases_per_port)), Some((3600, 0, None, 0)));
    let all = pool(json!({"range": ["fd00:5056::10", "fd00:5056::1f"], "lease_time": "2d", "ntp": ["fd00:5056::123"]}));
    let all = all.dhcp6.expect("it leases");
    assert_eq!((all.lease_secs, all.ntp.len(), all.leases_per_port), (172_800, 1, 8));
    let range = json!(["fd00:5056::1:0", "fd00:5056::9:0"]);
    for (dhcp6, most) in [(json!({"range": range}), 1024), (json!({"range": range, "leases_per_port": 5000}), 5000)] {
        assert_eq!(pool(dhcp6).dhcp6.map(|d| d.leases_per_port), Some(most));
    }
    let range = all.range.expect("a range");
    assert_eq!((range.0.to_string(), range.1.to_string()), ("fd00:5056::10".to_owned(), "fd00:5056::1f".to_owned()));
    let range = |first: &str, last: &str| json!({"subnet6": "fd00:5056::/64", "dhcp6": {"range": [first, last]}});
    let with = |dhcp6: Value| json!({"subnet6": "fd00:5056::/64", "dhcp6": dhcp6});
    let many: Vec<String> = (0..9).map(|n| format!("fd00::{n}")).collect();
    for (pool, path, why) in [
        (json!({"subnet": "10.0.3.0/24", "dhcp6": {}}), "dhcp6", "no IPv6 addresses that could be leased"),
        (
            json!({"subnet6": "fd00::/64", "type": "macvlan", "parent": "eth0", "dhcp6": {}}),
            "dhcp6",
            "only a pool of type bridge",
        ),
        (range("fd00:5056::20", "fd00:5056::10"), "dhcp6.range", "runs backwards"),
        (range("fd00:5056::10", "fd00:5057::10"), "dhcp6.range", "is not inside the subnet"),
        (range("fd00:5056::1", "fd00:5056::10"), "dhcp6.range", "holds the gateway"),
        (range("fd00:5056::", "fd00:5056::"), "dhcp6.range", "anycast"),
        (range("10.0.3.1", "fd00:5056::10"), "dhcp6.range[0]", "this is IPv4"),
        (with(json!({"range": ["fd00:5056::10"]})), "dhcp6.range", "a range is two addresses"),
        (with(json!({"lease_time": "9s"})), "dhcp6.lease_time", "a lease lasts 10s to 365d"),
        (with(json!({"ntp": ["10.0.3.1"]})), "dhcp6.ntp[0]", "this is IPv4"),
        (with(json!({"ntp": many})), "dhcp6.ntp", "has room for 8 servers, these are 9"),
        (with(json!({"lease": "1h"})), "dhcp6.lease", "unknown field"),
    ] {
        let text = json!({"network": {"pools": {"p": pool}}}).to_string();
        let errors = parse_device("device.json", &text).expect_err(&text);
        let found = errors.iter().any(|e| e.path == format!("network.pools.p.{path}") && e.why.contains(why));
        assert!(found, "{path}, {why}: {errors:?}");
    }
}

#[test]
fn what_clients_of_dhcp_are_told() {
    let d = device(json!({"network": {"pools": {
        "off": {"subnet": "10.0.1.0/24"},
        "own": {"subnet": "10.0.2.0/24", "dhcp": {}},
        "all": {"subnet": "10.0.3.0/24", "dhcp": {
            "range": ["10.0.3.100", "10.0.3.110"],
            "lease_time": "10m",
            "ntp": ["10.0.3.1", "192.0.2.123"],
            "routes": {"10.9.0.0/16": "10.0.3.5"},
            "captive_portal": "https://portal.example/api",
            "options": {"43": "hex:01Ff", "66": "boot.example", "150": ["10.0.3.9", "10.0.3.8"]},
        }},
    }}}));
    let pool = |name: &str| &d.pools[&name.parse::<crate::model::PoolName>().expect("name")];
    assert_eq!(pool("off").dhcp, None);
    let own = pool("own").dhcp.clone().expect("on");
    assert_eq!((own.lease_time, own.leases_per_port), (3600, 0));
    let all = pool("all").dhcp.clone().expect("on");
    assert_eq!((all.lease_time, all.leases_per_port), (600, 6));
    for (set, most) in [(None, 1024), (Some(5000), 5000)] {
        let mut dhcp = json!({"range": ["10.1.0.0", "10.2.255.255"]});
        if let Some(set) = set {
            dhcp["leases_per_port"] = json!(set);
        }
        let d = device(json!({"network": {"pools": {"large": {"subnet": "10.0.0.0/8", "dhcp": dhcp}}}}));
        let large = d.pools.values().next().and_then(|pool| pool.dhcp.clone()).expect("on");
        assert_eq!(large.leases_per_port, most, "a large range has more than the device has memory");
    }
    assert_eq!(all.ntp, ["10.0.3.1", "192.0.2.123"].map(|a| a.parse::<std::net::Ipv4Addr>().expect("address")));
    assert_eq!(all.routes, [("10.9.0.0/16".parse().expect("net"), "10.0.3.5".parse().expect("address"))]);
    assert_eq!(all.captive_portal.as_deref(), Some("https://portal.example/api"));
    let options: Vec<(u8, &[u8])> = all.options.iter().map(|(code, octets)| (*code, octets.as_slice())).collect();
    assert_eq!(options, [(43, &[1, 255][..]), (66, b"boot.example"), (150, &[10, 0, 3, 9, 10, 0, 3, 8])]);
}
