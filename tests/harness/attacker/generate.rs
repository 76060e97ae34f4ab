//! What the attacker sends: a shot is one frame, or the fragments of one datagram. Most frames are nearly right: one
//! with many faults is dropped for the first of them, and the others stay untested.

mod address;
mod layer3;
mod layer4;

use super::mark;
use super::random::Random;
use super::world::{Family, World};
use super::{Place, world};
use crate::frame;
use std::net::{IpAddr, Ipv4Addr};

/// The most frames that one shot has, and the number of marks that it may use.
pub(crate) const MOST: u32 = 4;

/// A frame or packet, and the number of its mark.
pub(crate) type Numbered = (u32, Vec<u8>);

/// The frames of shot `shot` in the order in which they are sent, with the marks from `shot * MOST` on.
pub(crate) fn shot(world: &World, seed: u64, shot: u32) -> (Place, Vec<Numbered>) {
    let mut random = Random::of_shot(seed, shot);
    let from = random.pick(world.attackers());
    // Where senders are hosts on one LAN, the MAC tells who they are: one that is wholly forged is of interest.
    let forges = world.policy.link.is_macvlan() && random.chance(if from == Place::Rogue { 80 } else { 8 });
    let whom = if forges { random.pick(&Place::ALL) } else { from };
    let mut maker = Maker { random, world, from, whom, next: shot.wrapping_mul(MOST) };
    (from, maker.frames())
}

/// Makes the frames of one shot.
struct Maker<'w> {
    random: Random,
    world: &'w World,
    from: Place,
    /// Whose MAC, addresses and ports the sender uses when it is right.
    whom: Place,
    /// The number of the next mark.
    next: u32,
}

