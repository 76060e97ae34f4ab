//! The broker's side: a process with one thread, which forks a child for each request.

use super::message::{Refusal, Reply, Request, receive, send};
use super::turns::{NAMESPACES, OWNERS};
use crate::kernel::privilege::{self, BROKER, BROKER_CALLS};
use crate::kernel::{listeners, netns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, alarm, close, fork};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most children at a time. The daemon asks for fewer at a time; the rest allows for children that are just ending.
const CHILDREN: usize = 2 * (NAMESPACES + OWNERS);

/// The process's name in `ps`.
pub const NAME: &str = "pv-net-broker";

/// Runs the broker on the socket that is its standard input, until the other end is closed.
///
/// # Errors
/// When it could not give up its other privileges, or its standard input is no such socket.
pub fn run() -> io::Result<()> {
    rustix::thread::set_name(&std::ffi::CString::new(NAME)?)?;
    // Ctrl-C reaches both processes. The broker must not end before the daemon.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
        // SAFETY: an ignored signal runs no code of this process.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    // SAFETY: the default action runs no code of this process.
    unsafe { signal(Signal::SIGALRM, SigHandler::SigDfl) }?;
    privilege::confine(BROKER, &BROKER_CALLS).map_err(io::Error::other)?;
    let mut children = Children::default();
    serve(io::stdin().as_fd(), |request, to| children.answer(&request, &to))
}

/// Passes each request to `start`, with the socket for its answer.
pub(super) fn serve(
    socket: BorrowedFd<'_>,
    mut start: impl FnMut(Request, OwnedFd) -> Result<(), Refusal>,
) -> io::Result<()> {
    while let Some((request, mut files)) = receive::<Request>(socket)? {
        let to = files.pop().ok_or_else(|| io::Error::other("a request without a socket for its answer"))?;
        let back = to.try_clone()?;
        if let Err(refusal) = start(request, to) {
            // The asker may have given up.
            let _ = send(back.as_fd(), &Reply::Refused(refusal), &[]);
        }
    }
    Ok(())
}

/// The children that are at work. Each is the reading end of a pipe whose writing end the child holds until it ends.
#[derive(Default)]
struct Children(Vec<PipeReader>);

impl Children {
    /// Forgets the children that have ended.
    fn sweep(&mut self) {
        let is_alive = |child: &PipeReader| {
            let mut end = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
            poll(&mut end, PollTimeout::ZERO).is_ok_and(|ended| ended == 0)
        };
        self.0.retain(is_alive);
    }

    /// Answers in a child process, which an alarm ends when it takes too long.
    fn answer(&mut self, request: &Request, to: &OwnedFd) -> Result<(), Refusal> {
        self.sweep();
        if self.0.len() >= CHILDREN {
            return Err(Refusal::Busy);
        }
        let failed = |number: Option<i32>| Refusal::Enter(number.unwrap_or(libc::EIO));
        let (ended, lives) = io::pipe().map_err(|e| failed(e.raw_os_error()))?;
        // SAFETY: the broker has one thread, so no lock is held by another thread in the child's copy of the memory.
        match unsafe { fork() }.map_err(|e| failed(Some(e as i32)))? {
            ForkResult::Parent { .. } => {
                drop(lives);
                self.0.push(ended);
                Ok(())
            }
            ForkResult::Child => {
                // A little longer than the daemon waits, which reports the time-out itself.
                alarm::set(u32::try_from(netns::PATIENCE.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
                // The child must not keep this socket open, so that the daemon sees the broker's end at once.
                let _ = close(libc::STDIN_FILENO);
                answer(request, to);
                // SAFETY: no destructor of the parent may run in the child.
                unsafe { libc::_exit(0) }
            }
        }
    }
}

/// Carries out a request. Afterwards the calling thread is in another namespace.
pub(super) fn answer(request: &Request, to: &OwnedFd) {
    let done = match request {
        Request::Open(reference) => match netns::enter(reference) {
            Ok(inside) => send(to.as_fd(), &Reply::Opened { id: inside.id }, &inside.files()),
            Err(e) => send(to.as_fd(), &Reply::Refused(e.into()), &[]),
        },
        Request::Owner(inode) => send(to.as_fd(), &Reply::Owner(listeners::owner(*inode)), &[]),
    };
    // The asker may have given up.
    drop(done);
}
