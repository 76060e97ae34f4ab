//! A named case for each possible error of a `device.json`, beside those of a pool's services.

use super::*;

#[test]
fn devices_that_are_wrong() {
    let ok = json!({"subnet": "10.0.3.0/24"});
    let cases: Vec<Case> = vec![
        (
            "not hexadecimal",
            pool(json!({"subnet6": "fd00:pv::/64"})),
            &[("network.pools.p.subnet6", "\"pv\" is not hexadecimal")],
        ),
        ("not a number", pool(json!({"subnet": "10.0.300.0/24"})), &[("network.pools.p.subnet", "\"300\"")]),
        ("no prefix", pool(json!({"subnet": "10.0.3.0"})), &[("network.pools.p.subnet", "prefix length")]),
        ("bad prefix", pool(json!({"subnet": "10.0.3.0/33"})), &[("network.pools.p.subnet", "\"33\"")]),
        ("host bits", pool(json!({"subnet": "10.0.3.7/24"})), &[("network.pools.p.subnet", "10.0.3.0/24")]),
        ("host bits, IPv6", pool(json!({"subnet6": "fd00::7/64"})), &[("network.pools.p.subnet6", "fd00::/64")]),
        ("IPv6 in subnet", pool(json!({"subnet": "fd00::/64"})), &[("network.pools.p.subnet", "")]),
        ("IPv4 in subnet6", pool(json!({"subnet6": "10.0.0.0/24"})), &[("network.pools.p.subnet6", "IPv6 is wanted")]),
        ("too small", pool(json!({"subnet": "10.0.3.0/31"})), &[("network.pools.p.subnet", "/30 is the smallest")]),
        ("loopback", pool(json!({"subnet": "127.0.0.0/16"})), &[("network.pools.p.subnet", "loopback")]),
        ("multicast", pool(json!({"subnet6": "ff02::/64"})), &[("network.pools.p.subnet6", "multicast")]),
        ("no addresses", pool(json!({})), &[("network.pools.p", "no addresses")]),
        (
            "gateway outside",
            pool(json!({"subnet": "10.0.3.0/24", "gateway": "10.0.4.1"})),
            &[("network.pools.p.gateway", "outside the subnet 10.0.3.0/24")],
        ),
        (
            "gateway outside, IPv6",
            pool(json!({"subnet6": "fd00::/64", "gateway6": "fd01::1"})),
            &[("network.pools.p.gateway6", "outside")],
        ),
        (
            "gateway is broadcast",
            pool(json!({"subnet": "10.0.3.0/24", "gateway": "10.0.3.255"})),
            &[("network.pools.p.gateway", "broadcast")],
        ),
        (
            "gateway of nothing",
            pool(json!({"subnet": "10.0.3.0/24", "gateway6": "fd00::1"})),
            &[("network.pools.p.gateway6", "no subnet")],
        ),
        (
            "mtu too small for IPv6",
            pool(json!({"subnet6": "fd00::/64", "mtu": 1000})),
            &[("network.pools.p.mtu", "1280")],
        ),
        (
            "an object in the place of a name",
            pool(json!({"subnet": "10.0.3.0/24", "type": {"bridge": null}})),
            &[("network.pools.p.type", "expected a name")],
        ),
        (
            "mtu of a wrong type",
            pool(json!({"subnet": "10.0.3.0/24", "mtu": "big"})),
            &[("network.pools.p.mtu", "invalid type")],
        ),
        (
            "unknown field",
            pool(json!({"subnet": "10.0.3.0/24", "gatway": "10.0.3.1"})),
            &[("network.pools.p.gatway", "did you mean \"gateway\"")],
        ),
        (
            "two unknown fields",
            json!({"netwrk": {}, "foo": 1}),
            &[("netwrk", "did you mean \"network\""), ("foo", "fields here are")],
        ),
        ("bad pool name", json!({"network": {"pools": {"a b": ok}}}), &[("network.pools.a b", "' '")]),
        (
            "bridge name too long",
            pool(json!({"subnet": "10.0.3.0/24", "bridge": "a-name-too-long-x"})),
            &[("network.pools.p.bridge", "15 characters")],
        ),
        (
            "pool name too long for a bridge",
            json!({"network": {"pools": {"a-long-pool-name": ok}}}),
            &[("network.pools.a-long-pool-name.bridge", "name the bridge")],
        ),
        (
            "bridge pool with parent",
            pool(json!({"subnet": "10.0.3.0/24", "parent": "eth0"})),
            &[("network.pools.p.parent", "bridge has none")],
        ),
        (
            "macvlan without parent",
            pool(json!({"type": "macvlan", "subnet": "10.0.3.0/24"})),
            &[("network.pools.p", "no parent")],
        ),
        (
            "macvlan with a kind of links",
            pool(json!({"type": "macvlan", "parent": "eth0", "link": "netkit", "subnet": "10.0.3.0/24"})),
            &[("network.pools.p.link", "only a pool of type bridge")],
        ),
        (
            "an unknown kind of links",
            pool(json!({"subnet": "10.0.3.0/24", "link": "tap"})),
            &[("network.pools.p.link", "unknown variant")],
        ),
        (
            "macvlan in ipvlan's mode",
            pool(json!({"type": "macvlan", "parent": "eth0", "mode": "l3", "subnet": "10.0.3.0/24"})),
            &[("network.pools.p.mode", "passthru")],
        ),
        (
            "addresses from the network of a bridge",
            pool(json!({"ipam": "dhcp"})),
            &[("network.pools.p.ipam", "only a pool of type macvlan")],
        ),
        (
            "addresses from the network, by the device's MAC",
            pool(json!({"type": "ipvlan", "parent": "eth0", "ipam": "dhcp"})),
            &[("network.pools.p.ipam", "would take them for the device")],
        ),
        (
            "macvlan and ipvlan on one link",
            json!({"network": {"pools": {
                "a": {"type": "macvlan", "parent": "eth0", "subnet": "10.0.3.0/24"},
                "b": {"type": "ipvlan", "parent": "eth0", "subnet": "10.0.4.0/24"}}}}),
            &[("network.pools.b.parent", "is the parent of pool a, of type macvlan")],
        ),
        (
            "addresses from the network, and from here",
            pool(
                json!({"type": "macvlan", "parent": "eth0", "ipam": "dhcp", "subnet": "10.0.3.0/24", "gateway": "10.0.3.9",
                "subnet6": "fd00::/64"}),
            ),
            &[
                ("network.pools.p.subnet", "the parent's network says this"),
                ("network.pools.p.subnet6", "the parent's network says this"),
                ("network.pools.p.gateway", "the parent's network says this"),
            ],
        ),
        (
            "addresses from nobody",
            pool(json!({"type": "macvlan", "parent": "eth0", "ipam": "host-local"})),
            &[("network.pools.p", "the pool has no addresses")],
        ),
        (
            "unknown type",
            pool(json!({"type": "vxlan", "subnet": "10.0.3.0/24"})),
            &[("network.pools.p.type", "unknown variant")],
        ),
        (
            "overlap",
            json!({"network": {"pools": {"a": {"subnet": "10.0.0.0/16"}, "b": {"subnet": "10.0.3.0/24"}}}}),
            &[("network.pools.b.subnet", "overlaps 10.0.0.0/16 of pool a")],
        ),
        (
            "overlap, IPv6",
            json!({"network": {"pools": {"a": {"subnet6": "fd00::/32"}, "b": {"subnet6": "fd00:0:1::/64"}}}}),
            &[("network.pools.b.subnet6", "of pool a")],
        ),
        (
            "one bridge for two",
            json!({"network": {"pools": {"a": {"bridge": "x", "subnet": "10.1.0.0/24"}, "b": {"bridge": "x", "subnet": "10.2.0.0/24"}}}}),
            &[("network.pools.b.bridge", "of pool a")],
        ),
        (
            "DHCP range with gateway",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {"range": ["10.0.3.1", "10.0.3.9"]}})),
            &[("network.pools.p.dhcp.range", "gateway")],
        ),
        (
            "DHCP range backwards",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {"range": ["10.0.3.9", "10.0.3.2"]}})),
            &[("network.pools.p.dhcp.range", "backwards")],
        ),
        (
            "lease time",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {"lease_time": "soon"}})),
            &[("network.pools.p.dhcp.lease_time", "1h")],
        ),
        (
            "a lease that is over at once",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {"lease_time": "9s"}})),
            &[("network.pools.p.dhcp.lease_time", "10s to 365d")],
        ),
        (
            "DHCP on a parent's network",
            pool(json!({"type": "macvlan", "parent": "eth0", "subnet": "10.0.3.0/24", "dhcp": {}})),
            &[("network.pools.p.dhcp", "only a pool of type bridge has a DHCP server")],
        ),
        (
            "DHCP without addresses",
            pool(json!({"subnet6": "fd00:3::/64", "dhcp": {}})),
            &[("network.pools.p.dhcp", "no IPv4 addresses")],
        ),
        (
            "DHCP settings",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {
                "leases_per_port": 9,
                "ntp": ["time.example"],
                "routes": {"10.9.0.0": "10.0.3.5", "10.8.0.1/16": "10.0.3.5", "10.7.0.0/16": "10.0.4.5"},
                "captive_portal": "http://portal.example",
            }})),
            &[
                ("network.pools.p.dhcp.leases_per_port", "no range"),
                ("network.pools.p.dhcp.ntp[0]", "number from 0 to 255"),
                ("network.pools.p.dhcp.routes.10.7.0.0/16", "not inside the subnet 10.0.3.0/24"),
                ("network.pools.p.dhcp.routes.10.8.0.1/16", "host bits"),
                ("network.pools.p.dhcp.routes.10.9.0.0", "10.9.0.0/16"),
                ("network.pools.p.dhcp.captive_portal", "https://"),
            ],
        ),
        (
            "DHCP options",
            pool(json!({"subnet": "10.0.3.0/24", "dhcp": {
                "options": {"3": "10.0.3.1", "x": "y", "066": "y", "43": "hex:123", "66": "", "150": ["10.0.3"], "60": 7},
            }})),
            &[
                ("network.pools.p.dhcp.options.066", "1 to 254"),
                ("network.pools.p.dhcp.options.150", "10.0.3"),
                ("network.pools.p.dhcp.options.3", "the gateway"),
                ("network.pools.p.dhcp.options.43", "hex:0104"),
                ("network.pools.p.dhcp.options.60", "DhcpOption"),
                ("network.pools.p.dhcp.options.66", "1 to 255"),
                ("network.pools.p.dhcp.options.x", "1 to 254"),
            ],
        ),
        ("flow table", json!({"network": {"flow_table": 7}}), &[("network.flow_table", "1024")]),
        (
            "more flows than the table has room for",
            pool(json!({"subnet": "10.0.3.0/24", "max_flows": 8193})),
            &[("network.pools.p.max_flows", "room for 8192 flows")],
        ),
        (
            "a flow that ends at once",
            json!({"network": {"flow_timeouts": {"udp": 0, "tcp": 604_801}}}),
            &[("network.flow_timeouts.tcp", "1 to 604800"), ("network.flow_timeouts.udp", "1 to 604800")],
        ),
        (
            "negative number of flows",
            pool(json!({"subnet": "10.0.3.0/24", "max_flows": -1})),
            &[("network.pools.p.max_flows", "-1")],
        ),
        ("uplink twice", json!({"network": {"uplinks": ["eth0", "eth0"]}}), &[("network.uplinks[1]", "twice")]),
        ("domain", json!({"network": {"domain": "pv..local"}}), &[("network.domain", "label")]),
        (
            "policy without action",
            json!({"network": {"policies": [{"from": "world", "to": "host"}]}}),
            &[("network.policies[0]", "\"action\"")],
        ),
        (
            "bad selector",
            json!({"network": {"policies": [{"from": "moon", "to": "host", "action": "deny"}]}}),
            &[("network.policies[0].from", "")],
        ),
        ("network is a list", json!({"network": []}), &[("network", "invalid type")]),
        (
            "many at once",
            pool(json!({"subnet": "x", "subnet6": "fd00:pv::/64", "mtu": -1, "bridge": "a/b", "nope": 1})),
            &[
                ("network.pools.p.subnet", ""),
                ("network.pools.p.subnet6", "pv"),
                ("network.pools.p.mtu", ""),
                ("network.pools.p.bridge", "'/'"),
                ("network.pools.p.nope", "unknown"),
            ],
        ),
    ];
    for (name, value, want) in cases {
        expect(name, parse_device("device.json", &value.to_string()), want);
    }
}
