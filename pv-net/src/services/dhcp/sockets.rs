//! The sockets of one bridge. Messages come and go by a packet socket: a client that has no address yet can be sent to
//! by no other (RFC 2131 section 4.1), and only this one says which MAC a frame came from. A UDP socket that reads
//! nothing holds the port beside it, so that no other server of the device takes it, and nobody is told that it is
//! closed.

use crate::dhcp::message::SERVER_PORT;
use crate::dhcp::{Reply, frame};
use crate::kernel::packet::{self, LARGEST, jump, statement};
use crate::model::Mac;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

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

impl Sockets {
    /// Those of the bridge with this index.
    ///
    /// # Errors
    /// The kernel's: that another program has the port, say.
    pub fn open(link: u32) -> io::Result<Self> {
        let port = hold_port(link)?;
        let (messages, mac) = packet::socket(link, libc::ETH_P_IP, &to_server())?;
        let (answers, _) = packet::socket(link, libc::ETH_P_ARP, &answer_to_probe())?;
        let (messages, answers) = (packet::readable(messages)?, packet::readable(answers)?);
        Ok(Self { messages, answers, _port: port, link, mac })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, from: Ipv4Addr, reply: &Reply) -> io::Result<()> {
        let packet = frame::write(from, reply.to, &reply.message).ok_or(io::ErrorKind::InvalidInput)?;
        packet::send(self.messages.get_ref(), self.link, libc::ETH_P_IP, reply.mac, &packet)
    }

    /// Asks who has `address`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn probe(&self, address: Ipv4Addr) -> io::Result<()> {
        let packet = frame::probe(self.mac, address);
        packet::send(self.answers.get_ref(), self.link, libc::ETH_P_ARP, Mac([0xff; 6]), &packet)
    }
}

/// A socket that has the server's port on the bridge, and reads nothing.
fn hold_port(link: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None::<SockProtocol>)?;
    let name = nix::net::if_::if_indextoname(link)?;
    setsockopt(&socket, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
    packet::filter(&socket, &[statement(libc::BPF_RET | libc::BPF_K, 0)])?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, SERVER_PORT))?;
    Ok(socket)
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
