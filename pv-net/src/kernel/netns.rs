//! Network namespaces: opening them, and running code inside.

use crate::model::NetnsRef;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `statfs` type of a namespace file (`linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` (`linux/nsfs.h`): which kind of namespace a file is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// A namespace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It cannot be opened.
    #[error("namespace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is some other file.
    #[error("namespace {}: not a network namespace", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// It is the device's own.
    #[error("namespace {}: this is the device's own namespace", path.display())]
    Own {
        /// The file.
        path: PathBuf,
    },
    /// A thread could not enter it.
    #[error("enter namespace: {0}")]
    Enter(io::Error),
    /// The thread inside ended without a result.
    #[error("the thread inside the namespace failed")]
    Lost,
    /// It took too long: a file of a file system that does not answer, or a kernel that is at something else.
    #[error("{what}: no answer within {} s", PATIENCE.as_secs())]
    Slow {
        /// What was tried.
        what: String,
    },
}

/// How long anything about one namespace may take. What takes longer goes on, on a thread that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open network namespace, held for as long as this is.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// Inode: what tells one namespace from another.
    pub inode: u64,
}

/// Opens the namespace that `reference` names.
///
/// # Errors
/// When it is not there, no network namespace, or the daemon's own.
pub fn open(reference: &NetnsRef) -> Result<Netns, NetnsError> {
    let path = reference.path();
    let netns = open_any(&path)?;
    if netns.inode == own_inode()? {
        return Err(NetnsError::Own { path });
    }
    Ok(netns)
}

/// The same on a thread of its own: a path can be on a file system that does not answer.
///
/// # Errors
/// The same, and when it takes too long.
pub async fn open_aside(reference: &NetnsRef) -> Result<Netns, NetnsError> {
    let what = format!("namespace {}", reference.path().display());
    let reference = reference.clone();
    aside(what, move || open(&reference)).await?
}

/// Does `work` on a thread of its own, and waits for it as long as anything about a namespace may take.
async fn aside<T: Send + 'static>(what: String, work: impl FnOnce() -> T + Send + 'static) -> Result<T, NetnsError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // Nobody waits any more when it took too long, or when the daemon is stopping.
            let _ = send.send(work());
        })
        .map_err(NetnsError::Enter)?;
    match tokio::time::timeout(PATIENCE, receive).await {
        Ok(done) => done.map_err(|_| NetnsError::Lost),
        Err(_) => Err(NetnsError::Slow { what }),
    }
}

fn open_any(path: &Path) -> Result<Netns, NetnsError> {
    let failed = |source| NetnsError::Open { path: path.to_owned(), source };
    let other = || NetnsError::NotNetns { path: path.to_owned() };
    let meta = std::fs::metadata(path).map_err(failed)?;
    // A FIFO or a device must not be opened to find out what it is.
    if !meta.is_file() {
        return Err(other());
    }
    let file = File::open(path).map_err(failed)?;
    let kind = fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type();
    if kind.0 as u64 != NSFS_MAGIC {
        return Err(other());
    }
    use std::os::fd::AsRawFd;
    // SAFETY: the request takes no argument and returns a number.
    let nstype = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
    if nstype != libc::CLONE_NEWNET {
        return Err(other());
    }
    let inode = file.metadata().map_err(failed)?.ino();
    Ok(Netns { file, inode })
}

fn own_inode() -> Result<u64, NetnsError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let meta = std::fs::metadata(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    Ok(meta.ino())
}

/// `SO_NETNS_COOKIE` (`asm-generic/socket.h`).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie by which the programs know the calling thread's namespace; kernel 5.14.
///
/// # Errors
/// When the kernel does not tell.
pub fn own_cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    // Any socket knows it; this one needs no address, and no family that the unit does not have anyway.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes a u64, and the buffer's size is told.
    let failed = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size)
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

impl Netns {
    /// The file, for netlink attributes that take one.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// When the thread cannot be made or cannot enter, or takes too long.
    pub async fn run<T, F>(&self, work: F) -> Result<T, NetnsError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let file = self.file.try_clone().map_err(NetnsError::Enter)?;
        let inside = move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
            Ok(work())
        };
        aside("inside the namespace".to_owned(), inside).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_other_network_namespace_is_refused() {
        for (path, want) in [
            ("/nonexistent", "No such file"),
            ("/etc/hostname", "not a network namespace"),
            ("/dev/null", "not a network namespace"),
            ("/proc/self/ns/mnt", "not a network namespace"),
            ("/proc/self/ns/net", "the device's own"),
        ] {
            let error = open(&NetnsRef::Path(path.into())).expect_err(path).to_string();
            assert!(error.contains(want), "{path}: {error}");
        }
    }
}
