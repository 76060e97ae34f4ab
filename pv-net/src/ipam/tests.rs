//! Named cases, then properties over random histories.

use super::*;
use crate::model::{HostAccess, PoolKind, Subnet4, Subnet6};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn pool(name: &str, v4: Option<(&str, &str)>, v6: Option<(&str, &str)>) -> Pool {
    Pool {
        name: name.parse().expect("name"),
        kind: PoolKind::Bridge { bridge: "br0".parse().expect("name") },
        v4: v4.map(|(net, gw)| Subnet4 {
            net: net.parse().expect("net"),
            gateway: gw.parse().expect("ip"),
            dhcp_range: None,
        }),
        v6: v6.map(|(net, gw)| Subnet6 { net: net.parse().expect("net"), gateway: gw.parse().expect("ip") }),
        nat: false,
        mtu: None,
        big_tcp: true,
        isolated: true,
        host_access: HostAccess::Services,
        max_flows: 2048,
    }
}

fn dual() -> Pool {
    pool("internal", Some(("10.0.3.0/24", "10.0.3.1")), Some(("fd00:5056::/64", "fd00:5056::1")))
}

fn tiny() -> Pool {
    pool("tiny", Some(("10.0.9.0/29", "10.0.9.1")), None)
}

fn key(pool: &Pool, container: &str) -> LeaseKey {
    LeaseKey {
        pool: pool.name.clone(),
        container: container.parse().expect("name"),
        interface: "eth0".parse().expect("name"),
    }
}

fn dynamic(key: &LeaseKey) -> Request<'_> {
    Request { key, ipv4: None, ipv6: None, mac: None }
}

fn get(ipam: &mut Ipam, pool: &Pool, container: &str) -> Result<Lease, IpamError> {
    ipam.assign(pool, &dynamic(&key(pool, container)))
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}

#[test]
fn addresses_go_up_from_the_gateway_and_come_in_pairs() {
    let (mut ipam, pool) = (Ipam::new(), dual());
    let first = get(&mut ipam, &pool, "a").expect("free");
    assert_eq!((first.ipv4, first.ipv6), (v4("10.0.3.2"), "fd00:5056::2".parse().ok()));
    assert_eq!(first.mac.to_string(), "02:00:0a:00:03:02");
    assert_eq!(get(&mut ipam, &pool, "b").expect("free").ipv4, v4("10.0.3.3"));
    assert_eq!(get(&mut ipam, &pool, "a").expect("sticky"), first);
}

#[test]
fn the_circle_wraps_below_the_gateway() {
    let pool = pool("p", Some(("10.0.9.0/29", "10.0.9.5")), None);
    let mut ipam = Ipam::new();
    let order: Vec<_> = (0..5).map(|i| get(&mut ipam, &pool, &format!("c{i}")).expect("free").ipv4).collect();
    let want = ["10.0.9.6", "10.0.9.1", "10.0.9.2", "10.0.9.3", "10.0.9.4"].map(v4);
    assert_eq!(order, want);
    let full = get(&mut ipam, &pool, "late").expect_err("full").to_string();
    assert!(full.contains("pool p") && full.contains('5'), "{full}");
}

#[test]
fn what_was_released_last_is_handed_out_last() {
    let (mut ipam, pool) = (Ipam::new(), tiny());
    for name in ["a", "b", "c", "d", "e"] {
        get(&mut ipam, &pool, name).expect("free");
    }
    for name in ["d", "b", "c"] {
        ipam.release(&key(&pool, name)).expect("leased");
    }
    let order: Vec<_> = ["x", "y", "z"].map(|n| get(&mut ipam, &pool, n).expect("free").ipv4).to_vec();
    assert_eq!(order, ["10.0.9.5", "10.0.9.3", "10.0.9.4"].map(v4));
}

#[test]
fn a_fresh_address_comes_before_a_released_one() {
    let (mut ipam, pool) = (Ipam::new(), tiny());
    get(&mut ipam, &pool, "a").expect("free");
    ipam.release(&key(&pool, "a"));
    assert_eq!(get(&mut ipam, &pool, "b").expect("free").ipv4, v4("10.0.9.3"));
}

