//! Sockets in namespaces.

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
    sockopt::{ReceiveTimeout, SendTimeout, TcpCongestion},
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// The congestion control of every TCP socket here. Namespaces inherit the machine's default, which may favour one
/// path.
pub const CONGESTION: &str = "reno";

/// How long an end waits for the other one.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Runs `work` on a thread in the namespace.
///
/// # Errors
/// When the namespace cannot be entered; and those of `work`.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let inside = || {
        setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("panic in {}", path.display()))?
}

/// Whether the kernel has the congestion control.
#[must_use]
pub fn congestion_is_known() -> bool {
    TcpListener::bind(("127.0.0.1", 0)).is_ok_and(|l| set_congestion(&l).is_ok())
}

fn set_congestion(socket: &impl AsFd) -> Result<()> {
    Ok(setsockopt(socket, TcpCongestion, &OsString::from(CONGESTION))?)
}

/// Limits the wait of each call on the socket to [`PATIENCE`].
pub fn be_patient(socket: &impl AsFd) -> Result<()> {
    let wait = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
    setsockopt(socket, ReceiveTimeout, &wait)?;
    Ok(setsockopt(socket, SendTimeout, &wait)?)
}

/// Listens; accepted connections use [`CONGESTION`].
pub fn listen(at: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    set_congestion(&listener)?;
    be_patient(&listener)?;
    Ok(listener)
}

/// Accepts a connection, whose calls then wait at most [`PATIENCE`].
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let (stream, client) = listener.accept().context("no connection arrived at the server")?;
    be_patient(&stream)?;
    stream.set_nodelay(true)?;
    Ok((stream, client))
}

/// Connects, in the calling thread's namespace.
pub fn dial(to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    set_congestion(&fd)?;
    be_patient(&fd)?;
    let address = SockaddrStorage::from(to);
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).with_context(|| format!("connect to {to}"))?;
    Ok(TcpStream::from(fd))
}
