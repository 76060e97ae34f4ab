//! Sends and receives whole frames by a packet socket.

use crate::Namespace;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, recv, send, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A packet socket on one link (packet(7)).
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens a socket on `link` inside `ns`.
    ///
    /// # Errors
    /// When the link does not exist.
    pub fn open(ns: &Namespace, link: &str) -> Result<Self> {
        Self::bound(ns, Some(link), libc::ETH_P_ALL)
    }

    /// Opens a socket on `link` inside `ns` that receives what comes in with this EtherType.
    ///
    /// # Errors
    /// When the link does not exist.
    pub fn open_for(ns: &Namespace, link: &str, kind: u16) -> Result<Self> {
        let socket = Self::bound(ns, Some(link), kind.into())?;
        crate::ear::enlarge(&socket.fd)?;
        Ok(socket)
    }

    /// Opens a socket that sees all links inside `ns`, also those that are made later.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open_all(ns: &Namespace) -> Result<Self> {
        Self::bound(ns, None, libc::ETH_P_ALL)
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The frame that waits, if there is one: its length in `buffer`.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn take(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => Ok(Some(n)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn bound(ns: &Namespace, link: Option<&str>, kind: i32) -> Result<Self> {
        ns.run(|| {
            // Made without a protocol: with one, the socket would receive from all links until it is bound.
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            let index_of = |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| name.to_owned());
            let index = link.map(index_of).transpose()?.unwrap_or(0);
            let mut address: libc::sockaddr_ll = unsafe_zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = u16::try_from(kind)?.to_be();
            address.sll_ifindex = i32::try_from(index)?;
            bind(fd.as_raw_fd(), &link_address(&address))?;
            Ok(Self { fd })
        })
    }

    /// Has what it sends left out queues and programs at the link's egress (`PACKET_QDISC_BYPASS`, packet(7)).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave_out_programs(&self) -> Result<()> {
        let on: libc::c_int = 1;
        let length = u32::try_from(size_of_val(&on))?;
        // SAFETY: the kernel reads `length` bytes of `on`, which lives until the call returns.
        let done = unsafe {
            let value = (&raw const on).cast();
            libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, value, length)
        };
        ensure!(done == 0, "PACKET_QDISC_BYPASS: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the link refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
        Ok(())
    }

    /// All frames that wait to be received.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn queued(&self) -> Result<Vec<Vec<u8>>> {
        crate::ear::queued(&self.fd)
    }

    /// The first frame that `wanted` accepts within `patience`.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let patience = crate::patience(patience);
        let start = Instant::now();
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))?;
        let mut buffer = vec![0u8; 65_536];
        loop {
            // Read the clock before the queue: what has come in time is seen, however late this thread runs.
            let late = start.elapsed() >= patience;
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) if wanted(&buffer[..n]) => return Ok(Some(buffer[..n].to_vec())),
                Err(nix::errno::Errno::EAGAIN) if late => return Ok(None),
                // The time is over on a link that always has frames.
                Ok(_) if start.elapsed() > patience * 2 + Duration::from_secs(1) => return Ok(None),
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn unsafe_zeroed() -> libc::sockaddr_ll {
    // SAFETY: a plain C struct of integers; all zero is a value of it.
    unsafe { std::mem::zeroed() }
}

fn link_address(address: &libc::sockaddr_ll) -> nix::sys::socket::LinkAddr {
    use nix::sys::socket::SockaddrLike;
    let len = u32::try_from(size_of::<libc::sockaddr_ll>()).ok();
    // SAFETY: points to a whole sockaddr_ll, and the length says so.
    let made = unsafe { nix::sys::socket::LinkAddr::from_raw(std::ptr::from_ref(address).cast(), len) };
    made.expect("AF_PACKET")
}
