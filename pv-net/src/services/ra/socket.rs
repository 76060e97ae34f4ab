//! A raw socket on a pool's bridge, which receives solicitations and sends advertisements.

use crate::ra::solicitation::SOLICITATION;
use crate::services::link_local::{Lost, link_local};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, recvmsg, sendto,
    setsockopt, socket, sockopt,
};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// All routers on a link.
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// All hosts on a link.
pub(super) const HOSTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The hop limit that advertisements must have: hosts ignore forwarded ones (RFC 4861 section 6.1.2).
const HOPS: i32 = 255;

/// A received message.
pub(super) struct Heard {
    pub len: usize,
    pub from: Ipv6Addr,
    pub hops: u8,
}

/// The socket. It sends from the bridge's link-local address, since hosts accept no other (RFC 4861 section 6.1.2).
pub(super) struct Socket {
    fd: AsyncFd<OwnedFd>,
    link: u32,
}

impl Socket {
    /// Opens one on the bridge with the index `link`.
    pub fn open(link: u32) -> Result<Self, Lost> {
        let name = if_indextoname(link)?;
        let own = link_local(link)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
        // The filter comes first: until the socket is bound to the bridge, it receives from all links.
        only_solicitations(&fd)?;
        setsockopt(&fd, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
        setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOPS)?;
        setsockopt(&fd, sockopt::Ipv6Ttl, &HOPS)?;
        bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(own, 0, 0, link)))?;
        rustix::net::sockopt::set_ipv6_add_membership(&fd, &ROUTERS, link).map_err(io::Error::from)?;
        // SAFETY: the socket owns its descriptor, and is neither changed nor taken out.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { fd, link })
    }

    /// Sends a message to a host on the link, or to all.
    pub fn send(&self, message: &[u8], to: Ipv6Addr) -> io::Result<()> {
        let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, self.link));
        sendto(self.fd.as_raw_fd(), message, &to, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    /// Waits for the next message.
    pub async fn hear(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(heard) = ready.try_io(|fd| read(fd.get_ref(), buffer)) {
                return heard;
            }
        }
    }
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Heard> {
    let mut space = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(buffer)];
    let read = recvmsg::<SockaddrIn6>(fd.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let hops = read.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let from = read.address.map_or(Ipv6Addr::UNSPECIFIED, |a| a.ip());
    // No host sends a solicitation that is longer than the buffer.
    let len = if read.flags.contains(MsgFlags::MSG_TRUNC) { 0 } else { read.bytes };
    Ok(Heard { len, from, hops: hops.unwrap_or(0) })
}

/// Makes the kernel drop all other ICMPv6 messages for this socket (RFC 3542 section 3.2), so that pings do not wake
/// the daemon.
fn only_solicitations(fd: &OwnedFd) -> io::Result<()> {
    const ICMP6_FILTER: libc::c_int = 1;
    // One bit for each type; a set bit blocks it.
    let mut blocked = [u32::MAX; 8];
    blocked[usize::from(SOLICITATION / 32)] &= !(1 << (SOLICITATION % 32));
    // SAFETY: the filter is whole, and its size is told.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            blocked.as_ptr().cast(),
            size_of_val(&blocked) as libc::socklen_t,
        )
    };
    Ok(Errno::result(set).map(drop)?)
}
