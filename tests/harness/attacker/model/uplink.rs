//! The judgement of what arrives by an uplink: its source must be outside the device and its pools, and it reaches
//! containers by published ports and rules only.

use super::super::pool::Link;
use super::super::reading::{ARP_UNREADABLE, Content, Packet, Reading, TCP, Transport, UDP};
use super::super::world::{self, End, Host, PUBLISHED, SERVED};
use super::super::{Place, judgement::Judgement};
use super::{Model, Refused, is_anycast_or_far, opens, unasked};
use std::net::IpAddr;

impl Model<'_> {
    /// The host that sends, and the device on the link between them.
    fn ends(&self) -> (Host, Host) {
        if self.me == Place::Lan {
            (self.world.lan, self.world.gateways[0])
        } else {
            (self.world.out, self.world.uplink)
        }
    }

    pub(super) fn of_uplink(&mut self, frame: &Reading) -> Result<Judgement, Refused> {
        // VLAN id 0 means no VLAN (802.1Q: a priority tag).
        if frame.tags.iter().any(|id| *id != 0) {
            return super::of_other_vlan(frame);
        }
        match &frame.content {
            Content::Ip(packet) => self.ip_of_uplink(frame, packet),
            Content::Arp(_) | Content::Unreadable(ARP_UNREADABLE) => {
                let mut said = Judgement::nobody("ARP of another link");
                said.may(Place::Device, "the device's own link");
                Ok(said)
            }
            Content::Unreadable(why) => Err(why),
            Content::Other => Err("neither ARP nor IP"),
        }
    }

    fn ip_of_uplink(&mut self, frame: &Reading, packet: &Packet) -> Result<Judgement, Refused> {
        let Packet { src, dst, .. } = *packet;
        if world::is_loopback(src) || world::is_loopback(dst) {
            return Err("loopback is never on a wire (RFC 1122, RFC 4291)");
        }
        if self.world.is_taken(src) && !self.may_be_elsewhere(src) || self.world.is_in_pool(src) {
            if defends_own_address(packet) {
                let mut said = Judgement::nobody("an address that is the device's");
                said.may(Place::Device, "who has an address that the device takes says so (RFC 4862)");
                return Ok(said);
            }
            return Err("a source that is not behind the uplink");
        }
        if let Transport::Later = packet.transport {
            let mut said = self.later(packet).unwrap_or_else(Judgement::nobody);
            if self.world.end(dst) == End::Device || world::is_group(dst) {
                // The device's stack keeps a later fragment until the first arrives.
                said.may(Place::Device, "the device puts its own packets together");
            }
            return Ok(said);
        }
        let mut said = Judgement::nobody("nothing leads there from outside");
        if self.may_be_reply(packet) {
            let masqueraded = if self.world.is_child(Place::A) { Place::C } else { Place::A };
            said.may(masqueraded, "it may answer a flow of the container's");
        }
        if packet.is_error() && self.quotes_known(packet) {
            for (place, _) in self.world.containers().filter(|(place, _)| !self.world.is_child(*place)) {
                said.may(place, "an error about a flow that may be");
            }
        }
        // A source that an answer can reach.
        let somebody = !src.is_unspecified()
            && !world::is_group(src)
            && !world::is_link_local(src)
            && !self.is_container_link_local(src);
        match self.world.end(dst) {
            // The device forwards nothing to a macvlan container.
            End::Container(to) if self.world.is_child(to) => {}
            End::Container(to) if somebody && !unasked(packet) && dst != self.world.host(to).link_local => {
                self.routed(frame, packet, to, &mut said);
            }
            End::Container(_) => {}
            End::Device => self.at_device(frame, packet, somebody, &mut said),
            End::Stranger(_) if world::is_group(dst) => said.may(Place::Device, "a group that the device may be in"),
            // 0.0.0.0 is the oldest broadcast address (RFC 1122 section 3.3.6).
            End::Stranger(_) if dst.is_unspecified() => said.may(Place::Device, "a broadcast"),
            End::Stranger(_) if self.world.is_in_pool(dst) && self.world.policy.link == Link::Bridge => {
                said.may(Place::Lan, "a LAN host is the device's to route to")
            }
            End::Stranger(_) => {}
        }
        Ok(said)
    }

    /// Whether this is the link-local address of a container. On the uplink the same address may belong to another
    /// host.
    fn is_container_link_local(&self, addr: IpAddr) -> bool {
        self.world.containers().any(|(_, host)| addr == host.link_local)
    }

    /// Whether another host may have this address of a container: a link-local one, or that of a macvlan container whose
    /// device does not reach it.
    fn may_be_elsewhere(&self, addr: IpAddr) -> bool {
        let near = self.world.policy.link.has_device_if();
        let far = self.world.container(addr).is_some_and(|place| self.world.is_child(place)) && !near;
        self.is_container_link_local(addr) || far
    }

    fn routed(&mut self, frame: &Reading, packet: &Packet, to: Place, said: &mut Judgement) {
        let port = packet.ports().map(|(_, to)| to);
        if self.world.policy.allows(End::Stranger(packet.src), End::Container(to), packet.proto, port, false) {
            self.open(packet);
            let port = port.unwrap_or_default();
            let plain = self.enters(packet, to, port) && self.is_plain(frame, packet) && opens(packet);
            let plain = plain && packet.hops > 1;
            said.lets(to, plain, "a rule lets it in");
        } else if self.answers(packet) {
            said.may(to, "it may answer a flow of the container's");
        } else if self.was_open(packet) {
            said.may(to, "the reset that tells the container that its flow is refused now");
        }
    }

    fn at_device(&mut self, frame: &Reading, packet: &Packet, somebody: bool, said: &mut Judgement) {
        let published = matches!(packet.proto, TCP | UDP) && packet.ports().is_some_and(|(_, to)| to == PUBLISHED);
        if !published {
            let plain = self.is_plain(frame, packet) && somebody && packet.proto != 2 && !packet.is_error();
            let plain = plain && !self.may_be_reply(packet);
            let (_, device) = self.ends();
            let own = packet.dst == device.v4 || packet.dst == device.v6;
            return said.lets(Place::Device, plain && own, "the device's own");
        }
        said.may(Place::Device, "what a published port does not take is the device's own");
        let publisher = self.world.publisher();
        let (from, to) = (End::Stranger(packet.src), End::Container(publisher));
        if somebody && self.world.policy.allows(from, to, packet.proto, Some(SERVED), true) {
            self.open(packet);
            let plain = self.enters(packet, publisher, SERVED) && self.is_plain(frame, packet) && opens(packet);
            let plain = plain && packet.hops > 1 && !is_anycast_or_far(self, packet.dst);
            said.lets(publisher, plain, "a published port");
        } else if self.was_open(packet) {
            said.may(publisher, "the reset that tells the container that its flow is refused now");
        }
    }

    fn is_plain(&self, frame: &Reading, packet: &Packet) -> bool {
        let (host, device) = self.ends();
        let beyond = self.me == Place::Out && (packet.src == world::WORLD.0 || packet.src == world::WORLD.1);
        let known = host.has(packet.src) || beyond;
        // What a LAN host sends with the MAC of somebody on the device, or with several tags, is not the device's.
        let usual =
            if self.me == Place::Lan { frame.src == host.mac && frame.tags.len() < 2 } else { frame.tags.len() <= 2 };
        packet.plain && known && frame.dst == device.mac && usual
    }

    /// Whether the container has sent to the sender's port. The model does not know which port masquerade gave the
    /// flow.
    fn may_be_reply(&self, packet: &Packet) -> bool {
        let Packet { src, dst, proto, .. } = *packet;
        let from = match packet.transport {
            Transport::Icmp { .. } => None,
            _ => packet.ports().map(|(from, _)| from),
        };
        self.world.is_device(dst) && self.memory.peers.contains(&(src, proto, from))
    }
}

/// Whether this is an advertisement to all nodes for the address that it comes from.
fn defends_own_address(packet: &Packet) -> bool {
    let Transport::Icmp { body, .. } = &packet.transport else { return false };
    let target = body.get(..16).and_then(|t| <[u8; 16]>::try_from(t).ok()).map(IpAddr::from);
    packet.icmp6() == Some(136) && packet.hops == 255 && world::is_group(packet.dst) && target == Some(packet.src)
}
