//! Processes: when one ends that is not this one's child, and how it has ended (pidfd_open(2)); which ones there are.

use super::family::Row;
use crate::model::Ending;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::killpg;
use nix::time::{ClockId, clock_gettime};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How often it is asked how a process has ended, and milliseconds in between: the kernel knows it when the parent has
/// taken note.
const ASKED: usize = 20;
const PAUSE: u16 = 100;

/// A process. Another one that gets its id later is not this one.
pub(super) struct Process(OwnedFd);

impl Process {
    /// The process with this id; `None` if there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open(pid: u32) -> io::Result<Option<Self>> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "this is no process id"))?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until it has ended, for ever unless `within` is given. Returns whether it has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn ended(&self, within: Option<Duration>) -> io::Result<bool> {
        let until = within.map(|within| Instant::now() + within);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // Rounded up, so that the last wait does not become many without any time.
            let millis = left.map(|left| left.as_micros().div_ceil(1000));
            let timeout = match millis {
                None => PollTimeout::NONE,
                Some(millis) => u16::try_from(millis).unwrap_or(u16::MAX).into(),
            };
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if millis.is_some_and(|millis| millis <= u128::from(u16::MAX)) => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// How it has ended; `None` when the kernel does not say (before 6.15), or its parent takes no note of it.
    pub(super) fn how(&self) -> Option<ExitStatus> {
        for _ in 0..ASKED {
            match exit_code(&self.0) {
                Ok(Some(code)) => return Some(ExitStatus::from_raw(code)),
                Ok(None) => {}
                Err(e) => {
                    tracing::debug!(error = %e, "the kernel does not say how a process has ended");
                    return None;
                }
            }
            // The kernel reports POLLHUP, which is always asked for, when the parent has taken note.
            if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::empty())], PAUSE).is_err() {
                return None;
            }
        }
        None
    }
}

impl AsFd for Process {
    /// It is readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A status of wait(2) as it is told.
pub(super) fn ending(how: Option<ExitStatus>) -> Ending {
    how.map_or_else(Ending::default, |how| Ending { exit_status: how.code(), signal: how.signal() })
}

/// Whether the kernel says that there is no such process, or that it has ended.
pub(super) fn is_gone(pid: u32) -> bool {
    match Process::open(pid) {
        Ok(None) => true,
        // Its parent has not taken note of its end yet.
        Ok(Some(process)) => process.ended(Some(Duration::ZERO)).unwrap_or(false),
        Err(_) => false,
    }
}

/// A process that was written down, with the time of its start: another one that gets its id later has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) pid: u32,
    /// Clock ticks between the boot and its start.
    since: u64,
}

impl Written {
    /// A process, which must be there.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, since: Row::of(pid)?.since })
    }

    /// Its form in a file.
    pub(super) fn text(self) -> String {
        format!("{} {}\n", self.pid, self.since)
    }

    /// What is in a file; `None` for anything else.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (pid, since) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok().filter(|pid| *pid > 1)?, since: since.parse().ok()? })
    }

    /// Whether that very process has not ended.
    pub(super) fn is_there(&self) -> bool {
        !is_gone(self.pid) && Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

impl Row {
    /// What `/proc` tells of a process, which must be there. Nothing of this is in the process' own memory, which it could
    /// keep from being read.
    ///
    /// # Errors
    /// When it does not tell.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let process = procfs::process::Process::new(pid).map_err(io::Error::other)?;
        Self::read(&process).map_err(io::Error::other)
    }

    fn read(process: &procfs::process::Process) -> procfs::ProcResult<Self> {
        let stat = process.stat()?;
        let number = |n: i32| u32::try_from(n).unwrap_or_default();
        Ok(Self {
            pid: number(stat.pid),
            parent: number(stat.ppid),
            group: number(stat.pgrp),
            session: number(stat.session),
            since: stat.starttime,
            is_over: matches!(stat.state, 'Z' | 'X'),
        })
    }
}

/// All processes.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn rows() -> io::Result<Vec<Row>> {
    let all = procfs::process::all_processes().map_err(io::Error::other)?;
    // Those that end meanwhile are left out.
    Ok(all.flatten().filter_map(|process| Row::read(&process).ok()).collect())
}

/// Kills a process, unless another one has its id by now. One that has ended is none to kill.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn kill_process(pid: u32, since: u64) -> io::Result<()> {
    let Some(process) = Process::open(pid)? else { return Ok(()) };
    // The process that is open has the id as long as `/proc` has it.
    if !Row::of(pid).is_ok_and(|row| row.since == since) {
        return Ok(());
    }
    match pidfd_send_signal(&process.0, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Kills a process group.
pub(super) fn kill_group(leader: u32) {
    let Ok(leader) = i32::try_from(leader) else { return };
    if let Err(e) = killpg(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL)
        && e != nix::errno::Errno::ESRCH
    {
        tracing::warn!(process = leader, error = %e, "not killed");
    }
}

/// Seconds between the boot and the start of a process.
pub(super) fn started(pid: u32) -> Option<u64> {
    Some(Row::of(pid).ok()?.since / procfs::ticks_per_second())
}

/// Seconds since the boot.
pub(super) fn since_boot() -> Option<u64> {
    u64::try_from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?.tv_sec()).ok()
}

/// `struct pidfd_info` of the kernel's `include/uapi/linux/pidfd.h`, in its first form.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);
/// `PIDFD_INFO_EXIT`: the exit status is asked for, or told.
const INFO_EXIT: u64 = 1 << 3;

nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, PidfdInfo);

/// The status of wait(2), when the kernel knows it already.
fn exit_code(fd: &OwnedFd) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most as many bytes as the number of the ioctl says, which is the size of `info`.
    match unsafe { pidfd_get_info(fd.as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok((info.mask & INFO_EXIT != 0).then_some(info.exit_code)),
        // It has ended, and nobody has taken note yet.
        Err(nix::errno::Errno::ESRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sh").args(["-c", "sleep 0.2; exit 3"]).spawn().expect("started");
        let process = Process::open(child.id()).expect("opened").expect("there");
        assert!(!process.ended(Some(Duration::ZERO)).expect("known"));
        assert!(!is_gone(child.id()));
        let written = Written::of(child.id()).expect("known");
        assert_eq!(Written::read(&written.text()), Some(written));
        assert!(written.is_there() && !Written { since: written.since + 1, ..written }.is_there());
        assert!(process.ended(Some(Duration::from_secs(10))).expect("known"));
        assert!(is_gone(child.id()), "it has ended, and its parent has not waited for it");
        assert!(!written.is_there());
        child.wait().expect("waited");
        // Kernels before 6.15 do not say.
        assert!(process.how().is_none_or(|how| how.code() == Some(3)));
        assert!(Process::open(child.id()).expect("asked").is_none());
    }
}
