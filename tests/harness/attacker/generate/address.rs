//! Sources and destinations: honest ones, everybody else's, and those that are special.

use super::super::Place;
use super::super::world::{self, Family};
use super::Maker;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const fn v6(a: u16, b: u16, c: u16, d: u16, h: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, h)
}

const GROUPS4: [Ipv4Addr; 9] = [
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(10, 0, 3, 255),
    Ipv4Addr::new(10, 0, 4, 255),
    Ipv4Addr::new(192, 0, 2, 255),
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(224, 0, 0, 22),
    Ipv4Addr::new(224, 0, 0, 251),
    Ipv4Addr::new(239, 255, 255, 250),
    Ipv4Addr::new(255, 255, 255, 254),
];

const GROUPS6: [Ipv6Addr; 7] = [
    v6(0xff02, 0, 0, 0, 1),
    v6(0xff02, 0, 0, 0, 2),
    v6(0xff02, 0, 0, 0, 0x16),
    v6(0xff02, 0, 0, 0, 0xfb),
    v6(0xff05, 0, 0, 0, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2),
    v6(0xff01, 0, 0, 0, 1),
];

/// Loopback, unspecified and anycast addresses, and unused ones of the pools.
const ODD4: [Ipv4Addr; 7] = [
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 9, 9, 9),
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::new(10, 0, 3, 77),
    Ipv4Addr::new(10, 0, 4, 77),
    Ipv4Addr::new(192, 0, 2, 77),
    Ipv4Addr::new(169, 254, 7, 7),
];

const ODD6: [Ipv6Addr; 9] = [
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1),
    v6(0xfd00, 0x5056, 0, 3, 0x77),
    v6(0xfd00, 0x5056, 0, 4, 0x77),
    v6(0xfd00, 0x5056, 0, 3, 0),
    v6(0x2001, 0xdb8, 1, 0, 0),
    v6(0x2001, 0xdb8, 1, 0, 0x77),
    v6(0xfe80, 0, 0, 0, 0x77),
];

impl Maker<'_> {
    /// Source address: mostly the sender's own; a host outside also sends from addresses of the world behind it.
    pub(super) fn source(&mut self, family: Family) -> IpAddr {
        let own = self.world.host(self.whom);
        let v6 = family == Family::V6;
        match self.random.below(100) {
            0..60 => own.ip(family),
            60..68 if v6 => own.link_local.into(),
            60..75 if self.from == Place::Out => self.world_behind(family),
            68..75 => self.unspecified(family),
            75..90 => self.somebody(family),
            90..95 => self.group(family),
            _ => self.odd(family),
        }
    }

    pub(super) fn destination(&mut self, family: Family) -> IpAddr {
        let world = self.world;
        let [internal, management] = world.gateways;
        match self.random.below(100) {
            0..8 if world.d.is_some() => world.host(Place::D).ip(family),
            0..24 => world.b.ip(family),
            24..34 => world.c.ip(family),
            34..40 => world.a.ip(family),
            40..52 => internal.ip(family),
            52..56 => management.ip(family),
            56..66 => world.uplink.ip(family),
            66..71 if world.d.is_some() => world.lan.ip(family),
            66..75 => world.out.ip(family),
            75..79 => self.world_behind(family),
            79..91 => self.group(family),
            91..96 => self.odd(family),
            _ => self.somebody(family),
        }
    }

    fn world_behind(&mut self, family: Family) -> IpAddr {
        if family == Family::V4 { world::WORLD.0.into() } else { world::WORLD.1.into() }
    }

    fn unspecified(&mut self, family: Family) -> IpAddr {
        if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }

    /// An address of one of the hosts, containers or gateways, link-local ones too.
    fn somebody(&mut self, family: Family) -> IpAddr {
        let world = self.world;
        let [internal, management] = world.gateways;
        let all = [world.a, world.b, world.c, world.lan, world.out, internal, management, world.uplink];
        let all: Vec<_> = all.into_iter().chain(world.d).collect();
        let host = all[self.random.below(all.len())];
        if family == Family::V6 && self.random.chance(40) { host.link_local.into() } else { host.ip(family) }
    }

    fn group(&mut self, family: Family) -> IpAddr {
        if family == Family::V4 {
            return self.random.pick(&GROUPS4).into();
        }
        if self.random.chance(20) {
            // Solicited-node (RFC 4291 section 2.7.1).
            let o = self.world.b.v6.octets();
            return Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15]]).into();
        }
        self.random.pick(&GROUPS6).into()
    }

    fn odd(&mut self, family: Family) -> IpAddr {
        if family == Family::V4 { self.random.pick(&ODD4).into() } else { self.random.pick(&ODD6).into() }
    }
}
