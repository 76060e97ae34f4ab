//! On Ctrl-C or `kill`, the running program is ended first, so that it can clean up; then the task ends with an error.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Result, bail};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

static ASKED: AtomicBool = AtomicBool::new(false);
/// The program that is running; 0 when none is.
static CHILD: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(_: i32) {
    ASKED.store(true, Ordering::SeqCst);
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: kill(2) may be called in a handler; the child is not reaped before CHILD is 0 again.
        unsafe { libc::kill(child, libc::SIGTERM) };
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP are passed on to the running program and noted.
pub fn catch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(pass_on), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to atomics and calls kill(2).
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Fails if a signal has come.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::SeqCst) {
        bail!("ended by a signal\nhelp: what was begun is gone; what was fetched or built stays");
    }
    Ok(())
}

/// Runs a program to its end. It gets SIGTERM when this task is asked to end or is killed.
pub fn run(command: &mut Command) -> io::Result<ExitStatus> {
    let die_with_parent = || Ok(set_pdeathsig(Signal::SIGTERM)?);
    // SAFETY: one system call between fork and exec, and no allocation. The death signal depends on the thread that
    // spawned the program, and that thread waits for it.
    let mut child = unsafe { command.pre_exec(die_with_parent) }.spawn()?;
    let id = i32::try_from(child.id()).map_err(io::Error::other)?;
    CHILD.store(id, Ordering::SeqCst);
    if ASKED.load(Ordering::SeqCst) {
        // A signal came before the child could be stored.
        pass_on(0);
    }
    // The child is not reaped yet, so that its process id stays its own until CHILD is 0.
    let waited = waitid(Id::Pid(Pid::from_raw(id)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    CHILD.store(0, Ordering::SeqCst);
    waited?;
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::process::Command;

    #[test]
    fn a_program_is_run_to_its_end() {
        assert_eq!(run(Command::new("sh").args(["-c", "exit 3"])).expect("sh").code(), Some(3));
        assert!(run(&mut Command::new("/nonexistent")).is_err());
    }
}
