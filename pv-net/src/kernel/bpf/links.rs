//! The pinned links to network devices: which there are, what is behind them, and a program put behind each in one step.

use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A pinned link to a device that is there.
pub(super) struct Link {
    fd: OwnedFd,
    path: PathBuf,
    /// Number of its program.
    pub program: u32,
}

/// What a pin leads to.
pub(super) enum Pinned {
    Link(Link),
    /// Nothing that any packet meets, and why.
    Stale(String),
}

fn failed(path: &Path, why: impl ToString) -> BpfError {
    BpfError::Link { path: path.to_owned(), why: why.to_string() }
}

/// What is pinned at `path`.
///
/// # Errors
/// When it cannot be told: what it guards, it goes on to guard.
pub(super) fn open(path: PathBuf) -> Result<Pinned, BpfError> {
    let fd = match sys::pinned(&path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Pinned::Stale("it is gone".to_owned())),
        Err(e) => return Err(failed(&path, e)),
    };
    Ok(match sys::link_info(&fd).map_err(|e| failed(&path, e))? {
        None => Pinned::Stale("it is no link".to_owned()),
        Some(info) if info.ifindex == 0 => Pinned::Stale("its device is gone".to_owned()),
        Some(info) => Pinned::Link(Link { fd, path, program: info.program }),
    })
}

impl Link {
    /// Puts `program` behind it; each packet meets that one or the one before. Whether its device is still there.
    ///
    /// # Errors
    /// The kernel's; the program before is still there then.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> Result<bool, BpfError> {
        kill_point::pass();
        match sys::update_link(&self.fd, program) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
            Err(e) => Err(failed(&self.path, e)),
        }
    }
}

/// Numbers of all programs that pinned links under `root` have.
///
/// # Errors
/// When a pin cannot be read.
pub(super) fn programs_in_use(root: &Path) -> Result<BTreeSet<u32>, BpfError> {
    let mut all = BTreeSet::new();
    for dir in pin::link_dirs(root) {
        for name in pin::links(&dir)? {
            if let Pinned::Link(link) = open(pin::of_link(&dir, &name))? {
                all.insert(link.program);
            }
        }
    }
    Ok(all)
}
