//! Named cases, then properties over random histories.

mod clients;

use super::*;
use crate::lease::record;
use crate::model::fixture::pool;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

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

fn assign(ipam: &mut Ipam, pool: &Pool, request: &Request<'_>) -> Result<Arc<Lease>, IpamError> {
    ipam.assign(pool, request).map(|(lease, _)| lease)
}

fn get(ipam: &mut Ipam, pool: &Pool, container: &str) -> Result<Arc<Lease>, IpamError> {
    assign(ipam, pool, &dynamic(&key(pool, container)))
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
        assert_eq!(ipam.reserve(vec![([10, 0, 3, 9].into(), key(&pool, "declared"))]), [None]);
        let key = key(&pool, "web");
        let result = assign(&mut ipam, &pool, &Request { key: &key, ipv4, ipv6, mac: None });
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
    assert_eq!(ipam.reserve(vec![([10, 0, 9, 2].into(), declared.clone())]), [None]);
    assert_eq!(get(&mut ipam, &pool, "a").expect("free").ipv4, v4("10.0.9.3"));
    let request = Request { key: &declared, ipv4: v4("10.0.9.2"), ipv6: None, mac: None };
    assert_eq!(assign(&mut ipam, &pool, &request).expect("its own").ipv4, v4("10.0.9.2"));
}

#[test]
fn a_changed_request_replaces_the_lease_and_a_refused_one_does_not() {
    let (mut ipam, pool) = (Ipam::new(), dual());
    let (a, b) = (key(&pool, "a"), key(&pool, "b"));
    assign(&mut ipam, &pool, &dynamic(&a)).expect("free");
    let before = assign(&mut ipam, &pool, &dynamic(&b)).expect("free");
    let clash = Request { key: &b, ipv4: v4("10.0.3.2"), ipv6: None, mac: None };
    assign(&mut ipam, &pool, &clash).expect_err("a has it");
    assert_eq!(ipam.get(&b), Some(&before));
    let fixed = Request { key: &b, ipv4: v4("10.0.3.50"), ipv6: None, mac: None };
    assert_eq!(assign(&mut ipam, &pool, &fixed).expect("free").ipv4, v4("10.0.3.50"));
    assert_eq!(ipam.leases().count(), 2);
}

#[test]
fn macs_are_one_to_a_pool() {
    let (mut ipam, pool) = (Ipam::new(), dual());
    let a = key(&pool, "a");
    let taken: Mac = "02:00:0a:00:03:03".parse().expect("mac");
    assign(&mut ipam, &pool, &Request { key: &a, ipv4: None, ipv6: None, mac: Some(taken) }).expect("free");
    // 10.0.3.3 would get the same MAC.
    assert_ne!(get(&mut ipam, &pool, "b").expect("free").mac, taken);
    let c = key(&pool, "c");
    let error =
        assign(&mut ipam, &pool, &Request { key: &c, ipv4: None, ipv6: None, mac: Some(taken) }).expect_err("taken");
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

#[test]
fn reservations_are_made_anew_and_say_who_has_it() {
    let (mut ipam, pool) = (Ipam::new(), tiny());
    let [a, b, c] = ["a", "b", "c"].map(|name| key(&pool, name));
    get(&mut ipam, &pool, "a").expect("free");
    let addr = |last| IpAddr::from([10, 0, 9, last]);
    let holders = ipam.reserve(vec![(addr(2), b.clone()), (addr(3), b.clone()), (addr(3), c.clone())]);
    assert_eq!(holders, [Some(a), None, Some(b.clone())]);
    assert_eq!(ipam.reserve(vec![(addr(3), c.clone())]), [None], "the one before is forgotten");
    assert_eq!(ipam.reserve(Vec::new()), []);
    assert_eq!(get(&mut ipam, &pool, "d").expect("free").ipv4, v4("10.0.9.3"));
}

#[derive(Clone, Debug)]
enum Step {
    Attach(u8),
    Fixed(u8, u8),
    Detach(u8),
    /// A lease of this container with this address was in use before it was known.
    Learn(u8, u8),
    /// This client gets this address.
    Lend(u8, u8),
    End(u8),
    /// The last change is undone.
    TakeBack,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..40).prop_map(Step::Attach),
        2 => (0u8..40, 0u8..=255).prop_map(|(c, a)| Step::Fixed(c, a)),
        5 => (0u8..40).prop_map(Step::Detach),
        1 => (0u8..40, 2u8..30).prop_map(|(c, a)| Step::Learn(c, a)),
        2 => (0u8..8, 2u8..30).prop_map(|(c, a)| Step::Lend(c, a)),
        1 => (0u8..8).prop_map(Step::End),
        1 => Just(Step::TakeBack),
        1 => Just(Step::Restart),
    ]
}

