//! The judgement of what a container sends: it may use its own addresses only, and reach only whom policy allows.

use super::super::pool::is_on_lan;
use super::super::reading::{Arp, Content, ICMP6, Packet, Reading, TCP, Transport, UDP};
use super::super::world::{self, End, Host, PUBLISHED, SERVED, SERVERS};
use super::super::{Place, judgement::Judgement};
use super::{Model, Refused, is_anycast_or_far, opens, unasked};
use std::net::IpAddr;

const PIM: u8 = 103;
const BROADCAST: [u8; 6] = [0xff; 6];

impl Model<'_> {
    /// The other container on the sender's bridge.
    fn near(&self) -> Option<Place> {
        (self.me == Place::A).then_some(Place::B)
    }

    /// The device on the sender's bridge.
    pub(super) fn gateway(&self) -> Host {
        self.world.gateways[usize::from(self.me == Place::C)]
    }

    pub(super) fn of_container(&mut self, frame: &Reading) -> Result<Judgement, Refused> {
        if !frame.tags.is_empty() {
            return Err("a container has no VLANs");
        }
        if frame.src != self.world.host(self.me).mac {
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
        let me = self.world.host(self.me);
        if arp.sender.0 != me.mac {
            return Err("ARP that tells another MAC");
        }
        let probe = arp.sender.1.is_unspecified();
        if arp.sender.1 != me.v4 && !(probe && arp.target == me.v4 && arp.op == 1) {
            return Err("ARP about another's address");
        }
        let mut said = Judgement::nobody("the link of that container does not reach there");
        let usual = matches!(arp.op, 1 | 2) && !probe;
        if self.world.is_child(self.me) {
            return Ok(self.link_matter_of_child(frame, None, usual));
        }
        let to = |mac: [u8; 6]| frame.dst == BROADCAST || frame.dst == mac;
        said.lets(Place::Device, usual && to(self.gateway().mac), "ARP of its own address");
        if let Some(near) = self.near() {
            said.lets(near, usual && to(self.world.host(near).mac), "ARP of its own address");
            said.may(Place::Lan, "ARP of its own address");
        }
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
            let mut said = self.later(packet)?;
            if self.world.is_child(self.me) && said.reaches_somebody() && self.leaves(frame) {
                said.may(Place::Lan, "where a fragment goes is up to the frame's destination");
            }
            return Ok(said);
        }
        let said = self.ip_by_destination(frame, packet)?;
        // DHCP servers send from these ports, and multicast routers use this protocol (RFC 7761): a container is
        // neither.
        let as_server = packet.proto == PIM
            || packet.proto == UDP && packet.ports().is_some_and(|(from, _)| matches!(from, 67 | 547));
        Ok(if as_server { said.weakened() } else { said })
    }

    fn ip_by_destination(&mut self, frame: &Reading, packet: &Packet) -> Result<Judgement, Refused> {
        let me = *self.world.host(self.me);
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
        if self.world.is_child(self.me) {
            return Ok(self.of_child(frame, packet, discovery));
        }
        let mut said = Judgement::nobody("a container's packet for another place");
        if self.near().is_some() {
            said.may(Place::Lan, "the bridge knows who is at its ports");
        }
        let beyond = match self.world.end(dst) {
            _ if world::is_group(dst) => false,
            End::Container(to) => to != self.me && Some(to) != self.near(),
            End::Device => false,
            End::Stranger(_) => true,
        };
        if packet.is_error() {
            for place in Place::ALL.into_iter().filter(|place| !self.world.is_child(*place)) {
                said.may(place, "an error about a flow that may be");
            }
        } else if discovery && packet.hops == 255 && !beyond {
            self.link_matter(frame, packet, &mut said);
        } else if world::is_group(dst) {
            self.for_group(packet, &mut said);
        } else {
            match self.world.end(dst) {
                End::Container(to) if to == self.me => {}
                End::Container(to) if self.world.is_child(to) => self.for_child(packet, to, &mut said),
                End::Container(to) => self.for_container(frame, packet, to, &mut said),
                End::Device => self.for_device(frame, packet, &mut said),
                End::Stranger(_) => self.for_stranger(frame, packet, &mut said),
            }
        }
        Ok(said)
    }

    /// Whether the packet is router or neighbour discovery. An error when it is malformed, or claims another's address.
    fn is_own_discovery(&self, packet: &Packet) -> Result<bool, Refused> {
        let me = self.world.host(self.me);
        let Transport::Icmp { body, .. } = &packet.transport else { return Ok(false) };
        let kind = match packet.icmp6() {
            Some(kind @ (133 | 135 | 136)) => kind,
            _ => return Ok(false),
        };
        if packet.fragment.is_some() {
            return Err("neighbour discovery in fragments (RFC 6980)");
        }
        let mut options = &body[..];
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
            let host = if place == Place::Device { self.gateway() } else { *self.world.host(place) };
            let to_it = has_few_options(packet) && host.has(packet.dst) && frame.dst == host.mac;
            to_it && packet.icmp6() != Some(133) && packet.plain
        };
        for place in self.near().into_iter().chain([Place::Device]) {
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
        let neighbours = if self.world.is_child(self.me) { self.siblings() } else { self.near().into_iter().collect() };
        if self.me == Place::A || self.world.is_child(self.me) {
            said.may(Place::Lan, why);
        }
        if src.is_ipv6() {
            if !(discovery || matches!(packet.icmp6(), Some(131 | 132 | 143))) {
                return Err("a source that is nobody's");
            }
            neighbours.into_iter().chain([Place::Device]).for_each(|place| said.may(place, why));
            return Ok(said);
        }
        let router = if self.world.is_child(self.me) { self.world.lan } else { self.gateway() };
        let on_link = world::is_group(dst) || router.has(dst);
        if packet.proto != UDP || packet.ports() != Some((68, 67)) || !on_link {
            return Err("a source that is nobody's");
        }
        if self.world.is_child(self.me) {
            return Ok(said);
        }
        if world::is_group(dst) {
            neighbours.into_iter().for_each(|place| said.may(place, why));
        }
        if self.world.policy.allows(End::Container(self.me), End::Device, UDP, Some(67), false) {
            said.may(Place::Device, why);
        }
        Ok(said)
    }

    pub(super) fn may_reach(&self, to: End, packet: &Packet) -> bool {
        let port = packet.ports().map(|(_, to)| to);
        let dst = packet.dst;
        // A macvlan pool has no gateway on the device.
        let by_gateway = !self.world.is_child(self.me)
            && (self.gateway().has(dst) || world::is_link_local(dst) || world::is_group(dst));
        self.world.policy.allows_by(by_gateway, End::Container(self.me), to, packet.proto, port, false)
    }

    fn for_group(&mut self, packet: &Packet, said: &mut Judgement) {
        // The bridge and the routers on it read a report; the memory for it is bounded.
        if let Some(near) = self.near()
            && self.may_reach(End::Container(near), packet)
        {
            self.answered_by(packet, near);
            said.may(near, "a group, and no rule between the two");
        }
        if is_report(packet) || self.may_reach(End::Device, packet) {
            self.answered_by(packet, Place::Device);
            said.may(Place::Device, "a group that the device may be in");
        }
    }

    fn for_container(&mut self, frame: &Reading, packet: &Packet, to: Place, said: &mut Judgement) {
        let host = *self.world.host(to);
        let near = Some(to) == self.near();
        if !near && (world::is_link_local(packet.src) || packet.dst == host.link_local) {
            return said.say(to, super::super::judgement::Verdict::MustNot, "beyond the scope of its address");
        }
        if self.may_reach(End::Container(to), packet) {
            self.open(packet);
            let by = if near { host.mac } else { self.gateway().mac };
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
                said.may(self.uplink_to(packet.dst), "an address of the uplink's network");
            }
        }
        let by_gateway = frame.dst == self.gateway().mac;
        if matches!(packet.proto, TCP | UDP) && packet.ports().is_some_and(|(_, to)| to == PUBLISHED) {
            let publisher = self.world.publisher();
            let to = End::Container(publisher);
            if self.world.policy.allows(End::Container(self.me), to, packet.proto, Some(SERVED), true) {
                self.open(packet);
                let plain = self.enters(packet, publisher, SERVED) && packet.plain && opens(packet);
                let plain = plain && by_gateway && !is_anycast_or_far(self, packet.dst);
                said.lets(publisher, plain && packet.hops > 1, "a published port");
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
            let plain = plain && !is_anycast_or_far(self, packet.dst) && !self.serves(packet);
            said.lets(Place::Device, plain, "it may reach the device");
        } else if self.answers(packet) {
            said.may(Place::Device, "it may answer a flow of the device's");
        }
    }

    /// The host behind the uplink to which routes lead.
    fn uplink_to(&self, dst: IpAddr) -> Place {
        if self.me == Place::C && is_on_lan(dst) { Place::Lan } else { Place::Out }
    }

    /// Whether the sender may answer by a published port.
    fn serves(&self, packet: &Packet) -> bool {
        self.me == self.world.publisher() && packet.ports().is_some_and(|(from, _)| from == SERVED)
    }

    /// What a published port answers leaves by the uplink that the flow came in on.
    fn by_published_port(&self, packet: &Packet, said: &mut Judgement) {
        if self.serves(packet) {
            for place in [Place::Lan, Place::Out] {
                said.may(place, "it may answer a flow that came in by a published port");
            }
        }
    }

    /// The device forwards nothing to a macvlan container.
    fn for_child(&mut self, packet: &Packet, to: Place, said: &mut Judgement) {
        if self.may_reach(End::Container(to), packet) || self.may_reach(End::Stranger(packet.dst), packet) {
            self.open(packet);
            said.may(Place::Lan, "to the bridge pool it is a host on the LAN");
        }
        self.by_published_port(packet, said);
    }

    fn for_stranger(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        let Packet { src, dst, .. } = *packet;
        let there = self.uplink_to(dst);
        if world::is_link_local(src) || self.world.is_in_pool(dst) || dst.is_ipv6() && world::is_link_local(dst) {
            return;
        }
        if !self.may_reach(End::Stranger(dst), packet) {
            if self.answers(packet) {
                said.may(there, "it may answer a flow from outside");
            }
            return self.by_published_port(packet, said);
        }
        let untold =
            !matches!(packet.transport, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Icmp { .. });
        if untold || packet.hops <= 1 {
            return;
        }
        // A packet that opens no flow may belong to one that exists; if not, masquerade answers with a reset.
        self.open(packet);
        let known = self.world.host(there).has(dst) || dst == world::WORLD.0 || dst == world::WORLD.1;
        let by_gateway = frame.dst == self.gateway().mac;
        said.lets(there, packet.plain && opens(packet) && known && by_gateway, "it may reach the world");
        self.by_published_port(packet, said);
    }
}

/// Whether neighbour discovery has no more options than pv-net reads, which is more than any node sends (RFC 4861 section
/// 4.6 has two in a message).
pub(super) fn has_few_options(packet: &Packet) -> bool {
    matches!(&packet.transport, Transport::Icmp { body, .. } if body.len() <= 16 + 4 * 8)
}

/// A report of group memberships: the routers of the link read it.
pub(super) fn is_report(packet: &Packet) -> bool {
    matches!(packet.transport, Transport::Igmp { .. }) || matches!(packet.icmp6(), Some(131 | 132 | 143))
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
