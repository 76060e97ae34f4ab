//! The sockets of a pool's server: one receives what clients send to all servers, the other sends the replies.

use crate::dhcp6::{CLIENT_PORT, SERVER_PORT};
use crate::services::link_local::{Lost, link_local};
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, recvfrom, sendto, setsockopt, socket,
    sockopt,
};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// All servers and relay agents on a link (RFC 8415 section 7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The two sockets.
pub(super) struct Sockets {
    hears: AsyncFd<OwnedFd>,
    answers: OwnedFd,
    link: u32,
}

impl Sockets {
    /// Opens them on the bridge with the index `link`.
    pub fn open(link: u32) -> Result<Self, Lost> {
        let own = link_local(link)?;
        let hears = on(link)?;
        // A socket that is bound to the group receives no unicast, which clients must not send (RFC 8415 section 18.4).
        bind(hears.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(SERVERS, SERVER_PORT, 0, link)))?;
        rustix::net::sockopt::set_ipv6_add_membership(&hears, &SERVERS, link).map_err(io::Error::from)?;
        let answers = on(link)?;
        bind(answers.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(own, SERVER_PORT, 0, link)))?;
        // SAFETY: the socket owns its descriptor, and is neither changed nor taken out.
        let hears = unsafe { AsyncFd::register_with_interest(hears, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { hears, answers, link })
    }

    /// Waits for the next message; returns its length and sender. The length of one that does not fit `buffer` is 0.
    pub async fn hear(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddrV6)> {
        loop {
            let mut ready = self.hears.readable().await?;
            let read = |fd: &AsyncFd<OwnedFd>| recvfrom::<SockaddrIn6>(fd.as_raw_fd(), buffer).map_err(io::Error::from);
            if let Ok(heard) = ready.try_io(read) {
                let (len, from) = heard?;
                let from = from.map_or(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0), Into::into);
                return Ok((if len < buffer.len() { len } else { 0 }, from));
            }
        }
    }

    /// Sends a reply to the client port of `to`.
    pub fn answer(&self, message: &[u8], to: Ipv6Addr) -> io::Result<()> {
        let to = SockaddrIn6::from(SocketAddrV6::new(to, CLIENT_PORT, 0, self.link));
        sendto(self.answers.as_raw_fd(), message, &to, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn on(link: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None::<SockProtocol>)?;
    let name = if_indextoname(link)?;
    setsockopt(&socket, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
    // A server of the device on all addresses may run beside it, if that sets the option too.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    Ok(socket)
}
