//! Who may reach whom: the judgement of a frame, by the place that sends it.

mod child;
mod container;
mod port;
mod rogue;
mod uplink;
mod wire;

use super::judgement::Judgement;
use super::reading::{self, Content, Packet, Transport};
use super::{Place, World};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why a frame must arrive nowhere.
type Refused = &'static str;

/// Addresses, protocol and ports, as the sender of the flow's first packet has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ports: (u16, u16),
}

impl Tuple {
    fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, proto: self.proto, ports: (self.ports.1, self.ports.0) }
    }
}

/// The fragments of one datagram that one place sends.
type Datagram = (Place, IpAddr, IpAddr, u32, u8);

/// What the model remembers of the frames that it has judged. It outlives a change of policy, as the device's flows do.
#[derive(Default)]
pub(crate) struct Memory {
    /// Flows that may exist.
    opened: HashSet<Tuple>,
    /// The destinations of flows that may exist, by protocol, with the port and without (`None`).
    peers: HashSet<(IpAddr, u8, Option<u16>)>,
    /// The destination addresses by which one source port of a sender reaches a port of a container: the container's
    /// own address, and those where the port is published.
    entrances: HashMap<(Place, u16, IpAddr, u16, u8), HashSet<IpAddr>>,
    /// The judgements of first fragments.
    first: HashMap<Datagram, Judgement>,
    /// The datagram whose first fragment was the last frame.
    begun: Option<Datagram>,
}

/// The model of one policy.
pub(crate) struct Model<'w> {
    world: &'w World,
    memory: &'w mut Memory,
    /// Who sends.
    me: Place,
}

impl<'w> Model<'w> {
    pub(crate) fn new(world: &'w World, memory: &'w mut Memory) -> Self {
        Self { world, memory, me: Place::A }
    }

    /// The judgement of a frame that `from` sends.
    pub(crate) fn judge(&mut self, from: Place, frame: &[u8]) -> Judgement {
        let Some(reading) = reading::read(frame) else { return Judgement::nobody("no whole Ethernet header") };
        self.me = from;
        let said = match from {
            Place::Out => self.of_uplink(&reading),
            Place::Lan if self.world.policy.link.is_macvlan() => Ok(self.of_wire(&reading)),
            Place::Lan => self.of_port(&reading),
            Place::Rogue => Ok(self.of_rogue(&reading)),
            _ => self.of_container(&reading),
        };
        let mut said = said.unwrap_or_else(Judgement::nobody);
        self.memory.begun = None;
        if let Content::Ip(Packet { src, dst, proto, fragment: Some(fragment), .. }) = reading.content {
            let datagram = datagram(from, src, dst, fragment.id, proto);
            if fragment.is_first() {
                // The device's sockets get the datagram only when the later fragments arrive.
                said = said.weakened_at(Place::Device);
                // With two datagrams of the same id a later fragment may belong to either.
                self.memory.begun = Some(datagram);
                let before = self.memory.first.remove(&datagram);
                self.memory.first.insert(datagram, before.map_or_else(|| said.clone(), |before| said.either(&before)));
            }
        }
        said
    }

    fn tuple(&self, packet: &Packet) -> Option<Tuple> {
        let Packet { src, dst, proto, .. } = *packet;
        let ports = match packet.transport {
            // An echo request and its reply have the same identifier.
            Transport::Icmp { id, .. } => (id, id),
            // On a LAN, where nothing is translated, other protocols have flows too.
            Transport::Other if self.world.policy.link.is_macvlan() => (0, 0),
            _ => packet.ports()?,
        };
        Some(Tuple { src, dst, proto, ports })
    }

    fn later(&self, packet: &Packet) -> Result<Judgement, Refused> {
        let id = packet.fragment.map_or(0, |f| f.id);
        let datagram = datagram(self.me, packet.src, packet.dst, id, packet.proto);
        let found = self.memory.first.get(&datagram).cloned();
        let said = found.ok_or("a later fragment whose first one was not allowed")?;
        // First fragments of other datagrams may have replaced this one in the device's table since.
        Ok(if packet.plain && self.memory.begun == Some(datagram) { said } else { said.weakened() })
    }

    /// Remembers that the packet's flow may exist.
    fn open(&mut self, packet: &Packet) {
        if let Some(tuple) = self.tuple(packet) {
            self.memory.opened.insert(tuple);
            self.memory.peers.insert((tuple.dst, tuple.proto, Some(tuple.ports.1)));
            self.memory.peers.insert((tuple.dst, tuple.proto, None));
        }
    }

    /// Whether this port of the sender reaches the container's port by one address only. Two flows by two addresses
    /// would look the same to the container: one of them is refused as long as the other exists.
    fn enters(&mut self, packet: &Packet, to: Place, port: u16) -> bool {
        let from = packet.ports().map_or(0, |(from, _)| from);
        let known = self.memory.entrances.entry((to, port, packet.src, from, packet.proto)).or_default();
        known.insert(packet.dst);
        known.len() == 1
    }

