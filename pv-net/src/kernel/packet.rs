//! Packet sockets (packet(7)) on a link: they say which MAC a frame came from, and send to one that has no address yet.

use crate::model::Mac;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// Bytes that wait in a socket.
const WAITING: usize = 1 << 20;
/// A packet that is larger is none that is read.
pub(crate) const LARGEST: usize = 2048;
/// Packets that are read before others have their turn.
const BATCH: usize = 64;
/// More packets than wait in a socket: what comes while they are read waits for the next time.
const ALL: usize = 4096;

/// A packet that came.
pub(crate) struct Came {
    /// Its length.
    pub len: usize,
    /// The MAC in its frame.
    pub mac: Mac,
}

/// Reads a packet into `buffer`; `None` for one that `wanted`, by the kernel's type of packet, does not want.
///
/// # Errors
/// The kernel's.
fn receive(socket: &OwnedFd, buffer: &mut [u8], wanted: fn(u8) -> bool) -> io::Result<Option<Came>> {
    // SAFETY: a C structure of integers; all zero is a value of it.
    let mut from: libc::sockaddr_ll = unsafe { zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: buffer and address are whole, and their lengths are told.
    let len = unsafe {
        let from = std::ptr::from_mut(&mut from).cast();
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            from,
            &mut size,
        )
    };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let [a, b, c, d, e, f, ..] = from.sll_addr;
    Ok((wanted(from.sll_pkttype) && from.sll_halen == 6).then_some(Came { len, mac: Mac([a, b, c, d, e, f]) }))
}

/// Whether a packet is to this device, or to a group.
const fn is_ours(kind: u8) -> bool {
    matches!(kind, libc::PACKET_HOST | libc::PACKET_BROADCAST | libc::PACKET_MULTICAST)
}

/// Whether a packet came from the link, whoever it is to.
const fn is_from_link(kind: u8) -> bool {
    is_ours(kind) || kind == libc::PACKET_OTHERHOST
}

fn address(link: u32, protocol: libc::c_int, mac: Mac) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: a C structure of integers; all zero is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = i32::try_from(link).map_err(io::Error::other)?;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac.0);
    Ok(address)
}

/// Sends a packet to the MAC `to` by the link with the index `link`.
///
/// # Errors
/// The kernel's.
pub(crate) fn send(socket: &OwnedFd, link: u32, protocol: libc::c_int, to: Mac, packet: &[u8]) -> io::Result<()> {
    let to = address(link, protocol, to)?;
    // SAFETY: packet and address are whole, and their lengths are told.
    let sent = unsafe {
        let (to, size) = (std::ptr::from_ref(&to).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_DONTWAIT, to, size)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket for packets of one protocol that `filter` lets pass, and the link's MAC.
///
/// # Errors
/// The kernel's.
pub(crate) fn socket(link: u32, protocol: libc::c_int, filter: &[libc::sock_filter]) -> io::Result<(OwnedFd, Mac)> {
    bound(libc::SOCK_DGRAM, link, protocol, filter)
}

/// The same for whole frames of all protocols, also those to MACs that are not the link's.
///
/// # Errors
/// The kernel's.
pub(crate) fn of_frames(link: u32, filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    // What a macvlan on the link takes away is seen by sockets of all protocols alone.
    Ok(bound(libc::SOCK_RAW, link, libc::ETH_P_ALL, filter)?.0)
}

fn bound(
    kind: libc::c_int,
    link: u32,
    protocol: libc::c_int,
    filter: &[libc::sock_filter],
) -> io::Result<(OwnedFd, Mac)> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: creates a socket, that takes nothing in yet: its protocol is none.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has just been made.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    self::filter(&socket, filter)?;
    setsockopt(&socket, sockopt::RcvBuf, &WAITING)?;
    let own = address(link, protocol, Mac([0; 6]))?;
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is whole, and its length is told.
    if unsafe { libc::bind(fd, std::ptr::from_ref(&own).cast(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut own = own;
    // SAFETY: the address is whole, and its length is told.
    if unsafe { libc::getsockname(fd, std::ptr::from_mut(&mut own).cast(), &mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let [a, b, c, d, e, f, ..] = own.sll_addr;
    Ok((socket, Mac([a, b, c, d, e, f])))
}

/// Registers a socket whose packets are waited for.
///
/// # Errors
/// The kernel's.
pub(crate) fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the socket owns its descriptor, and is neither changed nor taken out.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// What is in a socket's queue, as far as that is a few: others must have their turn.
pub(crate) fn read_all(ready: &mut AsyncFdReadyGuard<'_, OwnedFd>) -> Vec<(Vec<u8>, Came)> {
    read_some(ready, is_ours)
}

/// The same of a socket for frames, those to others included.
pub(crate) fn read_frames(ready: &mut AsyncFdReadyGuard<'_, OwnedFd>) -> Vec<(Vec<u8>, Came)> {
    read_some(ready, is_from_link)
}

fn read_some(ready: &mut AsyncFdReadyGuard<'_, OwnedFd>, wanted: fn(u8) -> bool) -> Vec<(Vec<u8>, Came)> {
    let (mut came, mut buffer) = (Vec::new(), [0; LARGEST]);
    for _ in 0..BATCH {
        match ready.try_io(|socket: &AsyncFd<OwnedFd>| receive(socket.get_ref(), &mut buffer, wanted)) {
            Ok(Ok(Some(packet))) => came.push((buffer[..packet.len.min(LARGEST)].to_vec(), packet)),
            Ok(Ok(None)) => {}
            // The link went down; it is up again, or the server ends with its pool.
            Ok(Err(e)) => tracing::debug!(error = %e, "no packet read"),
            Err(_) => break,
        }
    }
    came
}

/// All that waits in a socket, which may not be ready.
pub(crate) fn read_now(socket: &OwnedFd) -> Vec<(Vec<u8>, Came)> {
    let mut buffer = [0; LARGEST];
    let mut came = Vec::new();
    for _ in 0..ALL {
        match receive(socket, &mut buffer, is_ours) {
            Ok(Some(packet)) => came.push((buffer[..packet.len.min(LARGEST)].to_vec(), packet)),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    came
}

/// An instruction of a filter that is no jump.
pub(crate) const fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

/// An instruction of a filter that is a jump.
pub(crate) const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Lets only those packets into the socket that `filter` lets pass.
///
/// # Errors
/// The kernel's.
pub(crate) fn filter(socket: &OwnedFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is whole and its length is told; the kernel copies it.
    let result = unsafe {
        let (program, size) = (std::ptr::from_ref(&program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an option of packet sockets.
///
/// # Errors
/// The kernel's.
pub(crate) fn option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is whole, and its size is told.
    let result = unsafe {
        let (value, size) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
