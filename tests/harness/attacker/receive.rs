//! The sockets that record what arrives: packet sockets on the links of containers and hosts, and raw IP sockets of the
//! device. A raw socket gets exactly what is delivered locally (raw(7)).

use super::lab::Lab;
use super::{Place, mark, reading};
use crate::Namespace;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Size of each socket's queue in bytes: many times a batch.
const ROOM: libc::c_int = 32 << 20;
/// `PACKET_IGNORE_OUTGOING` (kernel 4.20).
const IGNORE_OUTGOING: libc::c_int = 23;
const ALL: u16 = 0x0003;
const ARP: u16 = 0x0806;
/// The EtherTypes that `generate` sends, tags, and what the kernel takes for 802.3 frames (`ETH_P_802_3`, `ETH_P_802_2`).
const TYPES: [u16; 12] = [0x0800, 0x86dd, ARP, 0x8847, 0x88cc, 0x8863, 0x0842, 0x0600, 0x8100, 0x88a8, 1, 4];

/// Protocols that the device has a raw socket for: those that `generate` sends.
const PROTOCOLS: [u8; 13] = [1, 2, 4, 6, 17, 41, 47, 50, 89, 103, 132, 136, 253];
const PROTOCOLS6: [u8; 13] = [4, 6, 17, 41, 47, 50, 58, 59, 89, 103, 132, 136, 253];

/// What a socket's data begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Frame,
    Ipv4,
    /// The payload alone, of this protocol.
    Ipv6(u8),
}

/// A frame's mark that was seen at a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub place: Place,
    pub number: u32,
    /// Type of the ICMP or ICMPv6 message with the mark: it may be an error that quotes the frame.
    pub icmp: Option<u8>,
}

/// All sockets.
pub(crate) struct Receivers(Vec<(Place, View, OwnedFd)>);

impl Receivers {
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        let mut all = Vec::new();
        let ends = [(Place::A, &lab.a.ns), (Place::B, &lab.b.ns)].into_iter();
        let ends = ends.chain(lab.d.as_ref().map(|d| (Place::D, &d.ns)));
        for (place, ns) in ends {
            // The programs of a macvlan interface are on the interface itself.
            let types = if lab.d.is_none() { &[ALL][..] } else { &TYPES };
            for kind in types {
                all.push((place, View::Frame, packets(ns, Some("eth0"), *kind)?));
            }
        }
        for (place, ns) in [(Place::C, &lab.c.ns), (Place::Out, &lab.out), (Place::Lan, &lab.lan)] {
            all.push((place, View::Frame, packets(ns, Some("eth0"), ALL)?));
        }
        let device = &lab.device.ns;
        // With a protocol of its own the socket gets what the programs on the link have passed on. One for all
        // protocols would get frames before the programs run.
        all.push((Place::Device, View::Frame, packets(device, None, ARP)?));
        for proto in PROTOCOLS {
            all.push((Place::Device, View::Ipv4, raw(device, libc::AF_INET, proto)?));
        }
        for proto in PROTOCOLS6 {
            all.push((Place::Device, View::Ipv6(proto), raw(device, libc::AF_INET6, proto)?));
        }
        Ok(Self(all))
    }

    /// Calls `each` for everything that has arrived so far.
    pub(crate) fn drain(&self, mut each: impl FnMut(Seen)) -> Result<()> {
        let mut buffer = vec![0u8; 65_536];
        for (place, view, fd) in &self.0 {
            loop {
                match take(fd, &mut buffer) {
                    // The device's stack drops what is for another host.
                    Ok((_, true)) if *place == Place::Device => {}
                    Ok((length, _)) => {
                        let bytes = &buffer[..length];
                        let icmp = view.icmp(bytes);
                        if let Some(number) = mark::last(bytes) {
                            each(Seen { place: *place, number, icmp });
                        }
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(why) => return Err(why).with_context(|| format!("receiver at {place:?}")),
                }
            }
        }
        Ok(())
    }
}

impl View {
    fn icmp(self, bytes: &[u8]) -> Option<u8> {
        match self {
            Self::Frame => icmp_of(bytes),
            Self::Ipv4 => {
                let head = usize::from(bytes.first()? & 0xf) * 4;
                (*bytes.get(9)? == reading::ICMP).then(|| bytes.get(head).copied()).flatten()
            }
            Self::Ipv6(proto) => (proto == reading::ICMP6).then(|| bytes.first().copied()).flatten(),
        }
    }
}

/// Whether a socket of the device gets what is in the frame, if the device's stack accepts it.
pub(crate) fn hears(frame: &[u8]) -> bool {
    match reading::read(frame).map(|reading| reading.content) {
        Some(reading::Content::Ip(packet)) if packet.src.is_ipv4() => PROTOCOLS.contains(&packet.proto),
        Some(reading::Content::Ip(packet)) => PROTOCOLS6.contains(&packet.proto),
        _ => true,
    }
}

/// Type of the ICMP message in a frame.
pub(crate) fn icmp_of(frame: &[u8]) -> Option<u8> {
    match reading::read(frame)?.content {
        reading::Content::Ip(packet) => packet.icmp4().or_else(|| packet.icmp6()),
        _ => None,
    }
}

/// The next thing in a socket's queue: its length, and whether it is a frame for another host.
fn take(fd: &OwnedFd, buffer: &mut [u8]) -> nix::Result<(usize, bool)> {
    // SAFETY: a C struct of integers; all zero is a value of it.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&from)).map_err(|_| Errno::EINVAL)?;
    let (data, room) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the pointers and sizes describe the buffer and the address; the kernel writes no more than fits.
    let length = unsafe { libc::recvfrom(fd.as_raw_fd(), data, room, 0, (&raw mut from).cast(), &raw mut size) };
    let length = usize::try_from(length).map_err(|_| Errno::last())?;
    let is_frame = i32::from(from.sll_family) == libc::AF_PACKET;
    Ok((length, is_frame && from.sll_pkttype == libc::PACKET_OTHERHOST))
}

fn packets(ns: &Namespace, link: Option<&str>, protocol: u16) -> Result<OwnedFd> {
    ns.run(|| {
        let fd = socket(libc::AF_PACKET, libc::c_int::from(protocol.to_be()))?;
        set(&fd, libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
        // SAFETY: a C struct of integers; all zero is a value of it.
        let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        at.sll_family = u16::try_from(libc::AF_PACKET)?;
        at.sll_protocol = protocol.to_be();
        at.sll_ifindex = link.map(nix::net::if_::if_nametoindex).transpose()?.map_or(Ok(0), i32::try_from)?;
        let size = libc::socklen_t::try_from(size_of_val(&at))?;
        // SAFETY: the pointer and the size describe the whole address.
        let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const at).cast(), size) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        Ok(fd)
    })
}

fn raw(ns: &Namespace, family: libc::c_int, proto: u8) -> Result<OwnedFd> {
    ns.run(|| socket(family, proto.into())).with_context(|| format!("raw socket, protocol {proto}"))
}

fn socket(family: libc::c_int, protocol: libc::c_int) -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: creates a socket; nothing else owns the descriptor.
    let fd = unsafe {
        let fd = libc::socket(family, kind, protocol);
        ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)?;
    Ok(fd)
}

fn set(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value))?;
    // SAFETY: the option's value is an int, and the size says so.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    ensure!(done == 0, "socket option {name}: {}", std::io::Error::last_os_error());
    Ok(())
}