impl Maker<'_> {
    fn mark(&mut self) -> [u8; mark::LEN] {
        let mark = mark::of(self.next);
        self.next += 1;
        mark
    }

    fn frames(&mut self) -> Vec<Numbered> {
        let first = self.next;
        let mut frames = match self.random.weighted(&[(7, 'a'), (45, '4'), (45, '6'), (3, 'o')]) {
            'a' => vec![(first, self.arp())],
            '4' => self.ip(Family::V4),
            '6' => self.ip(Family::V6),
            _ => vec![(first, self.other())],
        };
        if self.random.chance(9) {
            let tags = self.tags();
            for (_, frame) in &mut frames {
                frame.splice(12..12, tags.iter().copied());
            }
        }
        if self.random.chance(12) {
            for (_, frame) in &mut frames {
                self.mutate(frame);
            }
        }
        frames
    }

    /// One tag or two (802.1Q, 802.1ad): mostly VLAN 0.
    fn tags(&mut self) -> Vec<u8> {
        let mut tags = Vec::new();
        for _ in 0..self.random.pick(&[1, 1, 2]) {
            let kind: u16 = self.random.pick(&[0x8100, 0x8100, 0x88a8]);
            // The priority is in the upper bits.
            let id: u16 = self.random.weighted(&[(4, 0), (2, 5 << 13), (2, 7), (1, 4095)]);
            tags.extend([kind.to_be_bytes(), id.to_be_bytes()].concat());
        }
        tags
    }

    /// Some octets of the headers changed, or the end cut off.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        if self.random.chance(20) {
            let length = 14 + self.random.below(frame.len().saturating_sub(14));
            frame.truncate(length);
            return;
        }
        for _ in 0..self.random.pick(&[1, 1, 2, 4]) {
            let at = 12 + self.random.below(frame.len().min(86) - 12);
            frame[at] = self.random.octet();
        }
    }

    /// Source MAC: mostly the sender's own.
    fn source_mac(&mut self) -> [u8; 6] {
        let own = self.world.host(self.whom).mac;
        if self.random.chance(90) { own } else { self.any_mac() }
    }

    fn any_mac(&mut self) -> [u8; 6] {
        let world = self.world;
        let [internal, management] = world.gateways.map(|g| g.mac);
        let stranger = [2, 0, 0xde, 0xad, 0, self.random.pick(&[1, 2])];
        let known = [world.a.mac, world.b.mac, world.c.mac, world.lan.mac, world.out.mac, world.uplink.mac];
        let macvlan: Vec<[u8; 6]> = world.d.iter().map(|d| d.mac).chain(world.device_if).collect();
        let others = [internal, management, stranger, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]];
        self.random.pick(&[&known[..], &others, &macvlan].concat())
    }

    /// Where a frame for `dst` goes when its sender is right: a neighbour, a group or a router.
    fn mac_for(&mut self, dst: IpAddr) -> [u8; 6] {
        if self.random.chance(15) {
            return self.any_mac();
        }
        match dst {
            IpAddr::V4(v4) if v4.is_multicast() => {
                let [_, b, c, d] = v4.octets();
                return [1, 0, 0x5e, b & 0x7f, c, d];
            }
            IpAddr::V4(_) if world::is_group(dst) => return [0xff; 6],
            IpAddr::V6(v6) if v6.is_multicast() => {
                let o = v6.octets();
                return [0x33, 0x33, o[12], o[13], o[14], o[15]];
            }
            _ => {}
        }
        let world = self.world;
        match self.from {
            Place::Out => return world.uplink.mac,
            Place::C => return world.gateways[1].mac,
            _ => {}
        }
        let router = if world.is_child(self.from) {
            if world.is_device(dst) { world.device_if.unwrap_or(world.gateways[0].mac) } else { world.lan.mac }
        } else {
            world.gateways[0].mac
        };
        let mut near = [&world.a, &world.b, &world.lan].into_iter().chain(&world.d);
        near.find(|host| host.has(dst)).map_or(router, |host| host.mac)
    }

    fn arp(&mut self) -> Vec<u8> {
        let world = self.world;
        let own = world.host(self.whom);
        let other = [world.a, world.b, world.lan, world.gateways[0], world.uplink][self.random.below(5)];
        let unused = Ipv4Addr::new(10, 0, 3, 77);
        let mac = if self.random.chance(80) { own.mac } else { self.any_mac() };
        let sender = self.random.weighted(&[(5, own.v4), (2, Ipv4Addr::UNSPECIFIED), (2, other.v4), (1, unused)]);
        let target = self.random.weighted(&[(4, other.v4), (2, own.v4), (1, unused), (1, sender)]);
        let op = self.random.weighted(&[(6, 1), (6, 2), (1, 3), (1, 8)]);
        let mut packet = frame::arp(op, (mac, sender), (self.any_mac(), target));
        if self.random.chance(6) {
            let at = self.random.below(6);
            packet[at] = self.random.octet();
        }
        // The mark follows the packet: Ethernet pads short frames in the same way.
        packet.extend(self.mark());
        let any = self.any_mac();
        let dst = self.random.weighted(&[(5, [0xff; 6]), (3, other.mac), (1, any)]);
        frame::ethernet(self.source_mac(), dst, frame::ARP, &packet)
    }

    /// Neither ARP nor IP.
    fn other(&mut self) -> Vec<u8> {
        let kind = self.random.pick(&[0x8847, 0x88cc, 0x8863, 0x0842, 0x0600, 0x0010]);
        let payload = [&[0u8; 20][..], &self.mark()].concat();
        frame::ethernet(self.source_mac(), self.any_mac(), kind, &payload)
    }

    /// A packet of either family, in one piece or in fragments.
    fn ip(&mut self, family: Family) -> Vec<Numbered> {
        let (src, dst) = (self.source(family), self.destination(family));
        let (from, to) = (self.source_mac(), self.mac_for(dst));
        let kind = if family == Family::V4 { frame::IPV4 } else { frame::IPV6 };
        let packets = self.packets(src, dst);
        packets.into_iter().map(|(number, packet)| (number, frame::ethernet(from, to, kind, &packet))).collect()
    }
}
