//! The messages between daemon and broker: one packet for a request, one for its answer, with open files beside the
//! text.

use crate::kernel::netns::{NetnsError, NetnsId};
use crate::model::NetnsRef;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Most bytes of a message: a path has up to 4,096 bytes, each of which JSON may write as six.
const LONGEST: usize = 32 * 1024;
/// Most files beside one message.
const FILES: usize = 4;

/// A request of the daemon. It comes with a socket on which the answer is to be sent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Open the network namespace that this leads to.
    Open(NetnsRef),
    /// Who has the socket with this inode.
    Owner(u64),
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The namespace is open. With the message come, in this order, its file, an rtnetlink socket inside it, and the
    /// directory `net/ipv6/conf` of its sysctls if it has IPv6.
    Opened {
        /// The namespace's identity.
        id: NetnsId,
    },
    /// The namespace cannot be opened.
    Refused(Refusal),
    /// The process that has the socket, as `NAME (PID)`; `None` when no process has it any more.
    Owner(Option<String>),
}

/// A [`NetnsError`] without its path, which the daemon knows.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// [`NetnsError::Open`], with the errno.
    Open(i32),
    /// [`NetnsError::NotNetns`].
    NotNetns,
    /// [`NetnsError::Own`].
    Own,
    /// [`NetnsError::Enter`], with the errno.
    Enter(i32),
    /// [`NetnsError::Busy`].
    Busy,
}

impl From<NetnsError> for Refusal {
    fn from(e: NetnsError) -> Self {
        let number = |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO);
        match e {
            NetnsError::Open { source, .. } => Self::Open(number(source)),
            NetnsError::NotNetns { .. } => Self::NotNetns,
            NetnsError::Own { .. } => Self::Own,
            NetnsError::Enter(source) | NetnsError::Broker(source) => Self::Enter(number(source)),
            NetnsError::Slow { .. } => Self::Enter(libc::ETIMEDOUT),
            NetnsError::Busy { .. } => Self::Busy,
        }
    }
}

impl Refusal {
    /// The error for the request about `path`.
    pub(super) fn about(self, path: PathBuf) -> NetnsError {
        match self {
            Self::Open(number) => NetnsError::Open { path, source: io::Error::from_raw_os_error(number) },
            Self::NotNetns => NetnsError::NotNetns { path },
            Self::Own => NetnsError::Own { path },
            Self::Enter(number) => NetnsError::Enter(io::Error::from_raw_os_error(number)),
            Self::Busy => NetnsError::Busy { path },
        }
    }
}

/// Sends `message` and `files`, without waiting for room in the socket.
///
/// # Errors
/// The error of `sendmsg`: `EPIPE` when the other end is closed, `EAGAIN` when there is no room.
/// The kernel's: `EPIPE` when nobody is at the other end any more.
pub(super) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
    Ok(())
}

/// Receives a message and the files beside it; `None` when the other end is closed. When a message is refused, all of
/// its files are closed.
///
/// # Errors
/// The error of `recvmsg`. Also when the message is too long, has more files than a message may have, or more than this
/// process can open.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let (length, files, flags) = loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(message) => {
                // The files are owned before the message is judged, so that they are closed in every case.
                let mut files = Vec::new();
                for part in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(some) = part {
                        files.extend(some);
                    }
                }
                break (message.bytes, files, message.flags);
            }
        }
    };
    if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::other("a message that is too long, or has too many files"));
    }
    if length == 0 && files.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length])?;
    Ok(Some((message, files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_message_and_its_files_come_across_whole() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        let path = "/\u{1}".repeat(2_048);
        let request = Request::Open(NetnsRef::Path(path.into()));
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        send(a.as_fd(), &request, &[writer.as_fd()]).expect("sent");
        send(a.as_fd(), &Request::Owner(7), &[]).expect("sent");
        drop((a, writer));
        let (first, mut files) = receive::<Request>(b.as_fd()).expect("received").expect("a message");
        assert_eq!((first, files.len()), (request, 1));
        std::fs::File::from(files.remove(0)).write_all(b"through it").expect("written");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through it");
        let (second, files) = receive::<Request>(b.as_fd()).expect("received").expect("a message");
        assert_eq!((second, files.len()), (Request::Owner(7), 0));
        assert!(receive::<Request>(b.as_fd()).expect("the end").is_none());
    }

    /// A pipe tells that: its reading end sees the end when no copy of the writing end is open any more.
    #[test]
    fn files_of_a_message_that_is_not_taken_are_closed() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let too_many = [writer.as_fd(); FILES + 3];
        let too_long = Request::Open(NetnsRef::Path("x".repeat(LONGEST).into()));
        for (message, files) in [(&Request::Owner(7), &too_many[..]), (&too_long, &too_many[..1])] {
            send(a.as_fd(), message, files).expect("sent");
            receive::<Request>(b.as_fd()).expect_err("it is not taken");
        }
        send(a.as_fd(), &"no request", &too_many[..1]).expect("sent");
        receive::<Request>(b.as_fd()).expect_err("it is not taken");
        drop(writer);
        assert_eq!(reader.read(&mut [0]).expect("nobody else has it"), 0);
    }

    #[test]
    fn refusals_name_what_was_asked_for() {
        for (error, want) in [
            (NetnsError::NotNetns { path: "/a".into() }, "namespace /b: not a network namespace"),
            (NetnsError::Own { path: "/a".into() }, "namespace /b: this is the device's own namespace"),
        ] {
            assert_eq!(Refusal::from(error).about("/b".into()).to_string(), want);
        }
        let gone = NetnsError::Open { path: "/a".into(), source: io::Error::from_raw_os_error(libc::ESRCH) };
        assert!(Refusal::from(gone).about("/b".into()).is_gone());
    }
}
