//! Starts a program in a network namespace of its own, for runtimes that make none.
//!
//! The launcher starts itself once more as the *waiting* process, which makes the namespace and waits. The launcher has it attached
//! like any container, by the id of that process, and writes the process down for the runner. Only then is the waiting process told
//! to go on: it gives up its rights and becomes the program. When the launcher ends before, the waiting process does too, so the
//! program never runs without the guard and the rules of its container. The namespace is nowhere but in that process: when it has
//! ended, the namespace has.

use super::mounts;
use super::process::Written;
use crate::failure::{Failure, Kind};
use crate::kernel::privilege::{self, MODULE_CALLS};
use crate::runtime::start::LAUNCH;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use rustix::thread::CapabilitySet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The subcommand.
pub const SUBCOMMAND: &str = LAUNCH;
/// What the waiting process says when its namespace is made.
const READY: &str = "ready\n";
/// Most bytes of what it says.
const MOST: u64 = 4096;
/// Ports from this one on need no capability in the new namespace: all.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// Nobody else writes to files that are made here. The program, which is another user, reads some of them.
const UMASK: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);
/// `KEYCTL_JOIN_SESSION_KEYRING` of the kernel's `include/uapi/linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The container.
    pub name: String,
    /// The file for the id of its process.
    pub process: PathBuf,
    /// Its own `resolv.conf`, which need not be there.
    pub resolv_conf: PathBuf,
    /// Its user and group.
    pub user: u32,
    /// This is the waiting process.
    pub is_waiting: bool,
    /// The program and its arguments.
    pub words: Vec<OsString>,
}

fn failed(what: impl std::fmt::Display, e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}

/// Starts the program; returns when it runs. `attach` attaches the namespace of a process as the container. As the waiting
/// process, becomes the program instead, and returns only if it cannot.
///
/// # Errors
/// When the namespace cannot be made or attached, or the program cannot be executed. Nothing is left running then.
pub fn run<E: From<Failure>>(launch: &Launch, attach: impl FnOnce(u32) -> Result<(), E>) -> Result<(), E> {
    if launch.is_waiting {
        return Err(become_program(launch).into());
    }
    let (mut child, mut told, go) = start(launch)?;
    let own = Written::of(child.id());
    let done = match own {
        Ok(own) => carry(launch, own, &mut told, go, attach),
        Err(ref e) => Err(failed("the waiting process", e).into()),
    };
    if done.is_err() {
        // Mostly it has ended, or does since nobody can tell it to go on any more.
        if let Err(e) = child.kill().and_then(|()| child.wait()) {
            tracing::warn!(error = %e, "the waiting process is left");
        }
        if let Ok(own) = own {
            remove(&launch.process, own);
        }
    }
    done
}

/// Removes the file of a process that has ended. A later launcher may have written down another one meanwhile.
fn remove(file: &Path, own: Written) {
    let removed = match std::fs::read_to_string(file) {
        Ok(text) if Written::read(&text) == Some(own) => std::fs::remove_file(file),
        Ok(_) => return,
        Err(e) => Err(e),
    };
    if let Err(e) = removed
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %file.display(), error = %e, "not removed");
    }
}

/// Writes down a process.
fn write(file: &Path, own: Written) -> io::Result<()> {
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(file)?.write_all(own.text().as_bytes())
}

/// Starts the waiting process. Returns it with what it says, and with the pipe by which it is told to go on.
fn start(launch: &Launch) -> Result<(Child, io::PipeReader, PipeWriter), Failure> {
    let made = |e: io::Error| failed("start the waiting process", e);
    let (wait, go) = io::pipe().map_err(made)?;
    let (told, tells) = io::pipe().map_err(made)?;
    // The same program with the same arguments, all of which are the runner's.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("pv-net").args([SUBCOMMAND, &launch.name, "--waiting", "--process"]).arg(&launch.process);
    command.arg("--resolv-conf").arg(&launch.resolv_conf).args(["--user", &launch.user.to_string(), "--"]);
    command.args(&launch.words).stdin(wait).stdout(tells);
    Ok((command.spawn().map_err(made)?, told, go))
}

