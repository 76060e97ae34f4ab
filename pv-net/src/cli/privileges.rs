//! The privileges of the running daemon and its broker, read from `/proc`.

use crate::daemon::Paths;
use crate::kernel::{broker, privilege};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use procfs::ProcResult;
use procfs::process::{Process, all_processes};
use rustix::thread::CapabilitySet;
use serde::Serialize;
use std::os::unix::net::UnixStream;

/// The value of `Seccomp:` in `/proc/PID/status` when a filter is active.
const FILTERED: u32 = 2;

/// The privileges of a process, over all of its threads.
#[derive(Debug, Serialize)]
pub(crate) struct Held {
    /// `daemon` or `broker`.
    role: &'static str,
    pid: i32,
    /// Capabilities that any thread has.
    capabilities: Vec<String>,
    /// No thread can get more.
    no_new_privs: bool,
    /// Every thread has a seccomp filter.
    seccomp: bool,
}

/// The privileges of the daemon that serves the API's socket, and of its broker. Empty when none runs, or `/proc`
/// cannot be read.
pub(crate) fn held(paths: &Paths) -> Vec<Held> {
    let Ok(socket) = UnixStream::connect(paths.socket()) else { return Vec::new() };
    let Ok(daemon) = getsockopt(&socket, PeerCredentials).map(|peer| peer.pid()) else { return Vec::new() };
    let is_broker = |p: &Process| p.stat().is_ok_and(|stat| stat.ppid == daemon && stat.comm == broker::NAME);
    let broker = all_processes().ok().and_then(|all| all.flatten().find(is_broker));
    let daemon = Process::new(daemon).ok();
    let both = [("daemon", daemon), ("broker", broker)];
    both.into_iter().filter_map(|(role, process)| of(role, &process?).ok()).collect()
}

fn of(role: &'static str, process: &Process) -> ProcResult<Held> {
    let (mut all, mut no_new_privs, mut seccomp) = (0, true, true);
    for task in process.tasks()? {
        let status = task?.status()?;
        all |= status.capprm | status.capeff;
        no_new_privs &= status.nonewprivs == Some(1);
        seccomp &= status.seccomp == Some(FILTERED);
    }
    let capabilities = privilege::names(CapabilitySet::from_bits_retain(all));
    Ok(Held { role, pid: process.pid(), capabilities, no_new_privs, seccomp })
}

impl Held {
    /// The privileges in one line.
    pub(crate) fn line(&self) -> String {
        let capabilities =
            if self.capabilities.is_empty() { "no capability".to_owned() } else { self.capabilities.join(" ") };
        let more = if self.no_new_privs { "no_new_privs" } else { "it can get more" };
        let calls = if self.seccomp { "system calls filtered" } else { "all system calls" };
        format!("{} ({}): {capabilities}; {more}; {calls}", self.role, self.pid)
    }
}
