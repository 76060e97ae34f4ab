//! A pool with numbered containers, for tests.

use super::{Desired, Endpoint, Link, Observed, PoolLink, endpoint};
use crate::model::{Attachment, Mac, Pool, PoolKind, alias, fixture};
use std::collections::BTreeMap;

/// The pool, isolated or not.
pub fn pool(isolated: bool) -> Pool {
    let kind = PoolKind::Bridge { bridge: "pvbr0".parse().expect("name") };
    Pool { kind, isolated, ..fixture::pool("internal", Some(("10.0.3.0/24", "10.0.3.1")), None) }
}

/// The interface of container `n`.
pub fn attachment(n: u8) -> Attachment {
    let ipv4 = [10, 0, 3, n].into();
    Attachment {
        container: format!("c{n}").parse().expect("name"),
        interface: "eth0".parse().expect("name"),
        pool: "internal".parse().expect("name"),
        host_if: format!("pv{n}").parse().expect("name"),
        mac: Mac::from_ipv4(ipv4),
        ipv4: Some(ipv4),
        ipv6: None,
        default_route: None,
        network: None,
    }
}

/// The desired state of container `n`'s interface.
pub fn wanted(n: u8, isolated: bool) -> Endpoint {
    let link =
        PoolLink { index: 2, mac: Mac([2, 0, 10, 0, 3, 1]), mtu: 1500, id: 1, borrowed: false, on_parent: false };
    endpoint(&attachment(n), &pool(isolated), &link, u32::from(n))
}

/// The desired state of several containers' interfaces.
pub fn desired(numbers: &[u8], isolated: bool) -> Desired {
    let endpoints = numbers.iter().map(|n| wanted(*n, isolated)).map(|e| (e.host_if.clone(), e)).collect();
    Desired { endpoints, ..Desired::default() }
}

/// A kernel that has the links of these containers, without programs or entries.
pub fn links(numbers: &[u8], up: bool) -> Observed {
    let link = |n: u8| Link {
        index: 100 + u32::from(n),
        name: format!("pv{n}"),
        kind: Some("veth".to_owned()),
        mac: None,
        mtu: 1500,
        up,
        carrier: up,
        alias: Some(alias::of_attachment(&attachment(n))),
        other_end: None,
        other_ns: None,
        controller: up.then_some(2),
        loopback: false,
        l3s: false,
    };
    Observed {
        links: numbers.iter().map(|n| (format!("pv{n}"), link(*n))).collect(),
        hooks: Some(BTreeMap::new()),
        ..Observed::default()
    }
}

/// A kernel in which these containers are completely set up.
pub fn whole(numbers: &[u8], isolated: bool) -> Observed {
    let mut observed = links(numbers, false);
    for op in super::diff(&desired(numbers, isolated), &observed) {
        observed.apply(&op);
    }
    observed
}
