//! Golden plans, and what holds for every plan.

use super::*;
use crate::model::{Attachment, HostAccess, Mac, Pool, PoolKind, Subnet4};
use proptest::prelude::*;
use pv_net_common::Ip;
use std::collections::BTreeMap;

fn pool(isolated: bool) -> Pool {
    Pool {
        name: "internal".parse().expect("name"),
        kind: PoolKind::Bridge { bridge: "pvbr0".parse().expect("name") },
        v4: Some(Subnet4 { net: "10.0.3.0/24".parse().expect("net"), gateway: [10, 0, 3, 1].into(), dhcp_range: None }),
        v6: None,
        nat: false,
        mtu: None,
        big_tcp: true,
        isolated,
        host_access: HostAccess::Services,
        max_flows: 2048,
    }
}

fn wanted(n: u8, isolated: bool) -> Endpoint {
    let ipv4 = [10, 0, 3, n].into();
    let attachment = Attachment {
        container: format!("c{n}").parse().expect("name"),
        interface: "eth0".parse().expect("name"),
        pool: "internal".parse().expect("name"),
        host_if: format!("pv{n}").parse().expect("name"),
        mac: Mac::from_ipv4(ipv4),
        ipv4: Some(ipv4),
        ipv6: None,
        default_route: true,
    };
    let link = PoolLink { index: 2, mac: Mac([2, 0, 10, 0, 3, 1]), mtu: 1500, id: 1, borrowed: false };
    endpoint(&attachment, &pool(isolated), &link, u32::from(n))
}

fn desired(numbers: &[u8], isolated: bool) -> Desired {
    numbers.iter().map(|n| wanted(*n, isolated)).map(|e| (e.host_if.clone(), e)).collect()
}

/// The kernel after `ops`.
fn apply(mut observed: Observed, ops: &[Op]) -> Observed {
    for op in ops {
        match op.clone() {
            Op::SetInterface { index, info, .. } => drop(observed.interfaces.insert(index, *info)),
            Op::AttachProgram { host_if } => drop(observed.hooks.insert(host_if.to_string())),
            Op::Enslave { host_if, bridge, .. } => {
                observed.links.get_mut(&host_if).expect("there").controller = Some(bridge);
            }
            Op::SetUp { host_if, .. } => observed.links.get_mut(&host_if).expect("there").up = true,
            Op::SetEndpoint { addr, info } => drop(observed.endpoints.insert(addr, info)),
            Op::RemoveEndpoint { addr } => drop(observed.endpoints.remove(&addr)),
            Op::RemoveInterface { index } => drop(observed.interfaces.remove(&index)),
            Op::DetachProgram { host_if } => drop(observed.hooks.remove(&host_if)),
        }
    }
    observed
}

fn links(numbers: &[u8], up: bool) -> Observed {
    let link = |n: u8| ObservedLink { index: 100 + u32::from(n), up, controller: up.then_some(2) };
    let links = numbers.iter().map(|n| (format!("pv{n}").parse().expect("name"), link(*n))).collect();
    Observed { links, ..Observed::default() }
}

fn text(ops: &[Op]) -> String {
    ops.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_guard_is_there_before_the_link_is_up() {
    let plan = text(&diff(&desired(&[7], true), &links(&[7], false)));
    let want = "interface 107 (pv7) guarded\nprogram on pv7\npv7 port of bridge 2\npv7 up\nendpoint 10.0.3.7 at 107\n\
                endpoint fe80::1:0:aff:fe00:307 at 107";
    assert_eq!(plan, want);
}

#[test]
fn what_is_gone_is_removed_last() {
    let full = apply(links(&[7, 8], true), &diff(&desired(&[7, 8], true), &links(&[7, 8], true)));
    let mut now = full;
    now.links.remove(&"pv8".parse().expect("name"));
    let plan = text(&diff(&desired(&[7, 8], true), &now));
    assert_eq!(
        plan,
        "endpoint 10.0.3.8 removed\nendpoint fe80::1:0:aff:fe00:308 removed\n\
         interface 108 removed\nno program on pv8"
    );
}

#[test]
fn a_pool_that_opens_changes_entries_only() {
    let closed = apply(links(&[7], true), &diff(&desired(&[7], true), &links(&[7], true)));
    let plan = text(&diff(&desired(&[7], false), &closed));
    assert_eq!(plan, "interface 107 (pv7) guarded\nendpoint 10.0.3.7 at 107\nendpoint fe80::1:0:aff:fe00:307 at 107");
}

proptest! {
    /// Any state leads to any other, and there is nothing to do after.
    #[test]
    fn every_transition_lands(
        before in proptest::collection::btree_set(2u8..20, 0..8),
        after in proptest::collection::btree_set(2u8..20, 0..8),
        there in proptest::collection::btree_set(2u8..20, 0..18),
        open: bool,
    ) {
        let (before, after, there): (Vec<_>, Vec<_>, Vec<_>) =
            (before.into_iter().collect(), after.into_iter().collect(), there.into_iter().collect());
        let start = apply(links(&before, true), &diff(&desired(&before, true), &links(&before, true)));
        let observed = Observed { links: links(&there, false).links, ..start };
        let want = desired(&after, !open);
        let end = apply(observed.clone(), &diff(&want, &observed));
        prop_assert_eq!(diff(&want, &end), vec![]);
        let both: BTreeMap<Ip, ()> = after.iter().filter(|n| there.contains(n)).map(|n| (Ip::from(std::net::Ipv4Addr::new(10, 0, 3, *n)), ())).collect();
        prop_assert!(end.endpoints.keys().filter(|a| a.is_v4()).eq(both.keys()));
        prop_assert!(end.endpoints.len() == 2 * both.len());
        prop_assert!(end.hooks.len() == both.len() && end.interfaces.len() == both.len());
    }
}
