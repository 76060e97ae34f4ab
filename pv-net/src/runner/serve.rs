//! The runner's process and its socket.

use super::containers::Containers;
use super::marks::directory;
use super::protocol::{MOST_REQUEST, Reply, Request};
use super::{SUBCOMMAND, auto};
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most connections at the same time.
const CONNECTIONS: usize = 64;
/// How long a caller may take to send a request, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is checked, while nothing changes, whether who watches the states is still there.
const CHECKED: Duration = Duration::from_secs(5);

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}

/// Runs the runner until it is killed. Containers go on without it.
///
/// # Errors
/// When another runner has the run directory, or the socket cannot be made.
pub fn run(paths: &Paths) -> Result<(), Failure> {
    paths.make()?;
    let containers = Containers::new(paths)?;
    let _lock = lock(paths)?;
    let listener = listen(paths)?;
    containers.find()?;
    tracing::info!(socket = %paths.runner_socket().display(), "ready");
    static OPEN: AtomicUsize = AtomicUsize::new(0);
    for stream in listener.incoming() {
        let stream = stream.map_err(|e| failed("accept a connection", e))?;
        if !is_own(&stream) || OPEN.load(Ordering::Relaxed) >= CONNECTIONS {
            continue;
        }
        OPEN.fetch_add(1, Ordering::Relaxed);
        let containers = containers.clone();
        let talk = move || {
            if let Err(e) = talk(stream, &containers) {
                tracing::debug!(error = %e, "a caller has hung up");
            }
            OPEN.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(e) = std::thread::Builder::new().name("pv-net-request".to_owned()).spawn(talk) {
            tracing::warn!(error = %e, "no thread for a request");
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Starts a runner as a process of its own, which goes on after this one. If there is one, that is kept.
///
/// # Errors
/// When this program cannot be started a second time.
pub fn start_beside(paths: &Paths) -> io::Result<()> {
    if UnixStream::connect(paths.runner_socket()).is_ok() {
        tracing::info!("the runner that runs is kept");
        return Ok(());
    }
    // The daemon executes nothing but its own program, and only here and for its broker, before it gives up its rights.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("pv-net").arg(SUBCOMMAND).process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    let flags = [
        ("--config", &paths.config),
        ("--containers", &paths.containers),
        ("--state-dir", &paths.state_dir),
        ("--run-dir", &paths.run_dir),
    ];
    for (flag, path) in flags {
        command.arg(flag).arg(path);
    }
    command.spawn().map(drop)
}

/// The lock of the one runner.
fn lock(paths: &Paths) -> Result<Flock<File>, Failure> {
    let path = directory(paths).join("lock");
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(|e| failed(&path.display().to_string(), e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => {
            let why = format!("{}: another runner runs with this run directory", paths.run_dir.display());
            Failure::new(Kind::Conflict, why).help("stop it, or give this one its own --run-dir")
        }
        e => failed(&path.display().to_string(), e),
    })
}

fn listen(paths: &Paths) -> Result<UnixListener, Failure> {
    let path = paths.runner_socket();
    let failed = |e: io::Error| failed(&format!("listen on {}", path.display()), e);
    // It gets its name when it listens: the daemon tries once when the name appears. This runner holds the lock, so what is
    // there already is a dead one's.
    let new = paths.run_dir.join("runner.new.sock");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    // Nobody else can connect at any time. There is no second thread yet that could make files meanwhile.
    let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    let listener = UnixListener::bind(&new);
    umask(before);
    let listener = listener.map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)?;
    Ok(listener)
}

/// Whether the caller is of the runner's own user.
fn is_own(stream: &UnixStream) -> bool {
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) if peer.uid() == geteuid().as_raw() => true,
        Ok(peer) => {
            tracing::warn!(user = peer.uid(), pid = peer.pid(), "another user's connection is refused");
            false
        }
        Err(e) => {
            tracing::warn!(error = %e, "a connection is refused: nobody knows whose it is");
            false
        }
    }
}

/// Answers the requests of a connection, one after the other.
fn talk(stream: UnixStream, containers: &Containers) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MOST_REQUEST).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let done = match serde_json::from_str::<Request>(&line) {
            Ok(Request::Watch) => return watch(&mut writer, containers),
            Ok(Request::Auto) => return start_all(&mut writer, containers),
            Ok(Request::Start { name }) => containers.start(&name).map(Reply::Done),
            Ok(Request::Stop { name, is_own }) => containers.stop(&name, !is_own).map(Reply::Done),
            Ok(Request::Restart { name }) => containers.restart(&name).map(Reply::Done),
            Ok(Request::Look { name, pid }) => {
                containers.look_for(&name, pid).map(|(status, is_gone)| Reply::Looked { status, is_gone })
            }
            Ok(Request::Check { name }) => containers.check(&name).map(Reply::Checked),
            Err(e) => Err(Failure::new(Kind::Usage, format!("a request to the runner: {e}"))),
        };
        send(&mut writer, &done.unwrap_or_else(|failure| Reply::Failed(failure.into())))?;
    }
}

fn send(writer: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line)
}

fn watch(writer: &mut UnixStream, containers: &Containers) -> io::Result<()> {
    let mut seen = None;
    loop {
        match containers.news(seen, CHECKED) {
            Some((revision, all)) => {
                seen = Some(revision);
                send(writer, &Reply::All(all))?;
            }
            // Each one that is gone would otherwise keep a connection until the next change.
            None if has_hung_up(writer)? => return Ok(()),
            None => {}
        }
    }
}

/// Whether the other side has closed the connection: poll(2) always reports POLLHUP.
fn has_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().is_some_and(|events| !events.is_empty()))
}

/// Does the automatic starts, after those that are under way. They go on when the caller hangs up.
fn start_all(writer: &mut UnixStream, containers: &Containers) -> io::Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    send(writer, &Reply::Begun)?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let reply = match auto::start(containers) {
        Ok(()) => Reply::Over,
        Err(failure) => {
            tracing::error!(error = %failure, "no container is started");
            Reply::Failed(failure.into())
        }
    };
    send(writer, &reply)
}
