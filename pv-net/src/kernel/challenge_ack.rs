//! Tells a container that a TCP connection has ended, without knowing its sequence numbers.
//!
//! A bare ACK outside the receive window makes the container's stack answer with an ACK that has the right numbers (RFC
//! 9293 section 3.10.7.4, RFC 5961). That answer belongs to no flow, so the data plane answers it with an RST, which
//! the stack accepts.

use crate::kernel::bpf::Ended;
use etherparse::PacketBuilder;
use pv_net_common::ip_proto::IPPROTO_TCP as TCP;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// TTL or hop limit of the segments.
const HOPS: u8 = 64;
/// Two sequence numbers, half the number space apart: a window is smaller than that, so at least one is outside it.
const SEQUENCES: [u32; 2] = [0, 1 << 31];

/// Tells containers that their connections have ended. A container that cannot be told learns with its next segment.
pub fn tell(ended: &[Ended]) {
    if let Err(e) = provoke(ended) {
        tracing::warn!(error = %e, "containers not told of the connections that ended");
    }
}

/// Sends both segments to each end of a TCP flow in `ended`.
///
/// # Errors
/// When the packet socket cannot be made or written to. A link that is gone, down or out of buffers is no error.
pub fn provoke(ended: &[Ended]) -> io::Result<()> {
    let ended: Vec<_> = ended.iter().filter(|e| e.proto == u32::from(TCP)).collect();
    if ended.is_empty() {
        return Ok(());
    }
    // SAFETY: creates a socket. With protocol 0 it receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor has just been made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for end in ended {
        for sequence in SEQUENCES {
            send(&socket, end.link, &segment(end, sequence)?)?;
        }
    }
    Ok(())
}

fn send(socket: &OwnedFd, link: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: a C structure of integers; all zero is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(link).map_err(io::Error::other)?;
    // SAFETY: frame and address are whole, and their lengths are told.
    let sent = unsafe {
        let to = std::ptr::from_ref(&to).cast();
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length)
    };
    if sent >= 0 {
        return Ok(());
    }
    let why = io::Error::last_os_error();
    match why.raw_os_error() {
        // The link is gone or down, or its queue is full: the container learns by its next segment.
        Some(libc::ENXIO | libc::ENODEV | libc::ENETDOWN | libc::EAGAIN | libc::ENOBUFS) => Ok(()),
        _ => Err(why),
    }
}

/// An Ethernet frame with a bare ACK to the container.
fn segment(end: &Ended, sequence: u32) -> io::Result<Vec<u8>> {
    let frame = PacketBuilder::ethernet2(end.gateway_mac, end.mac);
    let frame = match (end.peer.ip(), end.own.ip()) {
        (IpAddr::V4(peer), IpAddr::V4(own)) => frame.ipv4(peer.octets(), own.octets(), HOPS),
        (peer, own) => frame.ipv6(octets(peer), octets(own), HOPS),
    };
    let frame = frame.tcp(end.peer.port(), end.own.port(), sequence, 0).ack(0);
    let mut bytes = Vec::with_capacity(frame.size(0));
    frame.write(&mut bytes, &[]).map_err(io::Error::other)?;
    Ok(bytes)
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of RFC 1071 over `parts`, each of even length.
    fn checksum(parts: &[&[u8]]) -> u16 {
        let words = parts.iter().flat_map(|p| p.chunks(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        !pv_net_common::csum::fold(words.sum())
    }

    #[test]
    fn both_checksums_are_right() {
        for (peer, own) in [("192.0.2.9:443", "10.0.3.2:40001"), ("[2001:db8::9]:443", "[fd00::2]:40001")] {
            let (peer, own) = (peer.parse().expect("address"), own.parse().expect("address"));
            let end = Ended { link: 1, proto: 6, peer, own, gateway_mac: [2; 6], mac: [4; 6] };
            let frame = segment(&end, 1 << 31).expect("a frame");
            let (ip, addresses) = if own.is_ipv4() { (34, 26..34) } else { (54, 22..54) };
            assert_eq!(frame.len(), ip + 20);
            if own.is_ipv4() {
                assert_eq!(checksum(&[&frame[14..34]]), 0);
            }
            assert_eq!(checksum(&[&frame[addresses], &[0, TCP, 0, 20], &frame[ip..]]), 0);
            let numbers = (&frame[ip + 4..ip + 8], frame[ip + 13]);
            assert_eq!(numbers, (&[0x80, 0, 0, 0][..], 0x10), "the sequence number, and ACK alone");
        }
    }
}
