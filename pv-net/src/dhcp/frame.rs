//! Packets around the messages: IPv4 with UDP, and ARP. Without the Ethernet header, that packet sockets keep apart.

use super::message::{CLIENT_PORT, SERVER_PORT};
use crate::model::Mac;
use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, IpNumber, Ipv4Slice, PacketBuilder, UdpSlice};
use std::net::Ipv4Addr;

/// TTL of what is sent. Nobody passes it on.
const HOPS: u8 = 64;

/// The message in an IPv4 packet to a server's port, at the address `server` or at all hosts of the link; `None` for
/// anything else: what is to another server beyond this link is not for this one. The checksum of UDP is not looked at:
/// between links of one machine it is left to a card that is none.
#[must_use]
pub fn read(packet: &[u8], server: Ipv4Addr) -> Option<&[u8]> {
    let packet = Ipv4Slice::from_slice(packet).ok()?;
    let (to, payload) = (packet.header().destination_addr(), packet.payload());
    if to != server && !to.is_broadcast() {
        return None;
    }
    if payload.fragmented || payload.ip_number != IpNumber::UDP {
        return None;
    }
    let udp = UdpSlice::from_slice(payload.payload).ok()?;
    (udp.destination_port() == SERVER_PORT).then(|| udp.payload())
}

/// An IPv4 packet with `message` from a server to a client. `None` when the message is longer than a packet.
#[must_use]
pub fn write(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Option<Vec<u8>> {
    let packet = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS).udp(SERVER_PORT, CLIENT_PORT);
    let mut bytes = Vec::with_capacity(packet.size(message.len()));
    packet.write(&mut bytes, message).ok()?;
    Some(bytes)
}

/// An ARP probe for `address` (RFC 5227 section 2.1.1): who asks has no address, so that nobody notes one.
#[must_use]
pub fn probe(from: Mac, address: Ipv4Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: from.0,
        sender_ipv4: Ipv4Addr::UNSPECIFIED.octets(),
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    packet.to_bytes().to_vec()
}

/// The address that an ARP packet answers for. Who answers is what its frame says, which the bridge has learned the
/// port of; the MAC in the packet can be anybody's.
#[must_use]
pub fn answer(packet: &[u8]) -> Option<Ipv4Addr> {
    let packet = ArpPacketSlice::from_slice(packet).ok()?.to_packet().try_eth_ipv4().ok()?;
    (packet.operation == ArpOperation::REPLY).then(|| packet.sender_ipv4.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_in_its_packet() {
        let (client, server) = (Ipv4Addr::new(10, 0, 3, 100), Ipv4Addr::new(10, 0, 3, 1));
        let packet = write(client, server, b"message").expect("short");
        assert_eq!(read(&packet, server), None, "it is to a client's port");
        let mut back = packet;
        back[20..24].rotate_left(2);
        assert_eq!(read(&back, server), Some(&b"message"[..]));
        for len in 0..back.len() {
            assert_eq!(read(&back[..len], server), None, "{len} octets of it");
        }
        for (to, is_read) in [([255; 4], true), ([192, 0, 2, 1], false), ([10, 0, 3, 255], false)] {
            let mut other = back.clone();
            other[16..20].copy_from_slice(&to);
            assert_eq!(read(&other, server).is_some(), is_read, "to {to:?}");
        }
        back[6] = 0x20;
        assert_eq!(read(&back, server), None, "a fragment");
        assert_eq!(write([10, 0, 3, 1].into(), [10, 0, 3, 100].into(), &[0; 70_000]), None);
    }

    #[test]
    fn a_probe_and_who_answers() {
        let (own, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let probe = probe(own, [10, 0, 3, 100].into());
        assert_eq!(probe.len(), 28);
        assert_eq!(answer(&probe), None, "it asks");
        let answers = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &other.0, &[10, 0, 3, 100], &own.0, &[0; 4]].concat();
        assert_eq!(answer(&answers), Some([10, 0, 3, 100].into()));
        assert_eq!(answer(&answers[..27]), None);
    }
}
