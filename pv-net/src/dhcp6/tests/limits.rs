//! What a client may have, and what it cannot take from others.

use super::*;

/// One MAC has some addresses, by whatever way it asks, and so have all MACs behind one port. Whatever else a message says
/// of its client makes no difference.
#[test]
fn nobody_takes_the_range_alone() {
    let mut lab = Lab::new("fd00::100", "fd00::11f");
    let range: Vec<Ipv6Addr> = (0x100..0x110).map(|n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)).collect();
    lab.settings.leases_per_port = 16;
    for (n, wanted) in (1..).zip(&range) {
        let _ = lab.ask(&ask(MessageType::Rebind, &CLIENT, n, &[*wanted]));
        let _ = lab.ask(&named(ask(MessageType::Request, &CLIENT, n + 100, &[])));
        let _ = lab.ask(&named(ask(MessageType::Request, &[&CLIENT[..9], &[n as u8]].concat(), n, &[])));
    }
    assert_eq!(lab.leased().len(), 8);
    for n in 0..50 {
        lab.from = at(100 + n, 1);
        let _ = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1000 + u32::from(n), &[])));
        lab.pass(2);
    }
    assert_eq!(lab.leased().len(), 16, "what one port may have");
    lab.from = at(200, 2);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &OTHER, 1, &[]))).expect("answered");
    assert_eq!(said(&reply).1.len(), 1, "others have the rest");
    // Leases that are over count for nobody.
    lab.pass(3600);
    lab.from = at(99, 1);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 2000, &[]))).expect("answered");
    assert_eq!(said(&reply).1.len(), 1);
}

/// Other messages come while a lease is being written: none of them is given its address, and its client is not answered.
#[test]
fn what_is_being_written_is_nobody_elses() {
    let lab = Lab::new("fd00::10", "fd00::11");
    let server = Server {
        duid: &DUID,
        pool: &lab.pool,
        net: "fd00::/64".parse().expect("a network"),
        settings: &lab.settings,
        dns: None,
        domain: "pv.local",
        container: None,
    };
    let (mut table, now) = (Table::default(), Now { unix: lab.unix, at: lab.now });
    let request = |table: &mut Table, from, duid: &[u8], wanted: &[Ipv6Addr]| {
        answer(&server, &named(ask(MessageType::Request, duid, 1, wanted)), from, table, now)
    };
    let (a, b) = (at(1, 1), at(2, 1));
    let first = request(&mut table, a, &CLIENT, &[]).expect("answered");
    let address = said(&first.reply).1[0].0;
    table.begin(&first.steps, a, now);
    assert!(matches!(request(&mut table, a, &CLIENT, &[]), Err(Ignored)));
    let second = request(&mut table, b, &OTHER, &[address]).expect("answered");
    assert_ne!(said(&second.reply).1[0].0, address);
    table.begin(&second.steps, b, now);
    // The disk does not take the first one, and it is as if there had been none.
    table.undo(&first.steps);
    let again = request(&mut table, a, &CLIENT, &[]).expect("answered");
    assert_eq!(said(&again.reply).1[0].0, address);
    table.begin(&again.steps, a, now);
    table.done(&again.steps, 1);
    table.done(&second.steps, 1);
    assert_eq!(said(&request(&mut table, b, &OTHER, &[address]).expect("answered").reply).1.len(), 1);
}

/// So many clients are remembered, and one that names an address is no exception.
#[test]
fn a_named_address_is_one_more_to_remember() {
    let mut lab = Lab::new("fd00::1:0", "fd00::9:ffff");
    for n in 0..=u16::MAX {
        let [high, low] = n.to_be_bytes();
        let lease = ClientLease {
            pool: lab.pool.clone(),
            client: ClientId::of_association(1, &[0, 4, high, low, 1]).expect("short"),
            address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n).into(),
            mac: None,
            hostname: None,
            expires: u64::from(n) + 1,
        };
        lab.ipam.lend(Arc::new(lease)).expect("it is free");
    }
    let free = ip("fd00::9:1");
    let (reply, _) = lab.ask(&ask(MessageType::Rebind, &CLIENT, 1, &[free])).expect("answered");
    assert_eq!((said(&reply).2, lab.leased().len()), (vec![Status::NoBinding], 65_536));
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &CLIENT, 1, &[free]))).expect("answered");
    assert_eq!(
        (said(&reply).1[0].0, lab.leased().len()),
        (ip("fd00::1:0"), 65_536),
        "that of the one that is over longest"
    );
}

/// A DUID is no secret: it ends the lease of no other MAC, and a copy of a machine gets an address of its own.
#[test]
fn who_knows_a_duid_is_not_its_owner() {
    let mut lab = Lab::new("fd00::100", "fd00::10f");
    lab.from = at(1, 1);
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &DUID, 1, &[]))).expect("answered");
    let own = said(&reply).1[0].0;
    lab.from = at(2, 1);
    for kind in [MessageType::Release, MessageType::Decline] {
        let (reply, _) = lab.ask(&named(ask(kind, &DUID, 1, &[own]))).expect("answered");
        assert_eq!(said(&reply).2, [Status::Success, Status::NoBinding]);
    }
    let (reply, _) = lab.ask(&named(ask(MessageType::Request, &DUID, 1, &[own]))).expect("answered");
    assert_ne!(said(&reply).1[0].0, own);
    // Nor does a container end it.
    (lab.from, lab.container) = (at(1, 1), Some(None));
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &DUID, 1, &[own]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::Success, Status::NoBinding]);
    lab.container = None;
    assert_eq!(lab.leased().len(), 2);
    let (reply, _) = lab.ask(&named(ask(MessageType::Release, &DUID, 1, &[own]))).expect("answered");
    assert_eq!(said(&reply).2, [Status::Success]);
    assert_eq!(lab.leased().len(), 1);
}
