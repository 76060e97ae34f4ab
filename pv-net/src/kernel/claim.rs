//! The claim of a network namespace: one daemon's, whatever directories it has.
//!
//! Two daemons in one namespace would give the same links programs of different pins, and remove each other's bridges. The
//! claim is an abstract Unix socket, whose name belongs to the network namespace and is free again as soon as the process
//! has ended (`unix(7)`). Any user can take such a name. So the kernel is asked whose the socket is (`SO_PEERCRED`), and
//! another user's keeps no daemon from starting.

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::geteuid;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// The name of the socket.
const NAME: &str = "pv-net-daemon";

/// Why a namespace cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error("another daemon runs in this network namespace (process {0})")]
    Taken(i32),
    /// The socket could not be made.
    #[error("claim the network namespace: {0}")]
    Io(#[from] io::Error),
}

/// A claimed namespace, as long as this is held.
#[derive(Debug)]
pub struct Claim {
    _socket: Option<UnixListener>,
}

/// Claims the calling thread's network namespace.
///
/// # Errors
/// When a process of the same user has claimed it, or no socket can be made.
pub fn network_namespace() -> Result<Claim, ClaimError> {
    claim(NAME)
}

fn claim(name: &str) -> Result<Claim, ClaimError> {
    match bind(name) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
        bound => return Ok(Claim { _socket: Some(bound?) }),
    }
    let why = match holder(name) {
        Ok((user, process)) if user == geteuid().as_raw() => return Err(ClaimError::Taken(process)),
        Ok((user, process)) => format!("user {user} has the name @{name} (process {process})"),
        // It has ended meanwhile, or it does not listen, which a daemon always does.
        Err(why) => match bind(name) {
            Ok(socket) => return Ok(Claim { _socket: Some(socket) }),
            Err(_) => format!("somebody has the name @{name}, and does not say who: {why}"),
        },
    };
    tracing::warn!(%why, "network namespace not claimed: a second daemon in it would not be noticed");
    Ok(Claim { _socket: None })
}

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// The user and the process that listen by this name. Where the queue of connections is full this fails at once.
fn holder(name: &str) -> Result<(u32, i32), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(asking.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let of = getsockopt(&asking, PeerCredentials)?;
    Ok((of.uid(), of.pid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(of: &str) -> String {
        format!("pv-net-test-{of}-{}", std::process::id())
    }

    #[test]
    fn a_second_claim_names_the_first_until_that_ends() {
        let name = name("twice");
        let first = claim(&name).expect("free");
        let process = i32::try_from(std::process::id()).expect("a number");
        assert!(matches!(claim(&name), Err(ClaimError::Taken(by)) if by == process));
        drop(first);
        assert!(claim(&name).expect("free again")._socket.is_some());
    }

    /// Whoever asks often enough and is never answered fills the queue; that must not hold a start.
    #[test]
    fn a_name_that_says_nothing_holds_no_daemon() {
        let name = name("full");
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let _full = UnixListener::bind_addr(&address).expect("free");
        let mut askers = Vec::new();
        let filled = loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let asker = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
            let to = UnixAddr::new_abstract(name.as_bytes()).expect("a name");
            match connect(asker.as_raw_fd(), &to) {
                Ok(()) if askers.len() < 10_000 => askers.push(asker),
                other => break other,
            }
        };
        assert_eq!(filled, Err(Errno::EAGAIN));
        assert!(claim(&name).expect("not refused")._socket.is_none());
    }
}
