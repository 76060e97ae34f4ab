//! DHCP messages (RFC 2131), with the fields that clients read.

use std::net::Ipv4Addr;

/// Port of servers.
pub const SERVER: u16 = 67;
/// Port of clients.
pub const CLIENT: u16 = 68;
/// Port of DHCPv6 servers (RFC 8415).
pub const SERVER6: u16 = 547;
/// Port of DHCPv6 clients.
pub const CLIENT6: u16 = 546;

/// Kinds of messages (RFC 2132 section 9.6).
pub const DISCOVER: u8 = 1;
/// A server's answer to a discover.
pub const OFFER: u8 = 2;
/// A server's answer to a request.
pub const ACK: u8 = 5;

/// A client's message, with `mark` behind its options.
#[must_use]
pub fn request(kind: u8, client: [u8; 6], mark: &[u8]) -> Vec<u8> {
    message(1, kind, client, Ipv4Addr::UNSPECIFIED, &[], mark)
}

/// A server's message: the client's address, the server's, and a lease of an hour.
#[must_use]
pub fn answer(kind: u8, client: [u8; 6], id: [u8; 4], yours: Ipv4Addr, server: Ipv4Addr, mark: &[u8]) -> Vec<u8> {
    let lease = [&[54, 4][..], &server.octets(), &[51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0]].concat();
    let mut all = message(2, kind, client, yours, &lease, mark);
    all[4..8].copy_from_slice(&id);
    all
}

fn message(op: u8, kind: u8, client: [u8; 6], yours: Ipv4Addr, options: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut all = vec![0u8; 236];
    all[..8].copy_from_slice(&[op, 1, 6, 0, b'p', b'v', b'n', b't']);
    all[16..20].copy_from_slice(&yours.octets());
    all[28..34].copy_from_slice(&client);
    [&all[..], &[0x63, 0x82, 0x53, 0x63, 53, 1, kind], options, &[255], mark].concat()
}
