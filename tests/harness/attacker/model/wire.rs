//! The judgement of what a host on the LAN of macvlan containers sends: to them it is the outside, and nobody there has an
//! address of a container or of the device.

use super::super::Place;
use super::super::judgement::{Judgement, Verdict};
use super::super::pool::{Link, Mode};
use super::super::reading::{Arp, Content, Packet, Reading, TCP, Transport, UDP};
use super::super::world::{self, End, Host, SERVED};
use super::child::is_to_all;
use super::{Model, opens, unasked};
use std::net::IpAddr;

impl Model<'_> {
    pub(super) fn of_wire(&mut self, frame: &Reading) -> Judgement {
        // The device and containers behind its bridges: for them the LAN is an uplink.
        let mut said = self.of_uplink(frame).unwrap_or_else(Judgement::nobody);
        let in_name = self.world.children().any(|(_, host)| frame.src == host.mac);
        let way = self.world.device_if;
        let why = "the device's way to its containers is not open to the wire";
        if in_name || Some(frame.src) == way {
            said.say(Place::C, Verdict::MustNot, why);
        }
        if in_name || Some(frame.src) == way || Some(frame.dst) == way {
            said.say(Place::Device, Verdict::MustNot, why);
        }
        let children: Vec<(Place, Host)> = self.world.children().map(|(place, host)| (place, *host)).collect();
        for (place, host) in children {
            if frame.dst != host.mac && !is_to_all(frame) || frame.src == host.mac {
                said.say(place, Verdict::MustNot, "a frame to somebody else, or from the container itself");
                continue;
            }
            match &frame.content {
                _ if frame.tags.iter().any(|id| *id != 0) => {
                    said.say(place, Verdict::MustNot, "containers have no VLANs");
                }
                Content::Arp(arp) => self.arp_of_wire(frame, arp, place, &mut said),
                // The kernel puts IPv4 together before it hands a datagram to macvlan interfaces by a group's MAC.
                Content::Ip(packet) if packet.fragment.is_some() && packet.src.is_ipv4() && is_to_all(frame) => {
                    self.answered_by(packet, place);
                    said.may(place, "the whole datagram may pass");
                }
                Content::Ip(packet) if !matches!(packet.transport, Transport::Later) => {
                    self.ip_of_wire(frame, packet, place, &mut said);
                }
                _ => {}
            }
        }
        if !frame.tags.is_empty() {
            // A tag that names no VLAN is taken off by some programs and not by others.
            said = self.siblings().into_iter().fold(said, Judgement::weakened_at);
        }
        if self.speaks_for_child(frame) {
            said.say(Place::Device, Verdict::MustNot, "nobody on the wire has a container's address");
        }
        said
    }

    /// Whether an IP packet has a container's global address as its source.
    fn speaks_for_child(&self, frame: &Reading) -> bool {
        let Content::Ip(packet) = &frame.content else { return false };
        self.world.children().any(|(_, host)| packet.src == host.v4 || packet.src == host.v6)
    }

    /// Who may have sent the frame by a switch that sends frames back, if that is one of the other containers.
    fn sent_back(&self, frame: &Reading, place: Place) -> Option<(Place, Host)> {
        let vepa = self.world.policy.link == Link::Macvlan(Mode::Vepa);
        let mut others = self.world.children().filter(|(other, _)| vepa && *other != place);
        others.find(|(_, host)| host.mac == frame.src).map(|(other, host)| (other, *host))
    }

    /// Whether only the device or a container may have this address, seen from the container at `place`. A device that does
    /// not reach its containers is a host on the LAN as others.
    fn is_ours(&self, addr: IpAddr) -> bool {
        match self.world.end(addr) {
            End::Container(place) => self.world.is_child(place),
            // On another link a link-local address may be another host's.
            End::Device => {
                self.world.policy.link.has_device_if() && !world::is_link_local(addr) && self.world.is_taken(addr)
            }
            End::Stranger(_) => false,
        }
    }

    fn arp_of_wire(&self, frame: &Reading, arp: &Arp, place: Place, said: &mut Judgement) {
        let (sender, lan) = (IpAddr::from(arp.sender.1), &self.world.lan);
        if self.sent_back(frame, place).is_some_and(|(_, host)| arp.sender == (host.mac, host.v4)) {
            said.may(place, "the switch may have sent it back");
        } else if self.is_ours(sender) {
            said.say(place, Verdict::MustNot, "ARP for an address of the device or a container");
        } else {
            let honest = arp.sender == (lan.mac, lan.v4) && frame.src == lan.mac;
            let plain = honest && matches!(arp.op, 1 | 2) && (!is_to_all(frame) || frame.dst == [0xff; 6]);
            said.lets(place, plain, "ARP of a neighbour");
        }
    }

    fn ip_of_wire(&mut self, frame: &Reading, packet: &Packet, place: Place, said: &mut Judgement) {
        said.say(place, Verdict::MustNot, "what no host of the LAN may send to a container");
        let Packet { src, dst, .. } = *packet;
        let host = *self.world.host(place);
        let nobodys = world::is_loopback(src) || world::is_group(src);
        let routers = matches!(packet.icmp6(), Some(134)) || packet.is_dhcp_answer() || unasked(packet);
        if !host.has(dst) && !world::is_group(dst) || nobodys || routers {
            return;
        }
        let back = self.sent_back(frame, place).filter(|(_, from)| from.has(src) || src.is_unspecified());
        if matches!(packet.icmp6(), Some(133 | 135 | 136)) && packet.hops == 255 {
            let spoken_for = claimed(packet).filter(|addr| self.is_ours(*addr));
            let foreign = self.is_ours(src) || spoken_for.is_some();
            if back.is_some() || !foreign {
                said.may(place, "part of having a link");
            }
            return;
        }
        let for_groups =
            matches!(packet.transport, Transport::Igmp { .. }) || matches!(packet.icmp6(), Some(130..=132 | 143));
        if for_groups && world::is_group(dst) {
            return said.may(place, "a question for groups, or an answer to one");
        }
        if let Some((from, _)) = back {
            let port = packet.ports().map(|(_, to)| to);
            if self.world.policy.allows(End::Container(from), End::Container(place), packet.proto, port, false) {
                said.may(place, "the switch may have sent it back");
            }
            return;
        }
        // On this link the link-local address of another pool's container is another host's.
        let elsewhere = src == self.world.c.link_local;
        let taken = self.world.is_taken(src) && !elsewhere || self.world.is_in_pool(src);
        if taken || src.is_unspecified() {
            return said.say(place, Verdict::MustNot, "a source that nobody on the wire has");
        }
        if packet.is_error() {
            if self.quotes_known(packet) {
                said.may(place, "an error about a flow that may be");
            }
        } else if world::is_group(dst) {
            if self.rules_allow(End::Stranger(src), place, packet) {
                self.answered_by(packet, place);
                said.may(place, "a group, and a rule allows it");
            }
        } else {
            self.unicast_of_wire(frame, packet, place, said);
        }
    }

    fn unicast_of_wire(&mut self, frame: &Reading, packet: &Packet, place: Place, said: &mut Judgement) {
        let port = packet.ports().map(|(_, to)| to);
        let serves = matches!(place, Place::B | Place::D) && matches!(packet.proto, TCP | UDP) && port == Some(SERVED);
        let (from, to) = (End::Stranger(packet.src), End::Container(place));
        let (host, lan) = (self.world.host(place), &self.world.lan);
        if self.world.policy.allows(from, to, packet.proto, port, serves && packet.dst != host.link_local) {
            let honest = frame.src == lan.mac && lan.has(packet.src) && frame.dst == host.mac;
            let plain = packet.plain && honest && opens(packet) && packet.dst != host.link_local;
            self.open(packet);
            said.lets(place, plain, "a published port, or a rule");
        } else if self.answers(packet) {
            said.may(place, "it may answer a flow of the container's");
        }
    }
}

/// The address that neighbour discovery claims for its sender.
pub(super) fn claimed(packet: &Packet) -> Option<IpAddr> {
    let Transport::Icmp { body, .. } = &packet.transport else { return None };
    let claims = packet.icmp6() == Some(136) || packet.icmp6() == Some(135) && packet.src.is_unspecified();
    let target = body.get(..16).and_then(|t| <[u8; 16]>::try_from(t).ok())?;
    claims.then(|| IpAddr::from(target))
}
