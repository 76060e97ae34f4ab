//! Leases of clients beside those of containers.

use super::*;

#[test]
fn a_client_and_a_container_never_share_an_address() {
    let (pool, mut ipam) = (tiny(), Ipam::new());
    let web = get(&mut ipam, &pool, "web").expect("free");
    let own = web.ipv4.expect("IPv4");
    let lease =
        |client, last: u8| Arc::new(lent(&pool, client, [own.octets()[0], own.octets()[1], own.octets()[2], last], 60));
    let refused = ipam.lend(lease(1, own.octets()[3])).expect_err("a container has it");
    assert!(matches!(refused, LendError::Container { holder, .. } if holder == web.key));
    let next = own.octets()[3] + 1;
    ipam.lend(lease(1, next)).expect("free");
    let refused = ipam.lend(lease(2, next)).expect_err("a client has it");
    assert!(matches!(refused, LendError::Client { holder, .. } if holder == lease(1, next).key()));
    // A lease that is over still holds its address for the same client, until it is ended for somebody else.
    assert!(lease(1, next).is_over(60) && !lease(1, next).is_over(59));
    // One that was given while the clock was far ahead ends when the time is known, and not before.
    let (early, known) = (1_000, 1_800_000_000);
    let ahead = ClientLease { expires: known + 70 * 366 * 86_400, ..ClientLease::clone(&lease(1, next)) };
    assert!(ahead.is_over(known) && !ahead.is_over(early));
    let year = ClientLease { expires: known + 365 * 86_400, ..ahead };
    assert!(!year.is_over(known) && !year.is_over(early));
    let db = key(&pool, "db");
    let fixed =
        Request { ipv4: Some(Ipv4Addr::new(own.octets()[0], own.octets()[1], own.octets()[2], next)), ..dynamic(&db) };
    assert!(matches!(assign(&mut ipam, &pool, &fixed), Err(IpamError::Lent { .. })));
    for container in (0..).map(|n| format!("c{n}")) {
        let Ok(lease) = get(&mut ipam, &pool, &container) else { break };
        assert_ne!(lease.ipv4.map(|a| a.octets()[3]), Some(next));
    }
    ipam.end(&lease(1, next).key()).expect("there");
    assert_eq!(assign(&mut ipam, &pool, &fixed).expect("free").ipv4, fixed.ipv4);
    // A client that has the address when a declared container reserves it keeps the lease, but cannot renew it.
    ipam.release(&db).expect("there");
    ipam.lend(lease(1, next)).expect("free");
    let wanted = vec![(IpAddr::V4(fixed.ipv4.expect("one")), db)];
    ipam.reserve(wanted);
    let anew = record::decode(&record::snapshot(&ipam).expect("encoded")).expect("decoded").ipam;
    assert_eq!(anew.clients().collect::<Vec<_>>(), [&lease(1, next)]);
    assert!(ipam.lend(lease(1, next)).is_err(), "it is not renewed");
}

#[test]
fn a_client_identifier_is_the_same_in_both_families() {
    let duid = [0, 4, 1, 2, 3, 4];
    let id = ClientId::of_association(7, &duid).expect("short");
    assert_eq!(id, ClientId::new(&[255, 0, 0, 0, 7, 0, 4, 1, 2, 3, 4]).expect("as in option 61"));
    assert_eq!(id.to_string().parse(), Ok(id.clone()));
    let json = serde_json::to_string(&id).expect("encoded");
    assert_eq!(serde_json::from_str::<ClientId>(&json).expect("decoded"), id);
    assert_eq!(ClientId::of_mac(Mac([2, 0, 0, 0, 0, 9])).to_string(), "01020000000009");
    for bad in ["", "0", "01", "012", "0x01", "zz01", "+1+1", &"00".repeat(256)] {
        assert!(bad.parse::<ClientId>().is_err(), "{bad}");
    }
    assert!(ClientId::new(&[0; 255]).is_some() && ClientId::new(&[0; 256]).is_none() && ClientId::new(&[1]).is_none());
}
