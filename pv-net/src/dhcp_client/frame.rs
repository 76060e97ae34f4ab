//! Frames of Ethernet with what a client sends and hears: DHCPv4, ARP, router and neighbour discovery.

use crate::dhcp::frame::probe;
use crate::dhcp::message::{CLIENT_PORT, SERVER_PORT};
use crate::model::Mac;
use etherparse::{
    ArpPacketSlice, EtherType, Ethernet2Slice, Icmpv6Slice, IpNumber, Ipv4Slice, Ipv6Slice, PacketBuilder, UdpSlice,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A frame to all on the link.
pub(super) const EVERYBODY: Mac = Mac([0xff; 6]);
/// All hosts and all routers on a link (RFC 4291 section 2.7.1).
const HOSTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// TTL of messages to a server, which may be behind a router.
const HOPS: u8 = 64;
/// The hop limit of neighbour discovery: a router would have made it less (RFC 4861 section 6.1).
const ON_LINK: u8 = 255;
/// ICMPv6 types.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The options of RFC 4861 section 4.6.1.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// The link-local address of the interface with this MAC (RFC 4291 appendix A), which the source guard expects.
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A message to a DHCP server.
pub(super) fn to_server(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), message: &[u8]) -> Option<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(from.0.0, to.0.0).ipv4(from.1.octets(), to.1.octets(), HOPS);
    let packet = packet.udp(CLIENT_PORT, SERVER_PORT);
    let mut bytes = Vec::with_capacity(packet.size(message.len()));
    packet.write(&mut bytes, message).ok()?;
    Some(bytes)
}

/// An ARP probe for `address` (RFC 5227 section 2.1.1).
pub(super) fn arp_probe(from: Mac, address: Ipv4Addr) -> Vec<u8> {
    [&EVERYBODY.0[..], &from.0, &EtherType::ARP.0.to_be_bytes(), &probe(from, address)].concat()
}

/// The MAC of a multicast group (RFC 2464 section 7).
fn group(to: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = to.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn discovery(from: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), kind: u8, flags: [u8; 4], rest: &[u8]) -> Option<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(from.0.0, to.0.0).ipv6(from.1.octets(), to.1.octets(), ON_LINK);
    let packet = packet.icmpv6_raw(kind, 0, flags);
    let mut bytes = Vec::with_capacity(packet.size(rest.len()));
    packet.write(&mut bytes, rest).ok()?;
    Some(bytes)
}

fn mac_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}

/// A router solicitation.
pub(super) fn router_solicitation(mac: Mac) -> Option<Vec<u8>> {
    let option = mac_option(SOURCE_LINK_LAYER, mac);
    discovery((mac, link_local(mac)), (group(ROUTERS), ROUTERS), ROUTER_SOLICITATION, [0; 4], &option)
}

/// A question whether somebody has `address`, by who has none yet (RFC 4862 section 5.4.2).
pub(super) fn solicitation(mac: Mac, address: Ipv6Addr) -> Option<Vec<u8>> {
    let [.., a, b, c] = address.octets();
    let to = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    discovery((mac, Ipv6Addr::UNSPECIFIED), (group(to), to), SOLICITATION, [0; 4], &address.octets())
}

/// What a client hears.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// A DHCP message from a server's port.
    Dhcp { from: Mac, message: &'a [u8] },
    /// ARP: who `sender` is, and whose address is looked for.
    Arp { from: Mac, sender: Ipv4Addr, target: Ipv4Addr },
    /// A router advertisement from this address, without its first four octets.
    Router { router: Ipv6Addr, body: &'a [u8] },
    /// Somebody asks who has `target`. Without an address of his own, he wants to have it.
    Asked { from: (Mac, Ipv6Addr), target: Ipv6Addr },
    /// Somebody says that he has `target`.
    Said { from: Mac, target: Ipv6Addr },
}

/// What is in a frame; `None` for what no client acts on.
pub(super) fn read(frame: &[u8]) -> Option<Heard<'_>> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let (from, payload) = (Mac(ethernet.source()), ethernet.payload_slice());
    match ethernet.ether_type() {
        EtherType::ARP => {
            let packet = ArpPacketSlice::from_slice(payload).ok()?.to_packet().try_eth_ipv4().ok()?;
            Some(Heard::Arp { from, sender: packet.sender_ipv4.into(), target: packet.target_ipv4.into() })
        }
        EtherType::IPV4 => {
            let packet = Ipv4Slice::from_slice(payload).ok()?;
            let payload = packet.payload();
            if payload.fragmented || payload.ip_number != IpNumber::UDP {
                return None;
            }
            // The checksum is not looked at: between links of one machine it is left to a card that is none.
            let udp = UdpSlice::from_slice(payload.payload).ok()?;
            let is_answer = udp.source_port() == SERVER_PORT && udp.destination_port() == CLIENT_PORT;
            is_answer.then(|| Heard::Dhcp { from, message: udp.payload() })
        }
        EtherType::IPV6 => {
            let packet = Ipv6Slice::from_slice(payload).ok()?;
            let header = packet.header();
            let payload = packet.payload();
            if payload.fragmented || payload.ip_number != IpNumber::IPV6_ICMP || header.hop_limit() != ON_LINK {
                return None;
            }
            let icmp = Icmpv6Slice::from_slice(payload.payload).ok()?;
            if !icmp.is_checksum_valid(header.source(), header.destination()) || icmp.code_u8() != 0 {
                return None;
            }
            let source = header.source_addr();
            let body = payload.payload.get(4..)?;
            let target = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(4..20)?).ok()?));
            match icmp.type_u8() {
                ROUTER_ADVERTISEMENT if source.is_unicast_link_local() => Some(Heard::Router { router: source, body }),
                SOLICITATION => Some(Heard::Asked { from: (from, source), target: target()? }),
                ADVERTISEMENT => Some(Heard::Said { from, target: target()? }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The answer of `mac` that it has `own`, to somebody who asks for it.
pub(super) fn answer(mac: Mac, own: Ipv6Addr, asked: &Heard<'_>) -> Option<Vec<u8>> {
    let Heard::Asked { from: (asker, address), target } = asked else { return None };
    if *target != own || *asker == mac {
        return None;
    }
    // RFC 4861 section 4.4: solicited, and override.
    let (to, flags) = if address.is_unspecified() {
        ((group(HOSTS), HOSTS), [0x20, 0, 0, 0])
    } else {
        ((*asker, *address), [0x60, 0, 0, 0])
    };
    let rest = [&own.octets()[..], &mac_option(TARGET_LINK_LAYER, mac)].concat();
    discovery((mac, own), to, ADVERTISEMENT, flags, &rest)
}
