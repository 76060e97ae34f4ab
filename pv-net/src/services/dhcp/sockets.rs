//! The sockets of one bridge. Messages come and go by a packet socket: a client that has no address yet can be sent to by no
//! other (RFC 2131 section 4.1), and only this one says which MAC a frame came from. A UDP socket that reads nothing holds
//! the port beside it, so that no other server of the device takes it, and nobody is told that it is closed.

use crate::dhcp::message::SERVER_PORT;
use crate::dhcp::{Reply, frame};
use crate::model::Mac;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes that wait in a socket.
const WAITING: usize = 1 << 20;
/// A packet that is larger is none that is read.
pub(super) const LARGEST: usize = 2048;

/// The sockets of a bridge.
pub(super) struct Sockets {
    /// IPv4 packets to the server's port.
    pub messages: AsyncFd<OwnedFd>,
    /// ARP packets that answer a probe.
    pub answers: AsyncFd<OwnedFd>,
    _port: OwnedFd,
    link: u32,
    /// The bridge's MAC.
    mac: Mac,
}

/// A packet that came.
pub(super) struct Came {
    /// Its length.
    pub len: usize,
    /// The MAC in its frame.
    pub mac: Mac,
}

impl Sockets {
    /// Those of the bridge with this index.
    ///
    /// # Errors
    /// The kernel's: that another program has the port, say.
    pub fn open(link: u32) -> io::Result<Self> {
        let port = hold_port(link)?;
        let (messages, mac) = packet_socket(link, libc::ETH_P_IP, &to_server())?;
        let (answers, _) = packet_socket(link, libc::ETH_P_ARP, &answer_to_probe())?;
        let wait = |socket| {
            // SAFETY: the socket owns its descriptor, and is neither changed nor taken out.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
        };
        Ok(Self { messages: wait(messages)?, answers: wait(answers)?, _port: port, link, mac })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, from: Ipv4Addr, reply: &Reply) -> io::Result<()> {
        let packet = frame::write(from, reply.to, &reply.message).ok_or(io::ErrorKind::InvalidInput)?;
        send(self.messages.get_ref(), self.link, libc::ETH_P_IP, reply.mac, &packet)
    }

    /// Asks who has `address`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn probe(&self, address: Ipv4Addr) -> io::Result<()> {
        let packet = frame::probe(self.mac, address);
        send(self.answers.get_ref(), self.link, libc::ETH_P_ARP, Mac([0xff; 6]), &packet)
    }
}

/// Reads a packet into `buffer`; `None` for one that is not to this device.
///
/// # Errors
/// The kernel's.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Came>> {
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
    let is_ours = matches!(from.sll_pkttype, libc::PACKET_HOST | libc::PACKET_BROADCAST);
    let [a, b, c, d, e, f, ..] = from.sll_addr;
    Ok((is_ours && from.sll_halen == 6).then_some(Came { len, mac: Mac([a, b, c, d, e, f]) }))
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

fn send(socket: &OwnedFd, link: u32, protocol: libc::c_int, to: Mac, packet: &[u8]) -> io::Result<()> {
    let to = address(link, protocol, to)?;
    // SAFETY: packet and address are whole, and their lengths are told.
    let sent = unsafe {
        let (to, size) = (std::ptr::from_ref(&to).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_DONTWAIT, to, size)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket for packets of one protocol that `filter` lets pass, and the link's MAC.
fn packet_socket(link: u32, protocol: libc::c_int, filter: &[libc::sock_filter]) -> io::Result<(OwnedFd, Mac)> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: creates a socket, that takes nothing in yet: its protocol is none.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has just been made.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    attach(&socket, filter)?;
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

/// A socket that has the server's port on the bridge, and reads nothing.
fn hold_port(link: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None::<SockProtocol>)?;
    let name = nix::net::if_::if_indextoname(link)?;
    setsockopt(&socket, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
    attach(&socket, &[statement(libc::BPF_RET | libc::BPF_K, 0)])?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, SERVER_PORT))?;
    Ok(socket)
}

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Lets UDP to the server's port pass; of a packet in pieces, none.
fn to_server() -> [libc::sock_filter; 9] {
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET};
    [
        statement(BPF_LD | BPF_B | BPF_ABS, 9),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 17, 0, 6),
        statement(BPF_LD | BPF_H | BPF_ABS, 6),
        jump(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, 4, 0),
        statement(BPF_LDX | BPF_B | BPF_MSH, 0),
        statement(BPF_LD | BPF_H | BPF_IND, 2),
        jump(BPF_JMP | BPF_JEQ | BPF_K, SERVER_PORT as u32, 0, 1),
        statement(BPF_RET | BPF_K, LARGEST as u32),
        statement(BPF_RET | BPF_K, 0),
    ]
}

/// Lets an ARP answer pass that is to nobody's address: only a probe is answered so, and nothing else wakes the server.
fn answer_to_probe() -> [libc::sock_filter; 6] {
    use libc::{BPF_ABS, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    [
        statement(BPF_LD | BPF_H | BPF_ABS, 6),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 3),
        statement(BPF_LD | BPF_W | BPF_ABS, 24),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
        statement(BPF_RET | BPF_K, LARGEST as u32),
        statement(BPF_RET | BPF_K, 0),
    ]
}

fn attach(socket: &OwnedFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is whole and its length is told; the kernel copies it.
    let result = unsafe {
        let (program, size) = (std::ptr::from_ref(&program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
