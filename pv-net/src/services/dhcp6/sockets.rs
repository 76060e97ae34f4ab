//! The sockets of a pool's server. Messages come and go by a packet socket: only this one says which MAC a frame came from,
//! and it sends to a client without a look-up of that client's MAC. A UDP socket that reads nothing holds the port beside
//! it, so that no other server of the device takes it, and joins the group that clients send to.

use crate::dhcp6::SERVER_PORT;
use crate::dhcp6::frame::{self, SERVERS};
use crate::kernel::packet::{self, LARGEST, jump, statement};
use crate::model::Mac;
use crate::services::link_local::{Lost, link_local};
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// The sockets of a bridge.
pub(super) struct Sockets {
    /// IPv6 packets to the servers' port.
    pub messages: AsyncFd<OwnedFd>,
    _port: OwnedFd,
    link: u32,
    own: Ipv6Addr,
}

impl Sockets {
    /// Opens them on the bridge with the index `link`.
    pub fn open(link: u32) -> Result<Self, Lost> {
        let own = link_local(link)?;
        let port = hold_port(link)?;
        let (messages, _) = packet::socket(link, libc::ETH_P_IPV6, &to_server())?;
        Ok(Self { messages: packet::readable(messages)?, _port: port, link, own })
    }

    /// Sends a reply to a client, which has this MAC.
    pub fn answer(&self, message: &[u8], to: Ipv6Addr, mac: Mac) -> io::Result<()> {
        let packet = frame::write(self.own, to, message).ok_or(io::ErrorKind::InvalidInput)?;
        packet::send(self.messages.get_ref(), self.link, libc::ETH_P_IPV6, mac, &packet)
    }
}

/// A socket that has the servers' group and port on the bridge, and reads nothing.
fn hold_port(link: u32) -> Result<OwnedFd, Lost> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None::<SockProtocol>)?;
    let name = if_indextoname(link)?;
    setsockopt(&socket, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
    // A server of the device on all addresses may run beside it, if that sets the option too.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    packet::filter(&socket, &[statement(libc::BPF_RET | libc::BPF_K, 0)])?;
    bind(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(SERVERS, SERVER_PORT, 0, link)))?;
    rustix::net::sockopt::set_ipv6_add_membership(&socket, &SERVERS, link).map_err(io::Error::from)?;
    Ok(socket)
}

/// Lets UDP to the servers' port pass that is right behind the IPv6 header. Clients send nothing else.
fn to_server() -> [libc::sock_filter; 6] {
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET};
    [
        statement(BPF_LD | BPF_B | BPF_ABS, 6),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 17, 0, 3),
        statement(BPF_LD | BPF_H | BPF_ABS, 42),
        jump(BPF_JMP | BPF_JEQ | BPF_K, SERVER_PORT as u32, 0, 1),
        statement(BPF_RET | BPF_K, LARGEST as u32),
        statement(BPF_RET | BPF_K, 0),
    ]
}