/// The leases, with everything that was done to them, in memory and on disk.
struct History {
    pool: Pool,
    ipam: Ipam,
    /// The lease file's bytes after each change, the newest last.
    files: Vec<Vec<u8>>,
    /// What is needed to undo each change.
    before: Vec<Before>,
}

impl History {
    fn new() -> Self {
        let pool = pool("p", Some(("10.0.9.0/27", "10.0.9.1")), Some(("fd00:9::/123", "fd00:9::1")));
        let files = vec![record::snapshot(&Ipam::new()).expect("encoded")];
        Self { pool, ipam: Ipam::new(), files, before: Vec::new() }
    }

    fn note(&mut self, before: Before, change: Option<Change>) {
        let Some(change) = change else { return };
        let file = [self.files.last().expect("one").as_slice(), &record::batch(&[change]).expect("encoded")].concat();
        self.files.push(file);
        self.before.push(before);
    }

    fn assign(&mut self, container: &str, ipv4: Option<Ipv4Addr>) -> Result<Arc<Lease>, IpamError> {
        let key = key(&self.pool, container);
        let before = self.ipam.before(&key);
        let (lease, change) = self.ipam.assign(&self.pool, &Request { key: &key, ipv4, ipv6: None, mac: None })?;
        self.note(before, change);
        Ok(lease)
    }

    fn release(&mut self, container: &str) -> Option<Arc<Lease>> {
        let key = key(&self.pool, container);
        let before = self.ipam.before(&key);
        let released = self.ipam.release(&key)?;
        self.note(before, Some(Change::Released(key)));
        Some(released)
    }

    fn learn(&mut self, container: &str, last: u8) -> Option<Arc<Lease>> {
        let ipv4 = Ipv4Addr::new(10, 0, 9, last);
        let key = key(&self.pool, container);
        let before = self.ipam.before(&key);
        let lease =
            Arc::new(Lease { key, ipv4: Some(ipv4), ipv6: None, mac: Mac::from_ipv4(ipv4), fixed: false, terms: None });
        self.ipam.learn(lease.clone()).ok()?;
        self.note(before, Some(Change::Learned(lease.clone())));
        Some(lease)
    }

    fn lend(&mut self, client: u8, last: u8) -> Result<(), LendError> {
        let lease = Arc::new(lent(&self.pool, client, [10, 0, 9, last], 60));
        let before = self.ipam.before_client(&lease.key());
        self.ipam.lend(lease.clone())?;
        self.note(before, Some(Change::Lent(lease)));
        Ok(())
    }

    fn end(&mut self, client: u8) {
        let key = lent(&self.pool, client, [10, 0, 9, 2], 60).key();
        let before = self.ipam.before_client(&key);
        let ended = self.ipam.end(&key).map(|_| Change::Ended(key));
        self.note(before, ended);
    }
}

fn lent(pool: &Pool, client: u8, address: [u8; 4], expires: u64) -> ClientLease {
    let mac = Mac([2, 0, 0, 0, 1, client]);
    let hostname = Some(format!("laptop-{client}"));
    let client = ClientId::of_mac(mac);
    let (pool, address) = (pool.name.clone(), IpAddr::from(address));
    ClientLease { pool, client, address, mac: Some(mac), hostname, port: None, expires }
}