/// Takes the waiting process through its steps.
fn carry<E: From<Failure>>(
    launch: &Launch,
    own: Written,
    told: &mut io::PipeReader,
    mut go: PipeWriter,
    attach: impl FnOnce(u32) -> Result<(), E>,
) -> Result<(), E> {
    let hears = |e: io::Error| failed("the waiting process", e);
    let mut ready = [0; READY.len()];
    let mut said = String::new();
    let is_ready = told.read_exact(&mut ready).is_ok() && ready == READY.as_bytes();
    if !is_ready {
        let mut bytes = ready.to_vec();
        told.take(MOST).read_to_end(&mut bytes).map_err(hears)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(['\0', '\n']);
        let why = if text.is_empty() { "it has ended before its network namespace was made" } else { text };
        return Err(Failure::new(Kind::Internal, why).into());
    }
    // Before anything of it can run, so that a later runner finds it in any case.
    write(&launch.process, own).map_err(|e| failed(launch.process.display(), e))?;
    attach(own.pid)?;
    go.write_all(b"\n").map_err(hears)?;
    drop(go);
    // It says nothing more when it becomes the program, which closes the pipe.
    told.take(MOST).read_to_string(&mut said).map_err(hears)?;
    if said.is_empty() { Ok(()) } else { Err(Failure::new(Kind::Internal, said.trim()).into()) }
}

/// Makes the namespaces, waits, and becomes the program. Returns why it could not.
fn become_program(launch: &Launch) -> Failure {
    // Closed when the program is executed. The program's own output goes where its errors go.
    let mut tells = match io::stdout().as_fd().try_clone_to_owned().map(File::from) {
        Ok(tells) => tells,
        Err(e) => return failed("the waiting process", e),
    };
    let failure = match wait_and_execute(launch, &mut tells) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // The launcher may have ended.
    let _ = tells.write_all(failure.line().as_bytes());
    failure
}

fn wait_and_execute(launch: &Launch, tells: &mut File) -> Result<std::convert::Infallible, Failure> {
    // What ends the launcher's process group must not end the program, and a terminal of the device is none of its own.
    setsid().map_err(|e| failed("make a session", e))?;
    umask(UMASK);
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    unshare(namespaces).map_err(|e| failed("make namespaces for network, mounts and IPC", e))?;
    std::fs::write(UNPRIVILEGED_PORTS, "0").map_err(|e| failed(UNPRIVILEGED_PORTS, e))?;
    tells.write_all(READY.as_bytes()).map_err(|e| failed("the launcher", e))?;
    let mut go = [0];
    io::stdin().read_exact(&mut go).map_err(|e| failed("the launcher has ended", e))?;
    // Not before: the daemon has written its resolv.conf by now.
    mounts::arrange(&launch.resolv_conf)?;
    give_up(launch.user)?;
    let (program, arguments) =
        launch.words.split_first().ok_or_else(|| Failure::new(Kind::Usage, "no program is named"))?;
    keep_files().map_err(|e| failed("its open files", e))?;
    let output = io::stderr().as_fd().try_clone_to_owned().map_err(|e| failed("its output", e))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What this process is for: the program and its arguments are those of a `run.json`, which root has written, and it has no
    // rights any more.
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", path).current_dir("/").stdin(Stdio::null()).stdout(output);
    let e = command.exec();
    Err(failed(Path::new(program).display(), e).help("install the runtime, or name its program in the run.json"))
}

/// Gives up all rights for those of an ordinary user.
fn give_up(user: u32) -> Result<(), Failure> {
    let failed = |e: Errno| failed(format!("become user {user}"), e);
    setgroups(&[]).map_err(failed)?;
    setgid(Gid::from_raw(user)).map_err(failed)?;
    // The bounding set is narrowed while the process has the capability for that.
    privilege::narrow_bounding_set(CapabilitySet::empty()).map_err(|e| self::failed("give up rights", e))?;
    setuid(Uid::from_raw(user)).map_err(failed)?;
    leave_keyring().map_err(|e| self::failed("make a keyring", e))?;
    privilege::confine(CapabilitySet::empty(), &MODULE_CALLS).map_err(|e| self::failed("give up rights", e))
}

/// Closes all open files but the first three when the program is executed. The runner itself may have been given some.
fn keep_files() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok());
        let Some(number) = number.filter(|number| *number > libc::STDERR_FILENO) else { continue };
        // SAFETY: the call takes three numbers; nothing relies on a file staying open across an execve.
        let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        Errno::result(done)?;
    }
    Ok(())
}

/// Leaves the keys of the runner's session for a keyring of its own (keyctl(2)). Without keyrings, or where they are refused
/// to this process and so to the program too, there is nothing to leave.
fn leave_keyring() -> Result<(), Errno> {
    let unnamed = std::ptr::null::<libc::c_char>();
    // SAFETY: the call takes a number and a null pointer, and changes nothing in this process's memory.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, unnamed) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_removes_what_it_has_written_down_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("web.process");
        let [own, later] = ["70 1000\n", "71 2000\n"].map(|text| Written::read(text).expect("a process"));
        write(&file, later).expect("written");
        remove(&file, own);
        assert!(file.exists(), "another process runs");
        write(&file, own).expect("written");
        remove(&file, own);
        assert!(!file.exists());
        remove(&file, own);
    }
}
