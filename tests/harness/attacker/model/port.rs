//! The judgement of what a LAN port of the pool's bridge sends: to containers it is a stranger, whatever source it
//! claims. Its other traffic is up to the device.

use super::super::Place;
use super::super::judgement::{Judgement, Verdict};
use super::super::reading::{Arp, Content, Packet, Reading, Transport};
use super::super::world::{self, End};
use super::{Model, Refused, opens, unasked};
use std::net::IpAddr;

const BROADCAST: [u8; 6] = [0xff; 6];

impl Model<'_> {
    pub(super) fn of_port(&mut self, frame: &Reading) -> Result<Judgement, Refused> {
        if frame.tags.iter().any(|id| *id != 0) {
            return super::of_other_vlan(frame);
        }
        let mut said = match &frame.content {
            Content::Arp(arp) => self.arp_of_port(frame, arp)?,
            Content::Ip(packet) => self.ip_of_port(frame, packet)?,
            Content::Unreadable(why) => return Err(why),
            Content::Other => return Err("neither ARP nor IP"),
        };
        if !frame.tags.is_empty() {
            for place in [Place::A, Place::B] {
                // The device routes it, and sends it on without the tag.
                if frame.dst == self.world.gateways[0].mac {
                    said = said.weakened_at(place);
                } else {
                    said.say(place, Verdict::MustNot, "containers have no VLANs");
                }
            }
        }
        Ok(said)
    }

    fn arp_of_port(&self, frame: &Reading, arp: &Arp) -> Result<Judgement, Refused> {
        let mut said = Judgement::nobody("it stays on its link");
        said.may(Place::Device, "the device's own link");
        if self.world.is_taken(arp.sender.1.into()) {
            return Ok(said);
        }
        for place in [Place::A, Place::B] {
            let to = frame.dst == BROADCAST || frame.dst == self.world.host(place).mac;
            let honest = arp.sender == (self.world.lan.mac, self.world.lan.v4) && frame.src == self.world.lan.mac;
            let plain = to && honest && matches!(arp.op, 1 | 2);
            said.lets(place, plain, "ARP of a neighbour");
        }
        Ok(said)
    }

    fn ip_of_port(&mut self, frame: &Reading, packet: &Packet) -> Result<Judgement, Refused> {
        let Packet { src, dst, .. } = *packet;
        if world::is_loopback(src) || world::is_loopback(dst) {
            return Err("loopback is never on a wire (RFC 1122, RFC 4291)");
        }
        if self.world.is_taken(src) && src != self.world.c.link_local {
            return Err("what did not come by that one's link is not that one");
        }
        if world::is_group(src) {
            return Err("a source that is a group");
        }
        if self.speaks_for_another(packet) {
            return Err("it speaks for another's address");
        }
        if let Transport::Later = packet.transport {
            let mut said = self.later(packet).unwrap_or_else(Judgement::nobody);
            // The device's stack keeps a later fragment until the first arrives.
            said.may(Place::Device, "the device puts its own packets together");
            said.may(Place::Out, "what a LAN host sends out is the device's to route");
            return Ok(said);
        }
        let mut said = Judgement::nobody("a stranger to containers");
        said.may(Place::Out, "what a LAN host sends out is the device's to route");
        self.for_containers(frame, packet, &mut said);
        if self.world.is_device(src) {
            said.may(Place::Device, "an anycast address: what answers goes to the device");
        }
        match self.world.end(dst) {
            End::Device => {
                let lan = &self.world.lan;
                let honest = (src == lan.v4 || src == lan.v6) && frame.src == lan.mac;
                let near = dst == self.world.gateways[0].v4 || dst == self.world.gateways[0].v6;
                let plain = packet.plain && honest && near && frame.dst == self.world.gateways[0].mac;
                let usual = packet.proto != 2 && !packet.is_error() && !matches!(packet.icmp6(), Some(133..=137));
                said.lets(Place::Device, plain && usual, "the device's own");
            }
            End::Stranger(_) if world::is_group(dst) => said.may(Place::Device, "a group that the device may be in"),
            // 0.0.0.0 is the oldest broadcast address (RFC 1122 section 3.3.6).
            End::Stranger(_) if dst.is_unspecified() => said.may(Place::Device, "a broadcast"),
            _ => {}
        }
        Ok(said)
    }

    fn for_containers(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        let Packet { src, dst, .. } = *packet;
        if packet.is_dhcp_answer() || unasked(packet) || packet.icmp6() == Some(134) {
            return;
        }
        let discovery = matches!(packet.icmp6(), Some(133 | 135 | 136));
        let known_error = packet.is_error() && self.quotes_known(packet);
        for (place, host) in self.world.containers() {
            let near = place != Place::C;
            let meant = host.has(dst) || near && world::is_group(dst);
            if !meant {
                continue;
            }
            if near && discovery || known_error {
                said.may(place, "part of having a link, or an error about a flow that may be");
            } else if packet.is_error() {
                said.say(place, Verdict::MustNot, "an error about no flow of that link");
            } else if !self.stranger_may(packet, place) {
                if self.answers(packet) {
                    said.may(place, "it may answer a flow of the container's");
                }
            } else if world::is_group(dst) {
                self.answered_by(packet, place);
                said.may(place, "a group of the link");
            } else {
                self.open(packet);
                let honest = frame.src == self.world.lan.mac && (src == self.world.lan.v4 || src == self.world.lan.v6);
                let plain = near && packet.plain && honest && opens(packet) && dst != host.link_local;
                said.lets(place, plain && frame.dst == host.mac, "a neighbour on the link");
            }
        }
    }

    /// Whether a packet of the LAN host may reach a container. Neighbours on the pool's own link need no published
    /// port, but a rule can deny them; others need a rule.
    fn stranger_may(&self, packet: &Packet, place: Place) -> bool {
        let port = packet.ports().map(|(_, to)| to);
        let (from, to) = (End::Stranger(packet.src), End::Container(place));
        let said = self.world.policy.rules_say(from, to, packet.proto, port);
        let is_near6 = packet.src.is_ipv6() && world::is_link_local(packet.src);
        let near = packet.src.is_unspecified() || is_near6 || self.world.policy.link.pool_at(packet.src) == Some(3);
        said.unwrap_or(place != Place::C && near)
    }

    /// Neighbour discovery that claims an address of the device or of a container on its link (RFC 4861, RFC 4862).
    fn speaks_for_another(&self, packet: &Packet) -> bool {
        let Transport::Icmp { body, .. } = &packet.transport else { return false };
        let target = body.get(..16).and_then(|t| <[u8; 16]>::try_from(t).ok()).map(IpAddr::from);
        let claims = packet.icmp6() == Some(136) || packet.icmp6() == Some(135) && packet.src.is_unspecified();
        claims && target.is_some_and(|target| self.world.is_taken(target) && target != self.world.c.link_local)
    }
}
