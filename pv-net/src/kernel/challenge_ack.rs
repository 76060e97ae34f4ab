//! Telling a container that a connection of its own has ended, of which nobody knows the sequence numbers.
//!
//! A bare ACK out of its window makes its stack answer with the right ones (RFC 9293 section 3.10.7.4, RFC 5961). That
//! answer is a segment of no flow, and the data plane turns it into the RST that the stack takes.

use crate::kernel::bpf::Ended;
use pv_net_common::ip_proto::IPPROTO_TCP as TCP;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ACK: u8 = 0x10;
/// Half the numbers apart: a window is less than that, so that one of the two is outside.
const SEQUENCES: [u32; 2] = [0, 1 << 31];

/// Sends it to each end of a TCP flow in `ended`.
///
/// # Errors
/// The kernel's; a link that is gone is none.
pub fn provoke(ended: &[Ended]) -> io::Result<()> {
    let ended: Vec<_> = ended.iter().filter(|e| e.proto == u32::from(TCP)).collect();
    if ended.is_empty() {
        return Ok(());
    }
    // SAFETY: creates a socket, that takes nothing in: its protocol is none.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has just been made.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for end in ended {
        for sequence in SEQUENCES {
            send(&socket, end.link, &segment(end, sequence))?;
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
        // The link is gone or down, or has no room: the container learns by its next segment.
        Some(libc::ENXIO | libc::ENODEV | libc::ENETDOWN | libc::EAGAIN | libc::ENOBUFS) => Ok(()),
        _ => Err(why),
    }
}

/// An Ethernet frame with a bare ACK for the container.
fn segment(end: &Ended, sequence: u32) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(end.peer.port().to_be_bytes());
    tcp.extend(end.own.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend([5 << 4, ACK, 0, 0, 0, 0, 0, 0]);
    let (kind, header, addresses) = header(end.peer, end.own, tcp.len());
    let check = checksum(&[&addresses, &[0, TCP], &(tcp.len() as u16).to_be_bytes(), &tcp]);
    tcp[16..18].copy_from_slice(&check);
    [&end.mac[..], &end.gateway_mac, &kind, &header, &tcp].concat()
}

/// EtherType, IP header and the addresses alone.
fn header(src: SocketAddr, dst: SocketAddr, payload: usize) -> ([u8; 2], Vec<u8>, Vec<u8>) {
    if let (IpAddr::V4(src), IpAddr::V4(dst)) = (src.ip(), dst.ip()) {
        let addresses = [src.octets(), dst.octets()].concat();
        let length = (20 + payload as u16).to_be_bytes();
        let mut header = [&[0x45, 0][..], &length, &[0, 0, 0x40, 0, 64, TCP, 0, 0], &addresses].concat();
        let check = checksum(&[&header]);
        header[10..12].copy_from_slice(&check);
        return ([8, 0], header, addresses);
    }
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let addresses = [octets(src.ip()), octets(dst.ip())].concat();
    let length = (payload as u16).to_be_bytes();
    let header = [&[0x60, 0, 0, 0][..], &length, &[TCP, 64], &addresses].concat();
    ([0x86, 0xdd], header, addresses)
}

/// RFC 1071, over parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|p| p.chunks(2)).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_checksums_are_right() {
        for (peer, own) in [("192.0.2.9:443", "10.0.3.2:40001"), ("[2001:db8::9]:443", "[fd00::2]:40001")] {
            let (peer, own) = (peer.parse().expect("address"), own.parse().expect("address"));
            let end = Ended { link: 1, proto: 6, peer, own, gateway_mac: [2; 6], mac: [4; 6] };
            let frame = segment(&end, 1 << 31);
            let (ip, addresses) = if own.is_ipv4() { (34, 26..34) } else { (54, 22..54) };
            assert_eq!(frame.len(), ip + 20);
            if own.is_ipv4() {
                assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
            }
            assert_eq!(checksum(&[&frame[addresses], &[0, TCP, 0, 20], &frame[ip..]]), [0, 0]);
        }
    }
}
