//! Packets around the messages: IPv6 with UDP, without the Ethernet header, which packet sockets keep apart.

use super::{CLIENT_PORT, SERVER_PORT};
use etherparse::{IpNumber, Ipv6Slice, PacketBuilder, UdpSlice};
use std::net::Ipv6Addr;

/// All servers and relay agents on a link (RFC 8415 section 7.1).
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Hop limit of what is sent. Nobody passes it on.
const HOPS: u8 = 64;

/// The sender and the message of an IPv6 packet from a link-local address to all servers; `None` for anything else.
/// Clients send nothing to a server's own address (RFC 8415 section 18.4). The checksum is not looked at: between links of
/// one machine it is left to a card that is none.
#[must_use]
pub fn read(packet: &[u8]) -> Option<(Ipv6Addr, &[u8])> {
    let packet = Ipv6Slice::from_slice(packet).ok()?;
    let (header, payload) = (packet.header(), packet.payload());
    let from = header.source_addr();
    if header.destination_addr() != SERVERS || !from.is_unicast_link_local() {
        return None;
    }
    if payload.fragmented || payload.ip_number != IpNumber::UDP {
        return None;
    }
    let udp = UdpSlice::from_slice(payload.payload).ok()?;
    (udp.destination_port() == SERVER_PORT).then(|| (from, udp.payload()))
}

/// An IPv6 packet with `message` from a server to a client. `None` when the message is longer than a packet.
#[must_use]
pub fn write(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
    let packet = PacketBuilder::ipv6(from.octets(), to.octets(), HOPS).udp(SERVER_PORT, CLIENT_PORT);
    let mut bytes = Vec::with_capacity(packet.size(message.len()));
    packet.write(&mut bytes, message).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_in_its_packet() {
        let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
        let mut packet = write(from, SERVERS, b"message").expect("short");
        assert_eq!(read(&packet), None, "it is to a client");
        packet[42..44].copy_from_slice(&SERVER_PORT.to_be_bytes());
        assert_eq!(read(&packet), Some((from, &b"message"[..])));
        for len in 0..packet.len() {
            assert_eq!(read(&packet[..len]), None, "{len} octets of it");
        }
        let other = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
        for (at, octets) in [(8, other.octets()), (24, from.octets())] {
            let mut packet = packet.clone();
            packet[at..at + 16].copy_from_slice(&octets);
            assert_eq!(read(&packet), None, "from or to an address that is not right");
        }
        assert_eq!(write(from, SERVERS, &[0; 70_000]), None);
    }
}