    /// Whether a segment may belong to a connection that an earlier policy allowed: the container then gets a reset.
    fn was_open(&self, packet: &Packet) -> bool {
        let goes_on = matches!(packet.transport, Transport::Tcp { .. }) && !opens(packet);
        goes_on && self.tuple(packet).is_some_and(|tuple| self.memory.opened.contains(&tuple))
    }

    /// Remembers that a container or the device may answer, by a flow of its own, what was sent to a group.
    fn answered_by(&mut self, packet: &Packet, place: Place) {
        let Some(tuple) = self.tuple(packet) else { return };
        let host = if place == Place::Device { self.gateway() } else { *self.world.host(place) };
        for src in [host.v4.into(), host.v6.into(), host.link_local.into()] {
            self.memory.opened.insert(Tuple { src, ..tuple.reversed() });
        }
    }

    /// Whether a packet may belong to a flow that somebody else opened.
    fn answers(&self, packet: &Packet) -> bool {
        self.tuple(packet).is_some_and(|tuple| self.memory.opened.contains(&tuple.reversed()))
    }

    /// Whether an ICMP error goes to the sender of the packet that it quotes, and that packet belongs to a flow that
    /// may exist.
    fn quotes_known(&self, packet: &Packet) -> bool {
        let Transport::Icmp { body, .. } = &packet.transport else { return false };
        let Some(quote) = quoted(body).filter(|quote| quote.src == packet.dst) else { return false };
        let opened = &self.memory.opened;
        // The model does not know which port masquerade gave the flow.
        let masqueraded = self.world.is_device(quote.src)
            && self.memory.peers.contains(&(quote.dst, quote.proto, Some(quote.ports.1)));
        masqueraded || opened.contains(&quote) || opened.contains(&quote.reversed())
    }
}

/// What the fragments of one datagram have in common. The protocol counts in IPv4 (RFC 791); in IPv6 later fragments
/// may name another protocol (RFC 8200 section 4.5).
fn datagram(from: Place, src: IpAddr, dst: IpAddr, id: u32, proto: u8) -> Datagram {
    (from, src, dst, id, if src.is_ipv4() { proto } else { 0 })
}

/// The judgement of a frame with a tag of a VLAN that does not exist here. A packet socket for ARP sees it; the IP
/// stack does not.
fn of_other_vlan(frame: &reading::Reading) -> Result<Judgement, Refused> {
    let why = "of a VLAN that nobody here is in";
    let mut said = Judgement::nobody(why);
    match frame.content {
        Content::Arp(_) | Content::Unreadable(reading::ARP_UNREADABLE) => said.may(Place::Device, why),
        _ => {}
    }
    Ok(said)
}

/// Whether `dst` is an address of the device other than those of its gateways and its uplink, such as an anycast
/// address: whether a kernel accepts it depends on the kernel.
fn is_anycast_or_far(model: &Model, dst: IpAddr) -> bool {
    let usual = model.world.gateways.iter().chain([&model.world.uplink]);
    !usual.into_iter().any(|host| dst == host.v4 || dst == host.v6)
}

/// ICMP that containers may neither send nor get: it redirects traffic, or asks for data of a host (RFC 6918).
fn unasked(packet: &Packet) -> bool {
    matches!(packet.icmp4(), Some(5 | 13..=18)) || matches!(packet.icmp6(), Some(137..=140))
}

/// Whether a packet opens a flow, or belongs to a protocol without connections.
fn opens(packet: &Packet) -> bool {
    match &packet.transport {
        Transport::Tcp { flags, .. } => flags & 0x17 == 0x02,
        Transport::Udp { .. } => true,
        Transport::Icmp { kind, .. } => matches!((packet.proto, kind), (reading::ICMP, 8) | (reading::ICMP6, 128)),
        _ => false,
    }
}

/// The tuple of a packet that an ICMP error quotes.
fn quoted(body: &[u8]) -> Option<Tuple> {
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let (src, dst, proto, at): (IpAddr, IpAddr, u8, usize) = match body.first()? >> 4 {
        4 => {
            let octets: [u8; 8] = body.get(12..20)?.try_into().ok()?;
            let [a, b, c, d, e, f, g, h] = octets;
            let length = usize::from(body[0] & 0xf) * 4;
            (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into(), *body.get(9)?, length)
        }
        6 => {
            let address = |at: usize| -> Option<Ipv6Addr> {
                let octets: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
                Some(octets.into())
            };
            (address(8)?.into(), address(24)?.into(), *body.get(6)?, 40)
        }
        _ => return None,
    };
    let ports = match proto {
        reading::ICMP | reading::ICMP6 => (port(at + 4)?, port(at + 4)?),
        _ => (port(at)?, port(at + 2)?),
    };
    Some(Tuple { src, dst, proto, ports })
}