#[test]
fn fixed_addresses() {
    let pool = dual();
    for (name, ipv4, ipv6, want) in [
        ("the gateway", v4("10.0.3.1"), None, Some("the gateway")),
        ("the network", v4("10.0.3.0"), None, Some("network address")),
        ("the broadcast", v4("10.0.3.255"), None, Some("broadcast")),
        ("another network", v4("10.0.4.7"), None, Some("outside 10.0.3.0/24")),
        ("anycast", None, "fd00:5056::".parse().ok(), Some("anycast")),
        ("another v6 network", None, "fd00:5057::9".parse().ok(), Some("outside fd00:5056::/64")),
        ("taken", v4("10.0.3.2"), None, Some("taken by first@eth0")),
        ("reserved", v4("10.0.3.9"), None, Some("taken by declared@eth0")),
        ("free", v4("10.0.3.77"), "fd00:5056::99".parse().ok(), None),
    ] {
        let mut ipam = Ipam::new();
        get(&mut ipam, &pool, "first").expect("free");
        ipam.reserve([10, 0, 3, 9].into(), &key(&pool, "declared")).expect("free");
        let key = key(&pool, "web");
        let result = ipam.assign(&pool, &Request { key: &key, ipv4, ipv6, mac: None });
        match (want, result) {
            (Some(want), Err(e)) => assert!(e.to_string().contains(want), "{name}: {e}"),
            (None, Ok(lease)) => assert_eq!((lease.ipv4, lease.ipv6), (ipv4, ipv6), "{name}"),
            (want, got) => panic!("{name}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_reserved_address_is_not_handed_out_but_to_its_holder() {
    let (mut ipam, pool) = (Ipam::new(), tiny());
    let declared = key(&pool, "declared");
    ipam.reserve([10, 0, 9, 2].into(), &declared).expect("free");
    assert_eq!(get(&mut ipam, &pool, "a").expect("free").ipv4, v4("10.0.9.3"));
    let request = Request { key: &declared, ipv4: v4("10.0.9.2"), ipv6: None, mac: None };
    assert_eq!(ipam.assign(&pool, &request).expect("its own").ipv4, v4("10.0.9.2"));
}

#[test]
fn a_changed_request_replaces_the_lease_and_a_refused_one_does_not() {
    let (mut ipam, pool) = (Ipam::new(), dual());
    let (a, b) = (key(&pool, "a"), key(&pool, "b"));
    ipam.assign(&pool, &dynamic(&a)).expect("free");
    let before = ipam.assign(&pool, &dynamic(&b)).expect("free");
    let clash = Request { key: &b, ipv4: v4("10.0.3.2"), ipv6: None, mac: None };
    ipam.assign(&pool, &clash).expect_err("a has it");
    assert_eq!(ipam.get(&b), Some(&before));
    let fixed = Request { key: &b, ipv4: v4("10.0.3.50"), ipv6: None, mac: None };
    assert_eq!(ipam.assign(&pool, &fixed).expect("free").ipv4, v4("10.0.3.50"));
    assert_eq!(ipam.leases().count(), 2);
}

#[test]
fn macs_are_one_to_a_pool() {
    let (mut ipam, pool) = (Ipam::new(), dual());
    let a = key(&pool, "a");
    let taken: Mac = "02:00:0a:00:03:03".parse().expect("mac");
    ipam.assign(&pool, &Request { key: &a, ipv4: None, ipv6: None, mac: Some(taken) }).expect("free");
    // 10.0.3.3 would give the same MAC.
    assert_ne!(get(&mut ipam, &pool, "b").expect("free").mac, taken);
    let c = key(&pool, "c");
    let error = ipam.assign(&pool, &Request { key: &c, ipv4: None, ipv6: None, mac: Some(taken) }).expect_err("taken");
    assert!(error.to_string().contains("taken by a@eth0"), "{error}");
}

#[test]
fn the_dhcp_range_is_left_out() {
    let mut pool = tiny();
    pool.v4.as_mut().expect("v4").dhcp_range = Some(([10, 0, 9, 3].into(), [10, 0, 9, 5].into()));
    let mut ipam = Ipam::new();
    assert_eq!(get(&mut ipam, &pool, "a").expect("free").ipv4, v4("10.0.9.2"));
    assert_eq!(get(&mut ipam, &pool, "b").expect("free").ipv4, v4("10.0.9.6"));
    assert!(matches!(get(&mut ipam, &pool, "c"), Err(IpamError::PoolFull { size: 2, .. })));
}

#[test]
fn ipv6_alone_and_huge_pools() {
    let six = pool("six", None, Some(("fd00:9::/64", "fd00:9::1")));
    let mut ipam = Ipam::new();
    let lease = get(&mut ipam, &six, "a").expect("free");
    assert_eq!((lease.ipv4, lease.ipv6), (None, "fd00:9::2".parse::<Ipv6Addr>().ok()));
    let mut wide = pool("wide", Some(("10.0.0.0/8", "10.255.255.254")), None);
    wide.v4.as_mut().expect("v4").dhcp_range = Some(([10, 0, 0, 1].into(), [10, 255, 0, 0].into()));
    let start = std::time::Instant::now();
    for i in 0..2_000 {
        get(&mut ipam, &wide, &format!("c{i}")).expect("free");
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn a_pool_that_moved_gives_new_addresses() {
    let (mut ipam, old) = (Ipam::new(), tiny());
    get(&mut ipam, &old, "a").expect("free");
    let moved = pool("tiny", Some(("10.0.77.0/29", "10.0.77.1")), None);
    let lease = get(&mut ipam, &moved, "a").expect("free");
    assert!(lease.ipv4.is_some_and(|a| a.octets()[2] == 77), "{lease:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Attach(u8),
    Fixed(u8, u8),
    Detach(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..40).prop_map(Step::Attach),
        2 => (0u8..40, 0u8..=255).prop_map(|(c, a)| Step::Fixed(c, a)),
        5 => (0u8..40).prop_map(Step::Detach),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    // 50 histories of 200 steps: 10,000.
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn no_history_leases_an_address_twice_or_loses_one(steps in proptest::collection::vec(step(), 200)) {
        let pool = pool("p", Some(("10.0.9.0/27", "10.0.9.1")), Some(("fd00:9::/123", "fd00:9::1")));
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = store::State::default();
        let mut model: BTreeMap<String, Lease> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Attach(c) | Step::Fixed(c, _) => {
                    let name = format!("c{c}");
                    let key = key(&pool, &name);
                    let ipv4 = if let Step::Fixed(_, a) = step { Some(Ipv4Addr::new(10, 0, 9, a)) } else { None };
                    match state.ipam.assign(&pool, &Request { key: &key, ipv4, ipv6: None, mac: None }) {
                        Ok(lease) => {
                            if let (Some(old), None) = (model.get(&name), ipv4) && !old.fixed {
                                prop_assert_eq!(old, &lease, "sticky");
                            }
                            model.insert(name, lease);
                        }
                        Err(IpamError::PoolFull { .. }) => prop_assert!(model.len() >= 29 || model.contains_key(&name)),
                        Err(_) => prop_assert!(ipv4.is_some()),
                    }
                }
                Step::Detach(c) => {
                    let name = format!("c{c}");
                    prop_assert_eq!(state.ipam.release(&key(&pool, &name)), model.remove(&name));
                }
                // kill -9 and start again.
                Step::Restart => {
                    store::save(dir.path(), &state).expect("saved");
                    let (loaded, conditions) = store::load(dir.path()).expect("loaded");
                    prop_assert!(conditions.is_empty());
                    prop_assert_eq!(&loaded, &state);
                    state = loaded;
                }
            }
            let addresses: Vec<_> = state.ipam.leases().flat_map(Lease::addresses).collect();
            let distinct: std::collections::HashSet<_> = addresses.iter().collect();
            prop_assert_eq!(addresses.len(), distinct.len());
            prop_assert_eq!(state.ipam.leases().count(), model.len());
            prop_assert!(model.values().all(|l| state.ipam.get(&l.key) == Some(l)));
        }
    }
}
