//! Starts a program in a network namespace of its own, for runtimes that make none.
//!
//! The launcher starts itself once more as the *waiting* process, which makes the namespace and waits. The launcher has it attached
//! like any container, by the id of that process, and writes the process down for the runner. Only then is the waiting process told
//! to go on: it gives up its rights and becomes the program. When the launcher ends before, the waiting process does too, so the
//! program never runs without the guard and the rules of its container. The namespace is nowhere but in that process: when it has
//! ended, the namespace has.

use super::process::Written;
use crate::failure::{Failure, Kind};
use crate::kernel::privilege;
use crate::runtime::start::LAUNCH;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
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
/// With this the C library asks the name servers of `/etc/resolv.conf` itself, and no service of the device.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";
/// Where the C library finds name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What takes the place of files that must not count.
const NOTHING: &str = "/dev/null";
/// Sockets of services of the device that answer for name servers.
const NSCD: &str = "/run/nscd";

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The container.
    pub name: String,
    /// The file for the id of its process.
    pub process: PathBuf,
    /// What is in the place of its `/etc/resolv.conf`, if it is there.
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
    let done = carry(launch, child.id(), &mut told, go, attach);
    if done.is_err() {
        // Mostly it has ended, or does since nobody can tell it to go on any more.
        if let Err(e) = child.kill().and_then(|()| child.wait()) {
            tracing::warn!(error = %e, "the waiting process is left");
        }
        remove(&launch.process);
    }
    done
}

fn remove(file: &Path) {
    if let Err(e) = std::fs::remove_file(file)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %file.display(), error = %e, "not removed");
    }
}

/// Writes a file of the runner's directory anew.
fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(mode).custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(text.as_bytes())
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
    pid: u32,
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
    let written = Written::of(pid).and_then(|written| write(&launch.process, 0o600, &written.text()));
    written.map_err(|e| failed(launch.process.display(), e))?;
    attach(pid)?;
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
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|e| failed("make a network namespace", e))?;
    std::fs::write(UNPRIVILEGED_PORTS, "0").map_err(|e| failed(UNPRIVILEGED_PORTS, e))?;
    mounts(launch)?;
    tells.write_all(READY.as_bytes()).map_err(|e| failed("the launcher", e))?;
    let mut go = [0];
    io::stdin().read_exact(&mut go).map_err(|e| failed("the launcher has ended", e))?;
    give_up(launch.user)?;
    let (program, arguments) =
        launch.words.split_first().ok_or_else(|| Failure::new(Kind::Usage, "no program is named"))?;
    let output = io::stderr().as_fd().try_clone_to_owned().map_err(|e| failed("its output", e))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", path).current_dir("/").stdin(Stdio::null()).stdout(output);
    let e = command.exec();
    Err(failed(Path::new(program).display(), e).help("install the runtime, or name its program in the run.json"))
}

/// Names are resolved by the container's own servers, whatever the device uses.
fn mounts(launch: &Launch) -> Result<(), Failure> {
    // What the device unmounts later is unmounted here too, and nothing that is mounted here is seen there.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).map_err(|e| failed("mounts", e))?;
    let bind = |source: &Path, target: &str| {
        let bound = mount(Some(source), target, none, MsFlags::MS_BIND, none);
        bound.map_err(|e| failed(format!("mount {} at {target}", source.display()), e))
    };
    // A device need not have one.
    let has_servers = launch.resolv_conf.exists();
    if has_servers || Path::new(RESOLV_CONF).exists() {
        let source = if has_servers { &launch.resolv_conf } else { Path::new(NOTHING) };
        bind(source, RESOLV_CONF)
            .map_err(|failure| failure.help("the device needs a file there, which may be empty"))?;
    }
    if Path::new("/etc/hosts").exists() {
        bind(Path::new(NOTHING), "/etc/hosts")?;
    }
    if Path::new("/etc/nsswitch.conf").exists() {
        let own = launch.process.with_extension("nsswitch");
        write(&own, 0o644, NSSWITCH).map_err(|e| failed(own.display(), e))?;
        bind(&own, "/etc/nsswitch.conf")?;
        // The mount keeps it.
        remove(&own);
    }
    if Path::new(NSCD).is_dir() {
        let masked = mount(Some("tmpfs"), NSCD, Some("tmpfs"), MsFlags::MS_RDONLY, none);
        masked.map_err(|e| failed(NSCD, e))?;
    }
    Ok(())
}

/// Gives up all rights for those of an ordinary user.
fn give_up(user: u32) -> Result<(), Failure> {
    let failed = |e: nix::errno::Errno| failed(format!("become user {user}"), e);
    setgroups(&[]).map_err(failed)?;
    setgid(Gid::from_raw(user)).map_err(failed)?;
    // The bounding set is narrowed while the process has the capability for that.
    privilege::narrow_bounding_set(CapabilitySet::empty()).map_err(|e| self::failed("give up rights", e))?;
    setuid(Uid::from_raw(user)).map_err(failed)?;
    privilege::keep_only(CapabilitySet::empty()).map_err(|e| self::failed("give up rights", e))
}
