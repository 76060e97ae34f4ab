//! Who may reach whom: a frame's judgement by the place that it comes from.

mod container;
mod port;
mod uplink;

use super::judgement::Judgement;
use super::reading::{self, Content, Packet, Transport};
use super::{Place, World};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What refuses a frame for everybody.
type Refused = &'static str;

/// Addresses, protocol and ports, as the opener sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ports: (u16, u16),
}

impl Tuple {
    fn of(packet: &Packet) -> Option<Self> {
        let Packet { src, dst, proto, .. } = *packet;
        let ports = match packet.transport {
            // An echo and its answer have the same.
            Transport::Icmp { id, .. } => (id, id),
            _ => packet.ports()?,
        };
        Some(Self { src, dst, proto, ports })
    }

    fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, proto: self.proto, ports: (self.ports.1, self.ports.0) }
    }
}

/// The fragments of one datagram that one place sends.
type Datagram = (Place, IpAddr, IpAddr, u32, u8);

/// What the model remembers of frames that it has judged; the device remembers flows over a change of policy too.
#[derive(Default)]
pub(crate) struct Memory {
    /// Flows that may be.
    opened: HashSet<Tuple>,
    /// Who was spoken to, by which protocol and at which port; and at any.
    peers: HashSet<(IpAddr, u8, Option<u16>)>,
    /// The addresses by which one port of a sender's speaks to a container's: its own, and those where it is published.
    entrances: HashMap<(Place, u16, IpAddr, u16, u8), HashSet<IpAddr>>,
    /// What was said of first fragments.
    first: HashMap<Datagram, Judgement>,
    /// The datagram that the last frame was the first fragment of.
    begun: Option<Datagram>,
}

/// The model of one policy.
pub(crate) struct Model<'w> {
    world: &'w World,
    memory: &'w mut Memory,
}

impl<'w> Model<'w> {
    pub(crate) fn new(world: &'w World, memory: &'w mut Memory) -> Self {
        Self { world, memory }
    }

    /// What is to become of a frame that `from` sends.
    pub(crate) fn judge(&mut self, from: Place, frame: &[u8]) -> Judgement {
        let Some(reading) = reading::read(frame) else { return Judgement::nobody("no whole Ethernet header") };
        let said = match from {
            Place::Out => self.of_uplink(&reading),
            Place::Lan => self.of_port(&reading),
            _ => self.of_container(&reading),
        };
        let mut said = said.unwrap_or_else(Judgement::nobody);
        self.memory.begun = None;
        if let Content::Ip(Packet { src, dst, proto, fragment: Some(fragment), .. }) = reading.content {
            let datagram = datagram(from, src, dst, fragment.id, proto);
            if fragment.is_first() {
                // Whole only with what follows: the device's sockets see it then, if ever.
                said = said.weakened_at(Place::Device);
                // Two datagrams of one number: either may be meant by what follows.
                self.memory.begun = Some(datagram);
                let before = self.memory.first.remove(&datagram);
                self.memory.first.insert(datagram, before.map_or_else(|| said.clone(), |before| said.either(&before)));
            }
        }
        said
    }

    fn later(&self, from: Place, packet: &Packet) -> Result<Judgement, Refused> {
        let id = packet.fragment.map_or(0, |f| f.id);
        let datagram = datagram(from, packet.src, packet.dst, id, packet.proto);
        let found = self.memory.first.get(&datagram).cloned();
        let said = found.ok_or("a later fragment whose first one was not allowed")?;
        // Other first fragments may have taken its place since.
        Ok(if packet.plain && self.memory.begun == Some(datagram) { said } else { said.weakened() })
    }

    /// Remembers that a flow may be.
    fn open(&mut self, packet: &Packet) {
        if let Some(tuple) = Tuple::of(packet) {
            self.memory.opened.insert(tuple);
            self.memory.peers.insert((tuple.dst, tuple.proto, Some(tuple.ports.1)));
            self.memory.peers.insert((tuple.dst, tuple.proto, None));
        }
    }

    /// Whether this sender's port speaks to the container's by one address only. The container could not tell apart two
    /// flows by two: one of them is refused, for as long as the other lives.
    fn enters(&mut self, packet: &Packet, to: Place, port: u16) -> bool {
        let from = packet.ports().map_or(0, |(from, _)| from);
        let known = self.memory.entrances.entry((to, port, packet.src, from, packet.proto)).or_default();
        known.insert(packet.dst);
        known.len() == 1
    }

    /// Whether a segment may be of a connection that another policy has allowed: it becomes the container's reset.
    fn was_open(&self, packet: &Packet) -> bool {
        let goes_on = matches!(packet.transport, Transport::Tcp { .. }) && !opens(packet);
        goes_on && Tuple::of(packet).is_some_and(|tuple| self.memory.opened.contains(&tuple))
    }

    /// Remembers that a container or the device may answer what was sent to a group: by a flow of its own.
    fn answered_by(&mut self, packet: &Packet, place: Place) {
        let Some(tuple) = Tuple::of(packet) else { return };
        let host = *self.world.host(place);
        for src in [host.v4.into(), host.v6.into(), host.link_local.into()] {
            self.memory.opened.insert(Tuple { src, ..tuple.reversed() });
        }
    }

    /// Whether a packet may belong to a flow that somebody else opened.
    fn answers(&self, packet: &Packet) -> bool {
        Tuple::of(packet).is_some_and(|tuple| self.memory.opened.contains(&tuple.reversed()))
    }

    /// Whether an ICMP error is to the sender of what it quotes, and that is of a flow that may be.
    fn quotes_known(&self, packet: &Packet) -> bool {
        let Transport::Icmp { body, .. } = &packet.transport else { return false };
        let Some(quote) = quoted(body).filter(|quote| quote.src == packet.dst) else { return false };
        let opened = &self.memory.opened;
        // The port that masquerade gave a flow is not known here.
        let masqueraded = self.world.is_device(quote.src)
            && self.memory.peers.contains(&(quote.dst, quote.proto, Some(quote.ports.1)));
        masqueraded || opened.contains(&quote) || opened.contains(&quote.reversed())
    }
}

/// What fragments of one datagram have in common: the protocol in IPv4 (RFC 791); in IPv6 later ones may tell another one
/// (RFC 8200 section 4.5).
fn datagram(from: Place, src: IpAddr, dst: IpAddr, id: u32, proto: u8) -> Datagram {
    (from, src, dst, id, if src.is_ipv4() { proto } else { 0 })
}

/// A frame of a VLAN that nobody here is in. A tap for ARP sees it; the stack does not.
fn of_other_vlan(frame: &reading::Reading) -> Result<Judgement, Refused> {
    let why = "of a VLAN that nobody here is in";
    let mut said = Judgement::nobody(why);
    match frame.content {
        Content::Arp(_) | Content::Unreadable(reading::ARP_UNREADABLE) => said.may(Place::Device, why),
        _ => {}
    }
    Ok(said)
}

/// Local, but not where everybody finds it: what a kernel makes of it is its own matter.
fn is_anycast_or_far(model: &Model, dst: IpAddr) -> bool {
    let usual = model.world.gateways.iter().chain([&model.world.uplink]);
    !usual.into_iter().any(|host| dst == host.v4 || dst == host.v6)
}

/// ICMP that is kept from and off containers: it leads traffic elsewhere, or asks for what is nobody's business (RFC 6918).
fn unasked(packet: &Packet) -> bool {
    matches!(packet.icmp4(), Some(5 | 13..=18)) || matches!(packet.icmp6(), Some(137..=140))
}

/// What opens a connection, or needs none.
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
