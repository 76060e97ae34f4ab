//! Network namespaces: their identity, and entering them. Only the broker enters one ([`super::broker`]).

use super::sysctl;
use crate::model::NetnsRef;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::statfs::fstatfs;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `statfs` type of a namespace file (`linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` (`linux/nsfs.h`): the ioctl that tells a namespace's type.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Its file cannot be opened.
    #[error("namespace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file is no network namespace.
    #[error("namespace {}: not a network namespace", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// The namespace is the device's own.
    #[error("namespace {}: this is the device's own namespace", path.display())]
    Own {
        /// The file.
        path: PathBuf,
    },
    /// `setns`, or opening what is needed inside, failed.
    #[error("enter namespace: {0}")]
    Enter(io::Error),
    /// The broker, which enters namespaces, did not answer.
    #[error("no namespace can be entered: the broker does not answer: {0}")]
    Broker(io::Error),
    /// It took too long, for example because the file is on a file system that does not answer.
    #[error("{what}: no answer within {} s", PATIENCE.as_secs())]
    Slow {
        /// The operation.
        what: String,
    },
    /// Too many other namespaces do not answer.
    #[error("namespace {}: not entered: too many others do not answer", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

impl NetnsError {
    /// Whether the namespace's file does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        // A process that is about to end has no namespaces any more (ESRCH).
        let nothing = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH));
        matches!(self, Self::Open { source, .. } if nothing(source))
    }

    /// Whether there is certainly no other network namespace at that path any more. Errors of looking do not count.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_absent() || matches!(self, Self::NotNetns { .. } | Self::Own { .. })
    }
}

/// How long any work in one namespace may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The identity of a namespace at a path. The kernel reuses inode numbers as soon as they are free, so the identity
/// also includes when the path's file came to be: for a bind mount that is the mounted file, which lives as long as the
/// mount, and for a link in `/proc/PID/ns` it is that link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device and inode of the namespace's file.
    file: (u64, u64),
    /// Device and inode of what the path itself names, without following a symbolic link.
    place: (u64, u64),
    /// When that came to be: seconds and nanoseconds since 1970.
    since: (i64, i64),
}

impl NetnsId {
    /// The identity of whatever is at `path`. Opens nothing.
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&std::fs::metadata(path)?, &std::fs::symlink_metadata(path)?))
    }

    fn new(file: &Metadata, place: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            place: (place.dev(), place.ino()),
            since: (place.ctime(), place.ctime_nsec()),
        }
    }
}

/// Open files that work in a network namespace from outside it: a socket, and a directory of sysctls, stay in the
/// namespace in which they were opened.
#[derive(Debug)]
pub struct Inside {
    /// The namespace's file.
    pub file: File,
    /// The namespace's identity.
    pub id: NetnsId,
    /// An rtnetlink socket.
    pub netlink: OwnedFd,
    /// The directory `/proc/sys/net/ipv6/conf`; `None` without IPv6.
    pub ipv6: Option<OwnedFd>,
}

impl Inside {
    /// All files, in the order that [`Inside::received`] expects.
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        let ipv6 = self.ipv6.as_ref().map(AsFd::as_fd);
        [self.file.as_fd(), self.netlink.as_fd()].into_iter().chain(ipv6).collect()
    }

    /// The files that another process has opened in the namespace and sent.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn received(id: NetnsId, files: Vec<OwnedFd>) -> Result<Self, NetnsError> {
        let mut files = files.into_iter();
        let (Some(file), Some(netlink)) = (files.next(), files.next()) else {
            return Err(NetnsError::Broker(io::Error::other("a namespace without its files")));
        };
        Ok(Self { file: file.into(), id, netlink, ipv6: files.next() })
    }
}

/// Enters the namespace that `reference` leads to, on the calling thread, and opens there what is needed. The thread
/// stays inside.
///
/// # Errors
/// When the namespace does not exist, is no network namespace or is the thread's own, or when it cannot be entered.
pub fn enter(reference: &NetnsRef) -> Result<Inside, NetnsError> {
    let path = reference.path();
    let (file, id) = open(&path)?;
    if id.file == own_file()? {
        return Err(NetnsError::Own { path });
    }
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute);
    let netlink = netlink.map_err(|e| NetnsError::Enter(e.into()))?;
    let directory = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(sysctl::IPV6);
    let ipv6 = match directory {
        Ok(directory) => Some(directory.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(NetnsError::Enter(e)),
    };
    Ok(Inside { file, id, netlink, ipv6 })
}

/// What is at a namespace's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Empty,
    /// A file that is no network namespace. `ip netns add` makes such a file first, and then mounts the namespace on
    /// it.
    OtherFile,
    /// A namespace.
    Namespace(NetnsId),
    /// It cannot be looked at.
    Closed,
}

/// What is at `path` now. A namespace that is `known` already is not opened, since an open file keeps others from
/// unmounting it. Blocks as long as the file system does.
#[must_use]
pub fn look(path: &Path, known: Option<NetnsId>) -> Place {
    if let Some(known) = known
        && NetnsId::at(path).is_ok_and(|id| id == known)
    {
        return Place::Namespace(known);
    }
    match open(path) {
        Ok((_, id)) => Place::Namespace(id),
        Err(NetnsError::NotNetns { .. }) => Place::OtherFile,
        Err(e) if e.is_absent() => Place::Empty,
        Err(_) => Place::Closed,
    }
}

/// Opens the namespace at `path`.
fn open(path: &Path) -> Result<(File, NetnsId), NetnsError> {
    let failed = |source| NetnsError::Open { path: path.to_owned(), source };
    let other = || NetnsError::NotNetns { path: path.to_owned() };
    let meta = std::fs::metadata(path).map_err(failed)?;
    // Opening a FIFO or a device could block or have effects, so the file's type is checked first.
    if !meta.is_file() {
        return Err(other());
    }
    // The file may have been replaced since the check: the flags make sure that opening neither waits nor makes it the
    // process's terminal.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
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
    let place = std::fs::symlink_metadata(path).map_err(failed)?;
    let id = NetnsId::new(&file.metadata().map_err(failed)?, &place);
    Ok((file, id))
}

/// Device and inode of the daemon's own namespace.
fn own_file() -> Result<(u64, u64), NetnsError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let meta = std::fs::metadata(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    Ok((meta.dev(), meta.ino()))
}

/// `SO_NETNS_COOKIE` (`asm-generic/socket.h`).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie by which programs identify the calling thread's namespace (kernel 5.14).
///
/// # Errors
/// When `getsockopt` fails, such as on older kernels.
pub fn own_cookie() -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    // Any socket can tell it. A Unix socket needs no address, and its family is allowed by the systemd unit anyway.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes a u64, and the buffer's size is told.
    let failed = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size)
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_looked_at_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = |name: &str| {
            let path = dir.path().join(name);
            std::os::unix::fs::symlink("/proc/self/ns/net", &path).expect("made");
            match look(&path, None) {
                Place::Namespace(id) => (path, id),
                other => panic!("{other:?}"),
            }
        };
        let ((a, in_a), (_, in_b)) = (link("a"), link("b"));
        assert_ne!(in_a, in_b, "one namespace at two places");
        assert_eq!([look(&a, Some(in_a)), look(&a, Some(in_b))], [Place::Namespace(in_a); 2]);
        for (path, want) in [
            ("/nonexistent", Place::Empty),
            ("/etc/hostname/web", Place::Empty),
            ("/etc/hostname", Place::OtherFile),
            ("/proc/self/ns/mnt", Place::OtherFile),
        ] {
            assert_eq!(look(Path::new(path), Some(in_a)), want, "{path}");
        }
    }
}
