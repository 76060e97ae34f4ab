//! Pinned BPF links to network devices: listing them, reading what is behind them, and replacing their program in one
//! step.

use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use crate::plan::ProgramState;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A pinned link to an existing device.
pub(super) struct Link {
    fd: OwnedFd,
    path: PathBuf,
    /// Id of its program.
    pub program: u32,
    /// Index of its device.
    pub ifindex: u32,
}

/// What a pin leads to.
pub(super) enum Pinned {
    Link(Link),
    /// No program that any packet meets; the text says why.
    Stale(String),
}

fn failed(path: &Path, why: impl ToString) -> BpfError {
    BpfError::Link { path: path.to_owned(), why: why.to_string() }
}

/// Opens the pin at `path`.
///
/// # Errors
/// When it cannot be told what is there. It must be left alone then, since it may guard a link.
pub(super) fn open(path: PathBuf) -> Result<Pinned, BpfError> {
    let fd = match sys::pinned(&path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Pinned::Stale("it is gone".to_owned())),
        Err(e) => return Err(failed(&path, e)),
    };
    Ok(match sys::link_info(&fd).map_err(|e| failed(&path, e))? {
        None => Pinned::Stale("it is no link".to_owned()),
        Some(info) if info.ifindex == 0 => Pinned::Stale("its device is gone".to_owned()),
        Some(info) => Pinned::Link(Link { fd, path, program: info.program, ifindex: info.ifindex }),
    })
}

impl Link {
    /// The error for a link whose earlier program is not pinned and so cannot be put back.
    pub(super) fn unknown_before(&self) -> BpfError {
        failed(&self.path, "its earlier program was pinned nowhere")
    }

    /// Replaces the link's program by `program`; each packet meets one of the two. Returns whether the device still
    /// exists.
    ///
    /// # Errors
    /// When the kernel refuses the update. The earlier program is still attached then.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> Result<bool, BpfError> {
        kill_point::pass();
        match sys::update_link(&self.fd, program) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
            Err(e) => Err(failed(&self.path, e)),
        }
    }
}

/// Ids of the programs behind all pinned links under `root`.
///
/// # Errors
/// When a pin cannot be read.
pub(super) fn programs_in_use(root: &Path) -> Result<BTreeSet<u32>, BpfError> {
    let mut all = BTreeSet::new();
    for path in pin::all_links(root)? {
        if let Pinned::Link(link) = open(path)? {
            all.insert(link.program);
        }
    }
    Ok(all)
}

/// The state of the device with this index by the pin at `path`: whether its program is one of `own`, or with `None`
/// any program. [`ProgramState::Lost`] when there is no pin.
///
/// # Errors
/// When it cannot be told what is behind the pin.
pub(super) fn state(path: PathBuf, index: u32, own: Option<&[u32]>) -> Result<ProgramState, BpfError> {
    Ok(match open(path)? {
        Pinned::Link(link) if link.ifindex != index => ProgramState::Lost,
        Pinned::Link(link) if own.is_none_or(|own| own.contains(&link.program)) => ProgramState::Own,
        Pinned::Link(link) => ProgramState::Other(link.program),
        Pinned::Stale(_) => ProgramState::Lost,
    })
}

/// Has the pinned link at `path` to the device with this index run `program`, whose id is `id`. Returns whether there
/// is such a link. A pin that leads nowhere is removed.
///
/// # Errors
/// When it cannot be told what is behind the pin, when the kernel refuses the update, or when the pin belongs to a link
/// of another device: removing it would leave that device without its guard.
pub(super) fn renew(path: PathBuf, index: u32, id: u32, program: BorrowedFd<'_>) -> Result<bool, BpfError> {
    match open(path.clone())? {
        Pinned::Link(link) if link.ifindex != index => {
            Err(failed(&link.path, format!("it is the pin of link {}", link.ifindex)))
        }
        Pinned::Link(link) if link.program == id => Ok(true),
        Pinned::Link(link) => link.update(program),
        Pinned::Stale(_) => pin::remove(&path).map(|()| false),
    }
}

/// Renames pins to the names that this build looks for (earlier builds used the device's name), and removes pins that
/// guard nothing; what those stood for is attached again where it is needed. Returns conditions.
///
/// # Errors
/// When a pin cannot be read, renamed or removed.
pub(super) fn fit_pins(root: &Path) -> Result<Vec<String>, BpfError> {
    let mut conditions = Vec::new();
    for path in pin::all_links(root)? {
        match open(path.clone())? {
            Pinned::Stale(why) => {
                pin::remove(&path)?;
                conditions.push(format!("{}; pin removed", BpfError::Link { path, why }));
            }
            Pinned::Link(link) => {
                let fitting = path.with_file_name(link.ifindex.to_string());
                // The new name is taken by another pin. Both stay, and both guard.
                if fitting != path && !fitting.exists() {
                    kill_point::pass();
                    fs::rename(&path, &fitting).map_err(pin::pin_error("rename", &path))?;
                }
            }
        }
    }
    Ok(conditions)
}
