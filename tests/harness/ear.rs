//! Records what arrives at the stack of a namespace, or on one of its links.

use crate::Namespace;
use crate::raw::RawSocket;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A recorder of packets.
pub struct Ear {
    name: String,
    kind: Kind,
}

enum Kind {
    Stack(Vec<OwnedFd>),
    Link(RawSocket, [u8; 6]),
}

impl Ear {
    /// Records what the namespace's own stack accepts: raw sockets (raw(7)) get a copy of everything that is delivered
    /// locally, after reassembly and whatever its port.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn stack(ns: &Namespace) -> Result<Self> {
        let protocols = [(libc::AF_INET, 1), (libc::AF_INET, 2), (libc::AF_INET, 6), (libc::AF_INET, 17)];
        let protocols = protocols.into_iter().chain([58, 6, 17].map(|proto| (libc::AF_INET6, proto)));
        let sockets = ns.run(|| protocols.map(|(family, proto)| raw(family, proto)).collect::<Result<_>>())?;
        Ok(Self { name: format!("the stack of {}", ns.name()), kind: Kind::Stack(sockets) })
    }

    /// Records what arrives on a link, but not what is sent there.
    ///
    /// # Errors
    /// When the link does not exist.
    pub fn link(ns: &Namespace, link: &str) -> Result<Self> {
        let (socket, mac) = (RawSocket::open(ns, link)?, ns.mac(link)?);
        enlarge(socket.fd())?;
        Ok(Self { name: format!("{link} of {}", ns.name()), kind: Kind::Link(socket, mac) })
    }

    /// The link or namespace that it records.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has arrived since the last call: frames from a link, packets or messages from a stack.
    ///
    /// # Errors
    /// When a socket cannot be read.
    pub fn heard(&self) -> Result<Vec<Vec<u8>>> {
        match &self.kind {
            Kind::Stack(sockets) => {
                let mut all = Vec::new();
                for socket in sockets {
                    all.extend(queued(socket)?);
                }
                Ok(all)
            }
            Kind::Link(socket, own) => {
                let all = socket.queued()?;
                Ok(all.into_iter().filter(|f| f.get(6..12) != Some(own)).collect())
            }
        }
    }
}

fn raw(family: libc::c_int, proto: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: a system call without pointers; the descriptor is owned as soon as it exists.
    let fd = unsafe {
        let fd = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, proto);
        anyhow::ensure!(fd >= 0, "raw socket: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    enlarge(&fd)?;
    Ok(fd)
}

/// Enlarges the socket's queue for what arrives while nobody reads: a flood must not displace a packet.
pub(crate) fn enlarge(socket: &OwnedFd) -> Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &(64 << 20)).context("SO_RCVBUFFORCE")
}

/// Everything in a socket's queue.
pub(crate) fn queued(socket: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let (mut all, mut buffer) = (Vec::new(), vec![0u8; 65_536]);
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => all.push(buffer[..n].to_vec()),
            Err(Errno::EAGAIN) => return Ok(all),
            // The link was set down, or is gone. The kernel reports that once, and what came before is still in the
            // queue.
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(why) => return Err(why).context("recv"),
        }
    }
}
