//! Runs a runtime's program that runs another one inside a container, and takes what that says. At its time limit both are
//! killed: the end of the runtime's program alone would leave the other one running.

use super::family::{Family, Member, Row};
use super::process::{Process, kill_group, kill_process, rows};
use crate::runtime::start::{Inside, RuntimeError, Stream, Take};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that are taken at once.
const CHUNK: usize = 1 << 16;
/// Most bytes that are taken after the program's end: what it has left behind may go on writing.
const MOST_LEFT: usize = 1 << 20;
/// How often it is looked for what is left of the program, and the time in between. What forks all the time, or is frozen
/// with its container, outlives this.
const ROUNDS: usize = 50;
const PAUSE: u16 = 10;

/// A pipe from the program.
struct Pipe<R>(Option<R>, Stream);

impl<R: Read + AsFd> Pipe<R> {
    fn new(reader: Option<R>, stream: Stream) -> io::Result<Self> {
        if let Some(reader) = &reader {
            rustix::io::ioctl_fionbio(reader, true)?;
        }
        Ok(Self(reader, stream))
    }

    /// Takes one chunk, if there is one, and returns its length. At its end the pipe is closed.
    fn step(&mut self, chunk: &mut [u8], take: &mut dyn Take) -> Result<usize, RuntimeError> {
        let Some(reader) = &mut self.0 else { return Ok(0) };
        match reader.read(chunk) {
            Ok(0) => self.0 = None,
            Ok(n) => {
                take.take(self.1, chunk.get(..n).unwrap_or_default()).map_err(RuntimeError::Output)?;
                return Ok(n);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.0 = None,
        }
        Ok(0)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}

/// Runs the program to its end, and returns its exit status. `given_up` is a file that becomes readable when nobody waits
/// for it any more.
///
/// # Errors
/// When it cannot be started, takes longer than `within`, is given up, or its output is not taken.
pub(super) fn run(
    mut command: Command,
    inside: &Inside,
    within: Option<Duration>,
    given_up: Option<BorrowedFd<'_>>,
    take: &mut dyn Take,
) -> Result<Option<i32>, RuntimeError> {
    let failed = |source| RuntimeError::Program { program: inside.line.program.clone(), source };
    let own = Row::of(std::process::id()).map_err(failed)?;
    let until = within.map(|within| Instant::now() + within);
    // A file of the device, such as /dev/null, is one that root in a container could change.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // In a session of its own it has no terminal: LXC's would be that of the command inside, which could type into it.
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
    let mut child = command.spawn().map_err(failed)?;
    drop(child.stdin.take());
    let followed = follow(&mut child, until, given_up, take);
    match followed {
        Ok(Followed::Ended) => child.wait().map(|status| status.code()).map_err(failed),
        other => {
            let family = Family::of(child.id(), own);
            end(&mut child, family, inside).map_err(failed)?;
            Err(match (other, within) {
                (Ok(Followed::Late), Some(within)) => RuntimeError::Late { within },
                (Ok(_), _) => RuntimeError::GivenUp,
                (Err(e), _) => e,
            })
        }
    }
}

/// Why a program is not followed any more.
enum Followed {
    Ended,
    Late,
    GivenUp,
}

fn follow(
    child: &mut Child,
    until: Option<Instant>,
    given_up: Option<BorrowedFd<'_>>,
    take: &mut dyn Take,
) -> Result<Followed, RuntimeError> {
    let pid = child.id();
    let failed = |source| RuntimeError::Process { pid, source };
    let Some(process) = Process::open(pid).map_err(failed)? else { return Ok(Followed::Ended) };
    let mut output = Pipe::new(child.stdout.take(), Stream::Output).map_err(failed)?;
    let mut errors = Pipe::new(child.stderr.take(), Stream::Errors).map_err(failed)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Followed::Late);
        }
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX).into()
        });
        let ends = [Some(process.as_fd()), given_up, output.fd(), errors.fd()];
        let mut polled: Vec<PollFd<'_>> =
            ends.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let has_news = |at: usize| polled.get(at).and_then(PollFd::any).unwrap_or(false);
        let (is_over, is_given_up) = (has_news(0), given_up.is_some() && has_news(1));
        output.step(&mut chunk, take)?;
        errors.step(&mut chunk, take)?;
        if is_given_up {
            return Ok(Followed::GivenUp);
        }
        if is_over {
            // What it has said last. Others that it has left behind may still have the pipes.
            let mut taken = 0;
            loop {
                let more = output.step(&mut chunk, take)? + errors.step(&mut chunk, take)?;
                taken += more;
                if more == 0 || taken > MOST_LEFT {
                    return Ok(Followed::Ended);
                }
            }
        }
    }
}

/// Kills what the client has started inside the container, and then the client.
fn end(client: &mut Child, family: Family, inside: &Inside) -> io::Result<()> {
    match end_family(family, inside) {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            let pids: Vec<u32> = left.iter().map(|member| member.pid).collect();
            tracing::warn!(?pids, "they go on in the container after they were killed");
        }
        Err(e) => tracing::warn!(error = %e, "something may go on in the container"),
    }
    kill_group(client.id());
    client.wait().map(drop)
}

/// Kills what the client has started. Returns what goes on.
fn end_family(mut family: Family, inside: &Inside) -> io::Result<Vec<Member>> {
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        if let Some(leader) = inside.pid_file.as_deref().and_then(written) {
            family.add_session(leader);
        }
        // While the client is there, it is the parent of what it has started.
        left = family.members(&rows()?);
        left.retain(|member| member.is_descendant || shares_pids(member.pid, inside.first));
        if left.is_empty() {
            break;
        }
        for Member { pid, since, .. } in &left {
            if let Err(e) = kill_process(*pid, *since) {
                tracing::warn!(pid, error = %e, "not killed");
            }
        }
        // A wait without anything to wait for.
        poll(&mut [], PAUSE)?;
    }
    Ok(left)
}

/// The process that a runtime has written down.
fn written(file: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (pid > 1).then_some(pid)
}

/// Whether two processes are in one PID namespace.
fn shares_pids(one: u32, other: u32) -> bool {
    let id = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let id_of_one = id(one);
    id_of_one.is_some() && id_of_one == id(other)
}
