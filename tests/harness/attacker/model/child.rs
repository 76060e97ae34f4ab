//! The judgement of what a macvlan container sends, once the guard of every container lets it pass: to the wire, to other
//! containers, to the device.

use super::super::Place;
use super::super::judgement::{Judgement, Verdict};
use super::super::pool::{self, Link, Mode};
use super::super::reading::{Packet, Reading, Transport};
use super::super::world::{self, End, SERVERS};
use super::container::{has_few_options, is_report};
use super::{Model, is_anycast_or_far, opens};
use std::net::IpAddr;

/// Whether this is an echo request or reply.
fn is_ping(packet: &Packet) -> bool {
    matches!(packet.icmp4(), Some(0 | 8)) || matches!(packet.icmp6(), Some(128 | 129))
}

/// Whether a frame goes to everybody on the link.
pub(super) fn is_to_all(frame: &Reading) -> bool {
    frame.dst[0] & 1 != 0
}

impl Model<'_> {
    /// The other containers on the sender's link.
    pub(super) fn siblings(&self) -> Vec<Place> {
        self.world.children().map(|(place, _)| place).filter(|place| *place != self.me).collect()
    }

    /// Whether the frame leaves by the wire. In mode `bridge` one to another container or the device does not.
    pub(super) fn leaves(&self, frame: &Reading) -> bool {
        let near = self.siblings().iter().any(|place| frame.dst == self.world.host(*place).mac);
        !self.world.policy.link.has_device_if() || !near && Some(frame.dst) != self.world.device_if
    }

    /// ARP and neighbour discovery (to `dst`) of its own address: neighbours get it whatever the rules say.
    pub(super) fn link_matter_of_child(&self, frame: &Reading, dst: Option<IpAddr>, usual: bool) -> Judgement {
        let why = "part of having a link";
        let mut said = Judgement::nobody("what is for somebody on the device does not leave it");
        let (all, lan) = (is_to_all(frame), self.world.lan.mac);
        if self.leaves(frame) {
            said.lets(Place::Lan, usual && (all || frame.dst == lan), why);
        }
        if self.world.policy.link.has_device_if() {
            for place in self.siblings() {
                let host = self.world.host(place);
                let to_it = frame.dst == host.mac;
                if all || to_it {
                    said.lets(place, usual && to_it && dst.is_none_or(|dst| host.has(dst)), why);
                }
            }
            said.may(Place::Device, why);
        }
        said
    }

    pub(super) fn of_child(&mut self, frame: &Reading, packet: &Packet, discovery: bool) -> Judgement {
        let Packet { dst, .. } = *packet;
        if discovery && packet.hops == 255 {
            return self.link_matter_of_child(frame, Some(dst), packet.plain && has_few_options(packet));
        }
        let mut said = Judgement::nobody("a packet for somebody else");
        if packet.is_error() {
            let near = self.world.policy.link.has_device_if();
            let all = self.siblings().into_iter().chain([Place::Device]).filter(|_| near).chain([Place::Lan]);
            all.for_each(|place| said.may(place, "an error about a flow that may be"));
            return said;
        }
        if matches!(packet.transport, Transport::Icmp { .. }) && !is_ping(packet) && !is_report(packet) {
            return Judgement::nobody("of ICMP, a container sends ping and errors only");
        }
        if world::is_group(dst) {
            self.group_of_child(frame, packet, &mut said);
            return said;
        }
        let end = match self.world.end(dst) {
            // On this link it is another host's.
            End::Container(to) if !self.world.is_child(to) && world::is_link_local(dst) => End::Stranger(dst),
            end => end,
        };
        if self.may_reach(end, packet) {
            self.open(packet);
            let known = !self.world.is_in_pool(dst) && matches!(end, End::Stranger(_));
            let usual = packet.plain && opens(packet) && frame.dst == self.world.lan.mac;
            if self.leaves(frame) {
                let real = self.world.lan.has(dst) || self.world.out.has(dst) || dst == world::WORLD.0;
                said.lets(Place::Lan, usual && known && real, "it may send there by the wire");
            }
        } else if self.leaves(frame) {
            // Where a link does not forward, no anycast address is local to it.
            let anycast = end == End::Device && is_anycast_or_far(self, dst);
            // Where the switch has brought another container a connection that is denied now, its last packet may have opened
            // a flow.
            let reset = self.world.policy.link == Link::Macvlan(Mode::Vepa) && self.was_open(packet);
            if self.answers(packet) || reset || anycast && self.may_reach(End::Stranger(dst), packet) {
                said.may(Place::Lan, "it may answer a flow from outside, or nobody has the address");
            }
        }
        if !self.world.policy.link.has_device_if() {
            return said;
        }
        match end {
            End::Container(to) if self.world.is_child(to) && to != self.me => {
                self.sibling(frame, packet, to, &mut said)
            }
            End::Device => self.device_of_child(frame, packet, &mut said),
            _ => {}
        }
        said
    }

    /// To a group: on the wire it is a packet to the world, and another container gets it only where a rule says so. The
    /// device never does.
    fn group_of_child(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        let report = is_report(packet);
        if self.leaves(frame) && (report || self.may_reach(End::Stranger(packet.dst), packet)) {
            let near = packet.dst.is_multicast() || pool::is_on_lan(packet.dst);
            let plain = packet.plain && near && opens(packet) && is_to_all(frame);
            said.lets(Place::Lan, plain, "a group of the link");
        }
        if !self.world.policy.link.has_device_if() {
            return;
        }
        for place in self.siblings() {
            let to_it = is_to_all(frame) || frame.dst == self.world.host(place).mac;
            if to_it && (report || self.rules_allow(End::Container(self.me), place, packet)) {
                self.answered_by(packet, place);
                said.may(place, "a group, and a rule allows it");
            }
        }
    }

    /// Whether a rule says that a packet may reach a container.
    pub(super) fn rules_allow(&self, from: End, to: Place, packet: &Packet) -> bool {
        let port = packet.ports().map(|(_, to)| to);
        self.world.policy.rules_say(from, End::Container(to), packet.proto, port) == Some(true)
    }

    fn sibling(&mut self, frame: &Reading, packet: &Packet, to: Place, said: &mut Judgement) {
        if frame.dst != self.world.host(to).mac {
            return;
        }
        if self.may_reach(End::Container(to), packet) {
            said.lets(to, packet.plain && opens(packet), "containers of the pool reach each other");
        } else if self.answers(packet) || self.may_follow_a_server(packet, to) {
            said.may(to, "it may answer a flow of the other's");
        } else {
            said.say(to, Verdict::MustNot, "a rule denies it");
        }
    }

    /// Whether the last packet of a server that answered under an earlier policy may have opened a flow.
    fn may_follow_a_server(&self, packet: &Packet, to: Place) -> bool {
        to == Place::B && packet.ports().is_some_and(|(_, to)| SERVERS.contains(&to))
    }

    /// Link-local addresses do not pass between containers and device.
    fn device_of_child(&mut self, frame: &Reading, packet: &Packet, said: &mut Judgement) {
        if Some(frame.dst) != self.world.device_if {
            return;
        }
        if world::is_link_local(packet.src) || world::is_link_local(packet.dst) {
            return said.say(Place::Device, Verdict::MustNot, "link-local addresses do not pass to the device");
        }
        if self.may_reach(End::Device, packet) {
            let plain = packet.plain && opens(packet) && !is_anycast_or_far(self, packet.dst);
            let near = pool::is_on_lan(packet.dst);
            said.lets(Place::Device, plain && near, "it may reach the device");
        } else if self.answers(packet) {
            said.may(Place::Device, "it may answer a flow of the device's");
        } else {
            said.say(Place::Device, Verdict::MustNot, "neither host_access nor a rule opens it");
        }
    }
}
