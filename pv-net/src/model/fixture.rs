//! A pool, for tests.

use super::{HostAccess, PairKind, Pool, PoolIpam, PoolKind, Subnet4, Subnet6};

/// A pool on the bridge `br0`, isolated, with these networks and gateways.
pub fn pool(name: &str, v4: Option<(&str, &str)>, v6: Option<(&str, &str)>) -> Pool {
    Pool {
        name: name.parse().expect("name"),
        kind: PoolKind::Bridge { bridge: "br0".parse().expect("name") },
        ipam: PoolIpam::HostLocal,
        v4: v4.map(|(net, gw)| Subnet4 {
            net: net.parse().expect("net"),
            gateway: gw.parse().expect("ip"),
            dhcp_range: None,
        }),
        v6: v6.map(|(net, gw)| Subnet6 { net: net.parse().expect("net"), gateway: gw.parse().expect("ip") }),
        nat: false,
        link: PairKind::Veth,
        mtu: None,
        big_tcp: true,
        dns: None,
        ra: None,
        dhcp: None,
        dhcp6: None,
        isolated: true,
        annotations: false,
        host_access: HostAccess::Services,
        max_flows: 2048,
    }
}
