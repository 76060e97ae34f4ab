//! The judgement of what a container sends: it may use its own addresses only, and reach only whom policy allows.

use super::super::reading::{Arp, Content, ICMP6, Packet, Reading, TCP, Transport, UDP};
use super::super::world::{self, End, PUBLISHED, SERVED, SERVERS};
use super::super::{Place, judgement::Judgement};
use super::{Model, Refused, is_anycast_or_far, opens, unasked};
use std::net::IpAddr;

const PIM: u8 = 103;
const BROADCAST: [u8; 6] = [0xff; 6];

impl Model<'_> {
    pub(super) fn of_container(&mut self, frame: &Reading) -> Result<Judgement, Refused> {
        if !frame.tags.is_empty() {
            return Err("a container has no VLANs");
        }
        if frame.src != self.world.a.mac {
            return Err("its MAC is another");
        }
        match &frame.content {
            Content::Arp(arp) => self.arp_of_container(frame, arp),
            Content::Ip(packet) => self.ip_of_container(frame, packet),
            Content::Unreadable(why) => Err(why),
            Content::Other => Err("neither ARP nor IP"),
        }
    }

    /// ARP for its own addresses only (RFC 826). A probe (RFC 5227) may ask for its own too; a probe for another's
    /// address would make that one give it up.
    fn arp_of_container(&self, frame: &Reading, arp: &Arp) -> Result<Judgement, Refused> {
        let me = &self.world.a;
        if arp.sender.0 != me.mac {
            return Err("ARP that tells another MAC");
        }
        let probe = arp.sender.1.is_unspecified();
        if arp.sender.1 != me.v4 && !(probe && arp.target == me.v4 && arp.op == 1) {
            return Err("ARP about another's address");
        }
        let mut said = Judgement::nobody("the link of that container does not reach there");
        let usual = matches!(arp.op, 1 | 2) && !probe;
        let to = |mac: [u8; 6]| frame.dst == BROADCAST || frame.dst == mac;
        said.lets(Place::B, usual && to(self.world.b.mac), "ARP of its own address");
        said.lets(Place::Device, usual && to(self.world.gateways[0].mac), "ARP of its own address");
        said.may(Place::Lan, "ARP of its own address");
        Ok(said)
    }

    fn ip_of_container(&mut self, frame: &Reading, packet: &Packet) -> Result<Judgement, Refused> {
        let Packet { src, dst, .. } = *packet;
        if world::is_loopback(src) || world::is_loopback(dst) || dst.is_unspecified() {
            return Err("an address that is never on a wire");
        }
        if let Some(why) = rogue(packet) {
            return Err(why);
        }
        if unasked(packet) {
            return Err("a redirect, or a question that is nobody's business");
        }
        if let Transport::Later = packet.transport {
            return self.later(Place::A, packet);
        }
        let said = self.ip_by_destination(frame, packet)?;
        // DHCP servers send from these ports, and multicast routers use this protocol (RFC 7761): a container is
        // neither.
        let as_server = packet.proto == PIM
            || packet.proto == UDP && packet.ports().is_some_and(|(from, _)| matches!(from, 67 | 547));
        Ok(if as_server { said.weakened() } else { said })
    }

    fn ip_by_destination(&mut self, frame: &Reading, packet: &Packet) -> Result<Judgement, Refused> {
        let me = self.world.a;
        let Packet { src, dst, .. } = *packet;
        let discovery = self.is_own_discovery(packet)?;
        if src.is_unspecified() {
            return self.bootstrap(packet, discovery);
        }
        if !me.has(src) {
            return Err("its source is another's");
        }
        if packet.is_error() && !self.quotes_known(packet) {
            return Err("an error about no flow of that link");
        }
        let mut said = Judgement::nobody("a container's packet for another place");
        said.may(Place::Lan, "the bridge knows who is at its ports");
        let beyond =
            !world::is_group(dst) && matches!(self.world.end(dst), End::Container(Place::C) | End::Stranger(_));
        if packet.is_error() {
            for place in [Place::Device, Place::B, Place::C, Place::Out] {
                said.may(place, "an error about a flow that may be");
            }
        } else if discovery && packet.hops == 255 && !beyond {
            self.link_matter(frame, packet, &mut said);
        } else if world::is_group(dst) {
            self.for_group(packet, &mut said);
        } else {
            match self.world.end(dst) {
                End::Container(Place::A) => {}
                End::Container(to) => self.for_container(frame, packet, to, &mut said),
                End::Device => self.for_device(frame, packet, &mut said),
                End::Stranger(_) => self.for_stranger(frame, packet, &mut said),
            }
        }
        Ok(said)
    }

    /// Whether the packet is router or neighbour discovery. An error when it is malformed, or claims another's address.
    fn is_own_discovery(&self, packet: &Packet) -> Result<bool, Refused> {
        let me = &self.world.a;
        let Transport::Icmp { body, .. } = &packet.transport else { return Ok(false) };
        let kind = match packet.icmp6() {
            Some(kind @ (133 | 135 | 136)) => kind,
            _ => return Ok(false),
        };
        if packet.fragment.is_some() {
            return Err("neighbour discovery in fragments (RFC 6980)");
        }
        let mut options = &[][..];
        if kind != 133 {
            let target: [u8; 16] = body.get(..16).and_then(|t| t.try_into().ok()).ok_or("a target that is cut")?;
            let own = me.has(IpAddr::from(target));
            if kind == 136 && !own {
                return Err("it advertises another's address");
            }
            if packet.src.is_unspecified() && !own {
                return Err("it probes for another's address, which that one would give up (RFC 4862)");
            }
            options = &body[16..];
        }
        while let [option, units, rest @ ..] = options {
            if *units == 0 {
                return Err("an option without a length");
            }
            if matches!(option, 1 | 2) && !rest.starts_with(&me.mac) {
                return Err("it tells another MAC");
            }
            options = options.get(usize::from(*units) * 8..).ok_or("an option that is cut")?;
        }
        Ok(true)
    }

    /// Neighbour discovery between neighbours works whatever the rules say.
    fn link_matter(&self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        let why = "neighbour discovery is part of having a link";
        let unicast = |place: Place| {
            let host = self.world.host(place);
            // pv-net does not read a message with more options than any node sends (RFC 4861 section 4.6 has two in a
            // message).
            let few = matches!(&packet.transport, Transport::Icmp { body, .. } if body.len() <= 16 + 4 * 8);
            let to_it = few && host.has(packet.dst) && frame.dst == host.mac && packet.icmp6() != Some(133);
            to_it && packet.plain
        };
        for place in [Place::B, Place::Device] {
            if world::is_group(packet.dst) || self.world.end(packet.dst) == self.end_of(place) {
                said.lets(place, unicast(place), why);
            }
        }
    }

    fn end_of(&self, place: Place) -> End {
        if place == Place::Device { End::Device } else { End::Container(place) }
    }

    /// What a container sends before it has an address: DHCP, duplicate address detection and group reports stay on the
    /// link.
    fn bootstrap(&self, packet: &Packet, discovery: bool) -> Result<Judgement, Refused> {
        let Packet { src, dst, .. } = *packet;
        let why = "it gets its address";
        let mut said = Judgement::nobody("what has no address goes no further than its link");
        said.may(Place::Lan, why);
        if src.is_ipv6() {
            if !(discovery || matches!(packet.icmp6(), Some(131 | 132 | 143))) {
                return Err("a source that is nobody's");
            }
            said.may(Place::B, why);
            said.may(Place::Device, why);
            return Ok(said);
        }
        let on_link = world::is_group(dst) || self.world.gateways[0].has(dst);
        if packet.proto != UDP || packet.ports() != Some((68, 67)) || !on_link {
            return Err("a source that is nobody's");
        }
        if world::is_group(dst) {
            said.may(Place::B, why);
        }
        if self.world.policy.allows(End::Container(Place::A), End::Device, UDP, Some(67), false) {
            said.may(Place::Device, why);
        }
        Ok(said)
    }

    fn may_reach(&self, to: End, packet: &Packet) -> bool {
        let port = packet.ports().map(|(_, to)| to);
        let dst = packet.dst;
        let by_gateway = self.world.gateways[0].has(dst) || world::is_link_local(dst) || world::is_group(dst);
        self.world.policy.allows_by(by_gateway, End::Container(Place::A), to, packet.proto, port, false)
    }

    fn for_group(&mut self, packet: &Packet, said: &mut Judgement) {
        // The bridge and the routers on it read a report; the memory for it is bounded.
        let report =
            matches!(packet.transport, Transport::Igmp { .. }) || matches!(packet.icmp6(), Some(131 | 132 | 143));
        if self.may_reach(End::Container(Place::B), packet) {
            self.answered_by(packet, Place::B);
            said.may(Place::B, "a group, and no rule between the two");
        }
        if report || self.may_reach(End::Device, packet) {
            self.answered_by(packet, Place::Device);
            said.may(Place::Device, "a group that the device may be in");
        }
    }

    fn for_container(&mut self, frame: &Reading, packet: &Packet, to: Place, said: &mut Judgement) {
        let host = *self.world.host(to);
        let near = to == Place::B;
        if !near && (world::is_link_local(packet.src) || packet.dst == host.link_local) {
            return said.say(to, super::super::judgement::Verdict::MustNot, "beyond the scope of its address");
        }
        if self.may_reach(End::Container(to), packet) {
            self.open(packet);
            let by = if near { host.mac } else { self.world.gateways[0].mac };
            let known = opens(packet) || matches!(packet.transport, Transport::Other);
            let port = packet.ports().map_or(0, |(_, to)| to);
            let plain = self.enters(packet, to, port) && packet.plain && known;
            let plain = plain && frame.dst == by && (near || packet.hops > 1);
            said.lets(to, plain, "one container may reach the other");
        } else if self.answers(packet) || packet.ports().is_some_and(|(_, to)| SERVERS.contains(&to)) {
            // Also from the port of a server that answered under an earlier policy: its last packet may have opened a
            // flow.
            said.may(to, "it may answer a flow of the other's");
        }
    }

    fn for_device(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        if is_anycast_or_far(self, packet.dst) {
            // The answer comes from another address. Where a link does not forward, no anycast address is local to it,
            // and the packet leaves by the uplink.
            self.answered_by(packet, Place::Device);
            if self.may_reach(End::Stranger(packet.dst), packet) {
                said.may(Place::Out, "an address of the uplink's network");
            }
        }
        let by_gateway = frame.dst == self.world.gateways[0].mac;
        if matches!(packet.proto, TCP | UDP) && packet.ports().is_some_and(|(_, to)| to == PUBLISHED) {
            let to = End::Container(Place::B);
            if self.world.policy.allows(End::Container(Place::A), to, packet.proto, Some(SERVED), true) {
                self.open(packet);
                let plain = self.enters(packet, Place::B, SERVED) && packet.plain && opens(packet);
                let plain = plain && by_gateway && !is_anycast_or_far(self, packet.dst);
                said.lets(Place::B, plain && packet.hops > 1, "a published port");
                said.may(Place::Device, "a published port");
            }
            if is_anycast_or_far(self, packet.dst) && self.may_reach(End::Device, packet) {
                said.may(Place::Device, "where nothing is published");
            }
            return;
        }
        if self.may_reach(End::Device, packet) {
            self.open(packet);
            let plain = packet.plain && by_gateway && (opens(packet) || matches!(packet.transport, Transport::Other));
            let plain = plain && packet.src.is_ipv4() == packet.dst.is_ipv4() && !world::is_link_local(packet.src);
            said.lets(Place::Device, plain && !is_anycast_or_far(self, packet.dst), "it may reach the device");
        } else if self.answers(packet) {
            said.may(Place::Device, "it may answer a flow of the device's");
        }
    }

    fn for_stranger(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        let Packet { src, dst, .. } = *packet;
        if world::is_link_local(src) || world::is_in_pool(dst) || dst.is_ipv6() && world::is_link_local(dst) {
            return;
        }
        if !self.may_reach(End::Stranger(dst), packet) {
            if self.answers(packet) {
                said.may(Place::Out, "it may answer a flow from outside");
            }
            return;
        }
        let untold =
            !matches!(packet.transport, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Icmp { .. });
        if untold || packet.hops <= 1 {
            return;
        }
        // A packet that opens no flow may belong to one that exists; if not, masquerade answers with a reset.
        self.open(packet);
        let known = self.world.out.has(dst) || dst == world::WORLD.0 || dst == world::WORLD.1;
        let by_gateway = frame.dst == self.world.gateways[0].mac;
        said.lets(Place::Out, packet.plain && opens(packet) && known && by_gateway, "it may reach the world");
    }
}

/// Why no container may send this packet to anybody, if so.
fn rogue(packet: &Packet) -> Option<Refused> {
    match (&packet.transport, packet.proto) {
        (Transport::Udp { .. }, _) if packet.is_dhcp_answer() => Some("a DHCP answer, and it is no server (RFC 7610)"),
        (Transport::Icmp { kind: 134, .. }, ICMP6) => Some("a router advertisement (RFC 6105)"),
        (Transport::Icmp { kind: 130, .. }, ICMP6) | (Transport::Igmp { kind: 0x11 }, _) => {
            Some("a query: it would become the querier (RFC 4541)")
        }
        _ => None,
    }
}