proptest! {
    // 50 histories of 200 steps: 10,000.
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn no_history_leases_an_address_twice_or_loses_one(steps in proptest::collection::vec(step(), 200)) {
        let mut history = History::new();
        let mut model: BTreeMap<String, Arc<Lease>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Attach(c) | Step::Fixed(c, _) => {
                    let name = format!("c{c}");
                    let ipv4 = if let Step::Fixed(_, a) = step { Some(Ipv4Addr::new(10, 0, 9, a)) } else { None };
                    match history.assign(&name, ipv4) {
                        Ok(lease) => {
                            if let (Some(old), None) = (model.get(&name), ipv4) && !old.fixed && old.ipv6.is_some() {
                                prop_assert_eq!(old, &lease, "sticky");
                            }
                            model.insert(name, lease);
                        }
                        Err(IpamError::PoolFull { .. }) => {
                            let all = model.len() + history.ipam.clients().count();
                            prop_assert!(all >= 29 || model.contains_key(&name));
                        }
                        Err(_) => prop_assert!(ipv4.is_some()),
                    }
                }
                Step::Detach(c) => {
                    let name = format!("c{c}");
                    prop_assert_eq!(history.release(&name), model.remove(&name));
                }
                Step::Learn(c, last) => {
                    let name = format!("c{c}");
                    if let Some(lease) = history.learn(&name, last) {
                        model.insert(name, lease);
                    }
                }
                Step::Lend(c, last) => drop(history.lend(c, last)),
                Step::End(c) => history.end(c),
                // As after a failed write: the change is as if it had never been.
                Step::TakeBack => {
                    if let Some(before) = history.before.pop() {
                        history.ipam.take_back(before);
                        history.files.pop();
                        model = history.ipam.leases().map(|l| (l.key.container.to_string(), l.clone())).collect();
                    }
                }
                // kill -9 and start again.
                Step::Restart => {
                    let loaded = record::decode(history.files.last().expect("one")).expect("whole");
                    prop_assert_eq!(&loaded.ipam, &history.ipam);
                    history.ipam = loaded.ipam;
                }
            }
            let addresses: Vec<_> = history.ipam.leases().flat_map(|l| l.addresses()).collect();
            let distinct: std::collections::HashSet<_> = addresses.iter().collect();
            prop_assert_eq!(addresses.len(), distinct.len());
            let lent: std::collections::HashSet<_> = history.ipam.clients().map(|l| l.address).collect();
            prop_assert_eq!(history.ipam.clients().count(), lent.len());
            prop_assert_eq!(history.ipam.leases().count(), model.len());
            prop_assert!(model.values().all(|l| history.ipam.get(&l.key) == Some(l)));
        }
    }

    #[test]
    fn a_file_that_was_cut_or_damaged_has_what_was_there_at_some_time_or_is_refused(
        steps in proptest::collection::vec(step(), 20), cut in 0.0f64..1.0, flip in 0.0f64..1.0, bit in 0u8..8,
    ) {
        let mut history = History::new();
        for step in steps {
            match step {
                Step::Attach(c) => drop(history.assign(&format!("c{c}"), None)),
                Step::Detach(c) => drop(history.release(&format!("c{c}"))),
                Step::Learn(c, last) => drop(history.learn(&format!("c{c}"), last)),
                Step::Fixed(c, last) => drop(history.assign(&format!("c{c}"), Some(Ipv4Addr::new(10, 0, 9, last)))),
                Step::Lend(c, last) => drop(history.lend(c, last)),
                Step::End(c) => history.end(c),
                Step::TakeBack | Step::Restart => {}
            }
        }
        let ends: Vec<usize> = history.files.iter().map(Vec::len).collect();
        let file = history.files.last().expect("one");
        let at_end = |i: usize| record::decode(&file[..ends[i]]).expect("whole").ipam;
        // A file that is cut off keeps all complete batches, and cannot be read without its snapshot.
        let cut = (cut * file.len() as f64) as usize;
        match (ends.iter().rposition(|end| *end <= cut), record::decode(&file[..cut])) {
            (Some(last), Ok(found)) => {
                prop_assert_eq!((found.whole, found.snapshot), (ends[last], ends[0]));
                prop_assert_eq!(found.ipam, at_end(last));
            }
            (None, Err(_)) => {}
            (last, found) => prop_assert!(false, "{:?} {:?}", last, found),
        }
        // In a damaged file only the last batch may be left out silently, as if it was being written.
        let mut damaged = file.clone();
        let flip = (flip * file.len() as f64) as usize;
        damaged[flip] ^= 1 << bit;
        let is_last = ends.len() > 1 && flip >= ends[ends.len() - 2];
        match record::decode(&damaged) {
            Ok(found) => {
                prop_assert!(is_last, "byte {}", flip);
                prop_assert_eq!(found.ipam, at_end(ends.len() - 2));
            }
            Err(_) => prop_assert!(!is_last, "byte {}", flip),
        }
    }
}
