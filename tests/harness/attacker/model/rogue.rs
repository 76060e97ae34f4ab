//! The judgement of what a container with `CAP_NET_ADMIN` sends by a further macvlan that it has made: it reaches nobody but
//! its own container, and speaks for none. By the wire it can send in the device's name.

use super::super::Place;
use super::super::judgement::Judgement;
use super::super::reading::{Content, Packet, Reading, Transport};
use super::container::is_report;
use super::wire::claimed;
use super::{Model, datagram};
use std::net::IpAddr;

impl Model<'_> {
    pub(super) fn of_rogue(&mut self, frame: &Reading) -> Judgement {
        let mut said = Judgement::nobody("a further macvlan reaches nobody, and speaks for none");
        let devices = self.world.gateways.iter().chain([&self.world.uplink]).any(|host| host.mac == frame.src);
        let owner = self.world.children().find(|(_, host)| host.mac == frame.src).map(|(place, _)| place);
        if let Some(owner) = owner {
            if self.is_noted(frame, owner) {
                self.me = owner;
                said = self.of_container(frame).unwrap_or_else(Judgement::nobody).weakened();
                self.me = Place::Rogue;
            }
        } else if devices && !self.is_amiss(frame) {
            said.may(Place::Lan, "in the name of the device");
        }
        said.may(Place::A, "its own container");
        said
    }

    /// Whether a frame in the name of a container may belong to what that container sends: to a flow of its own, or to what
    /// makes a link work. What the attacking container itself may send to groups, its further macvlan may send too.
    fn is_noted(&self, frame: &Reading, owner: Place) -> bool {
        let Content::Ip(packet) = &frame.content else { return true };
        match (&packet.transport, packet.fragment) {
            (Transport::Later, Some(fragment)) => [owner, Place::Rogue].into_iter().any(|from| {
                let datagram = datagram(from, packet.src, packet.dst, fragment.id, packet.proto);
                self.memory.first.contains_key(&datagram)
            }),
            _ => {
                let of_link = matches!(packet.icmp6(), Some(133 | 135 | 136)) || is_report(packet) || packet.is_error();
                let flow = self.tuple(packet).is_some_and(|tuple| self.memory.opened.contains(&tuple));
                of_link
                    || flow
                    || self.answers(packet)
                    || owner == Place::A && super::super::world::is_group(packet.dst)
            }
        }
    }

    /// Whether a frame in the name of the device is one that the device would not send: it speaks for a container, or names
    /// another link-layer address.
    fn is_amiss(&self, frame: &Reading) -> bool {
        let is_child = |addr: IpAddr| self.world.children().any(|(_, host)| addr == host.v4 || addr == host.v6);
        match &frame.content {
            _ if frame.tags.iter().any(|id| *id != 0) => false,
            Content::Ip(packet) => {
                is_child(packet.src) || claimed(packet).is_some_and(is_child) || names_another(packet, frame.src)
            }
            Content::Arp(arp) => arp.sender.0 != frame.src || is_child(arp.sender.1.into()),
            Content::Unreadable(_) => true,
            Content::Other => false,
        }
    }
}

/// Whether neighbour discovery has an option with another link-layer address than `mac`.
fn names_another(packet: &Packet, mac: [u8; 6]) -> bool {
    let Transport::Icmp { body, .. } = &packet.transport else { return false };
    let head = match packet.icmp6() {
        Some(133) => 0,
        Some(134) => 8,
        Some(135 | 136) => 16,
        _ => return false,
    };
    let mut options = body.get(head..).unwrap_or_default();
    while let [option, units, rest @ ..] = options
        && *units != 0
    {
        if packet.hops == 255 && matches!(option, 1 | 2) && !rest.starts_with(&mac) {
            return true;
        }
        options = options.get(usize::from(*units) * 8..).unwrap_or_default();
    }
    false
}
