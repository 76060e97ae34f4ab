//! The payloads of packets: every protocol, with a mark in each.

use super::super::Place;
use super::Maker;
use crate::frame;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PORTS: [u16; 14] = [80, 7000, 8080, 8080, 53, 22, 443, 67, 68, 546, 547, 5353, 33_000, 61_005];
/// Protocols whose ports pv-net does not read: IP in IP, IPv6 in IP, GRE, ESP, AH, no next header, OSPF, SCTP,
/// UDP-Lite, and 253 (for experiments, RFC 3692).
const OTHERS: [u8; 9] = [4, 41, 47, 50, 89, 132, 136, 253, 103];

impl Maker<'_> {
    /// Protocol number and payload of an IP packet.
    pub(super) fn payload(&mut self, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
        let v4 = src.is_ipv4();
        match self.random.weighted(&[(36, 't'), (36, 'u'), (14, 'i'), (7, 'n'), (5, 'g'), (5, 'o')]) {
            't' => (6, self.tcp(src, dst)),
            'u' => (17, self.udp(src, dst)),
            'n' if !v4 => (58, self.discovery(src, dst)),
            'g' if v4 => (2, self.igmp()),
            'g' => (58, self.mld(src, dst)),
            'o' => (self.random.pick(&OTHERS), self.nested(src, dst)),
            _ => (if v4 { 1 } else { 58 }, self.icmp(src, dst)),
        }
    }

    /// Ports of source and destination. Each place has source ports of its own, so that its packets seldom look like
    /// another's answer. The ports are few, so that some packets match a flow that exists.
    fn ports(&mut self) -> (u16, u16) {
        let base = match self.whom {
            Place::Out => 50_000,
            Place::Lan => 52_000,
            Place::C => 44_000,
            _ => 40_000,
        };
        let own = base + u16::try_from(self.random.below(40)).unwrap_or(0);
        let from = self.random.weighted(&[(90, own), (3, 67), (3, 68), (1, 547), (1, 53), (2, 80)]);
        if self.random.chance(5) {
            return (68, 67);
        }
        (from, self.random.pick(&PORTS))
    }

    fn text(&mut self) -> Vec<u8> {
        let room = self.random.below(40);
        [&self.mark()[..], &vec![b'.'; room]].concat()
    }

    fn tcp(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let (from, to) = self.ports();
        let any = self.random.octet() & 0x3f;
        let flags = self.random.weighted(&[
            (10, 2),
            (2, 0x10),
            (1, 0x18),
            (1, 4),
            (1, 0x14),
            (1, 1),
            (1, 0x29),
            (1, 0),
            (3, any),
        ]);
        let options = self.random.weighted(&[(6, 0), (3, 4), (1, 12)]);
        let mut head = [from.to_be_bytes(), to.to_be_bytes()].concat();
        head.extend([1000u32.to_be_bytes(), 2000u32.to_be_bytes()].concat());
        let length = u8::try_from(5 + options / 4).unwrap_or(5);
        head.extend([length << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        head.extend(vec![1; options]);
        head.extend(self.text());
        let pseudo = frame::pseudo(src, dst, 6, head.len());
        frame::with_checksum(head, 16, &pseudo)
    }

    fn udp(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let (from, to) = self.ports();
        let text = self.text();
        let mut length = 8 + text.len();
        if self.random.chance(4) {
            length = self.random.pick(&[0, 7, 8, length - 1, length + 1, 2000]);
        }
        let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        let segment = [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], &text].concat();
        let pseudo = frame::pseudo(src, dst, 17, segment.len());
        frame::with_checksum(segment, 6, &pseudo)
    }

    fn icmp_message(&mut self, src: IpAddr, dst: IpAddr, message: Vec<u8>) -> Vec<u8> {
        let pseudo = if src.is_ipv4() { Vec::new() } else { frame::pseudo(src, dst, 58, message.len()) };
        frame::with_checksum(message, 2, &pseudo)
    }

    fn icmp(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let any = self.random.octet();
        let v4 = src.is_ipv4();
        let (echo, errors): (u8, &[u8]) = if v4 { (8, &[3, 3, 4, 5, 11, 12]) } else { (128, &[1, 2, 2, 3, 4]) };
        let others: &[u8] = if v4 { &[0, 9, 10, 13, 15, 17, 42] } else { &[129, 138, 139, 144, 146, 151, 154] };
        let (error, other) = (self.random.pick(errors), self.random.pick(others));
        let kind = self.random.weighted(&[(5, echo), (4, error), (2, other), (1, any)]);
        let code = self.random.weighted(&[(4, 0), (2, 3), (1, 4), (1, 13)]);
        let id = u16::try_from(self.random.below(16)).unwrap_or(0).to_be_bytes();
        let mut message = vec![kind, code, 0, 0, id[0], id[1], 0, 1];
        if errors.contains(&kind) {
            // The next hop's MTU, or a pointer. A redirect's gateway is no usable address.
            message[4..8].copy_from_slice(&[0, 0, 5, 0]);
            message.extend(self.quote(src, dst));
        }
        message.extend(self.text());
        self.icmp_message(src, dst, message)
    }

    /// The head of a packet that the receiver may have sent, for an ICMP error to quote.
    fn quote(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let family = if src.is_ipv4() { super::Family::V4 } else { super::Family::V6 };
        let to = if self.random.chance(60) { src } else { self.destination(family) };
        let from = if self.random.chance(70) { dst } else { self.destination(family) };
        let (own, other) = self.ports();
        let proto = self.random.pick(&[6, 17, 17, if src.is_ipv4() { 1 } else { 58 }]);
        let ports = if self.random.chance(50) { [own, other] } else { [other, own] };
        let head = [ports[0].to_be_bytes(), ports[1].to_be_bytes(), [0, 28], [0, 0]].concat();
        frame::ip(from, to, proto, &head)
    }

    /// Router and neighbour discovery, and redirects.
    fn discovery(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let kind = self.random.weighted(&[(1, 133), (2, 134), (6, 135), (6, 136), (1, 137)]);
        let mut message = vec![kind, 0, 0, 0];
        // A router advertisement with lifetime 0, from a sender that is no router.
        message.extend([self.random.pick(&[0, 0x20, 0x60, 0xe0]) & if kind == 136 { 0xff } else { 0 }, 0, 0, 0]);
        let own: Ipv6Addr = self.world.host(self.whom).v6;
        let target = match self.random.below(10) {
            0..4 => IpAddr::V6(own),
            _ => self.destination(super::Family::V6),
        };
        match (kind, target) {
            (134, _) => message.extend([0; 8]),
            (135..=137, IpAddr::V6(target)) => message.extend(target.octets()),
            _ => {}
        }
        if kind == 137 {
            message.extend([0; 16]);
        }
        let mac = if self.random.chance(85) { self.world.host(self.whom).mac } else { self.any_mac() };
        for _ in 0..self.random.pick(&[0, 1, 1, 1, 2, 5]) {
            let option = self.random.pick(&[1, 2, 2, 1, 5]);
            let units = self.random.weighted(&[(20, 1), (1, 0), (1, 9)]);
            message.extend([&[option, units][..], &mac].concat());
        }
        // A nonce (RFC 3971).
        message.extend([&[14, 2][..], &self.mark(), &[0, 0]].concat());
        self.icmp_message(src, dst, message)
    }

    fn igmp(&mut self) -> Vec<u8> {
        let kind = self.random.pick(&[0x11, 0x11, 0x12, 0x16, 0x22, 0x17, 0x13]);
        let message = [&[kind, 0, 0, 0, 224, 0, 0, 251][..], &self.text()].concat();
        frame::with_checksum(message, 2, &[])
    }

    fn mld(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let kind = self.random.pick(&[130, 130, 131, 132, 143]);
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16], &self.text()].concat();
        self.icmp_message(src, dst, message)
    }

    /// A protocol without ports; its payload looks like another packet.
    fn nested(&mut self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let inner = self.random.pick(&[Ipv4Addr::new(10, 0, 3, 3), Ipv4Addr::new(10, 0, 3, 1)]);
        let segment = self.udp(src, dst);
        match self.random.below(2) {
            0 => frame::ipv4(Ipv4Addr::new(10, 0, 3, 1), inner, 17, &segment),
            _ => segment,
        }
    }
}
