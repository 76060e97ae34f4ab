//! How messages are read.

use super::*;

/// A message of a client on the wire, with these options.
fn wire(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..8].copy_from_slice(&[1, 1, 6, 0, 0, 0, 0, 7]);
    bytes[28..34].copy_from_slice(&mac(1).0);
    [&bytes, &[99, 130, 83, 99][..], options].concat()
}

#[test]
fn messages_are_read() {
    let query = read(&wire(&[53, 1, 1, 50, 4, 10, 0, 3, 9, 12, 3, b'B', b'o', b'x', 55, 2, 1, 3, 61, 3, 0, 1, 2, 255]))
        .expect("a query");
    assert_eq!((query.kind, query.xid, query.mac), (Kind::Discover, 7, mac(1)));
    assert_eq!((query.requested, query.hostname.as_deref()), (Some(address(9)), Some("box")));
    assert_eq!((query.wants, query.client), (Some(vec![1, 3]), ClientId::new(&[0, 1, 2])));
    // Options where names of files usually stand.
    let mut overloaded = wire(&[53, 1, 3, 52, 1, 3, 255]);
    overloaded[108..114].copy_from_slice(&[50, 4, 10, 0, 3, 9]);
    overloaded[44..50].copy_from_slice(&[54, 4, 10, 0, 3, 1]);
    let query = read(&overloaded).expect("a query");
    assert_eq!((query.kind, query.requested, query.server), (Kind::Request, Some(address(9)), Some(SERVER)));
    let change = |at: usize, octet: u8| {
        let mut bytes = wire(&[53, 1, 1, 255]);
        bytes[at] = octet;
        bytes
    };
    for (what, bytes, why) in [
        ("short", wire(&[53, 1, 1, 255])[..200].to_vec(), Unread::Malformed),
        ("BOOTP", wire(&[])[..236].to_vec(), Unread::Bootp),
        ("BOOTP with options", wire(&[1, 4, 255, 255, 255, 0, 255]), Unread::Bootp),
        ("an answer", change(0, 2), Unread::Other),
        ("no operation", change(0, 9), Unread::Other),
        ("no Ethernet", change(1, 6), Unread::Malformed),
        ("a long address", change(2, 255), Unread::Malformed),
        ("a group's address", change(28, 1), Unread::Malformed),
        ("by a relay", change(27, 9), Unread::Relayed),
        ("an offer of a client", wire(&[53, 1, 2, 255]), Unread::Other),
        ("a leasequery", wire(&[53, 1, 10, 255]), Unread::Other),
        ("a long type", wire(&[53, 2, 1, 1, 255]), Unread::Malformed),
        ("a short address", wire(&[53, 1, 1, 50, 3, 10, 0, 3, 255]), Unread::Malformed),
        ("a short identifier", wire(&[53, 1, 1, 61, 1, 0, 255]), Unread::Malformed),
    ] {
        assert_eq!(read(&bytes), Err(why), "{what}");
    }
    for len in 0..overloaded.len() {
        let _ = read(&overloaded[..len]);
    }
}
