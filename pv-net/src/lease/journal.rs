//! The lease file on the disk.

use super::record::{self, Contents};
use crate::ipam::store::{self, StoreError, failed};
use crate::ipam::{Change, Ipam};
use crate::kernel::kill_point;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE: &str = "leases";
/// The file is not rewritten while its changes are at most this many bytes, however small the snapshot is.
const SHORT: usize = 1 << 20;
/// The file is rewritten when its changes are this many times longer than its snapshot. So most writes append, and few
/// bytes are written twice.
const TIMES: usize = 4;

/// The lease file, open at its end.
pub(super) struct Journal {
    dir: PathBuf,
    /// `None` when the next write must make the file anew: there is none, its end is incomplete, or a write has failed.
    file: Option<File>,
    /// A write has failed, so it is unknown how much of it is on disk.
    in_doubt: bool,
    /// Bytes of the snapshot.
    snapshot: usize,
    /// Bytes of the changes behind the snapshot.
    changes: usize,
}

/// Reads the lease file of `dir`. A file that is damaged or inconsistent is set aside under another name; the last
/// value has the conditions about that.
///
/// # Errors
/// When the file cannot be read, or a bad file cannot be set aside.
pub(super) fn load(dir: &Path) -> Result<(Journal, Ipam, Vec<String>), StoreError> {
    let path = dir.join(FILE);
    let none = Journal::new(dir);
    let Some(bytes) = store::read(&path)? else { return Ok((none, Ipam::default(), Vec::new())) };
    match record::decode(&bytes) {
        Ok(Contents { ipam, snapshot, whole }) if whole == bytes.len() => {
            let file = File::options().append(true).open(&path);
            let file = Some(file.map_err(failed("open", &path))?);
            Ok((Journal { file, snapshot, changes: whole - snapshot, ..none }, ipam, Vec::new()))
        }
        Ok(Contents { ipam, whole, .. }) => {
            tracing::info!(
                bytes = bytes.len() - whole,
                "leases that were being written when the power went are left out"
            );
            Ok((none, ipam, Vec::new()))
        }
        Err(why) => {
            let aside = store::set_aside(&path)?;
            let condition = format!(
                "leases lost: {}: {why}; set aside as {}, leases are learned again from the containers that are attached",
                path.display(),
                aside.display()
            );
            Ok((none, Ipam::default(), vec![condition]))
        }
    }
}

/// Removes the lease file. Files that were set aside stay.
///
/// # Errors
/// When the file cannot be removed.
pub fn remove(dir: &Path) -> Result<(), StoreError> {
    store::remove_file(dir, FILE)
}

impl Journal {
    /// A journal without a file, until something is written.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None, in_doubt: false, snapshot: 0, changes: 0 }
    }

    /// The directory of the file.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a batch durably; `ipam` is the state after it. After a failed write this must be called even without
    /// changes.
    ///
    /// # Errors
    /// When a file operation fails. Part of the batch may be in the file then, so the next write makes the file anew.
    pub(super) fn commit(&mut self, changes: &[Change], ipam: &Ipam) -> Result<(), StoreError> {
        if changes.is_empty() && !self.in_doubt {
            return Ok(());
        }
        match self.file.take() {
            None => self.write_anew(ipam),
            Some(mut file) => {
                let path = self.dir.join(FILE);
                let frame = record::batch(changes).map_err(|e| failed("encode", &path)(e.into()))?;
                self.in_doubt = true;
                kill_point::pass();
                file.write_all(&frame).map_err(failed("write", &path))?;
                #[cfg(test)]
                store::recorder::note(|| store::recorder::Op::Write(path.clone(), frame.clone()));
                file.sync_data().map_err(failed("write", &path))?;
                #[cfg(test)]
                store::recorder::note(|| store::recorder::Op::Sync(path.clone()));
                self.in_doubt = false;
                self.file = Some(file);
                self.changes += frame.len();
                Ok(())
            }
        }
    }

    /// Replaces the file by one that holds `ipam` as its snapshot, and no changes.
    ///
    /// # Errors
    /// When a file operation fails; the next write tries it again.
    pub(super) fn write_anew(&mut self, ipam: &Ipam) -> Result<(), StoreError> {
        self.file = None;
        self.in_doubt = true;
        let bytes = record::snapshot(ipam).map_err(|e| failed("encode", &self.dir.join(FILE))(e.into()))?;
        self.file = Some(store::replace(&self.dir, FILE, &bytes)?);
        self.in_doubt = false;
        (self.snapshot, self.changes) = (bytes.len(), 0);
        Ok(())
    }

    /// Whether the changes are so long that the file should be rewritten.
    pub(super) fn is_long(&self) -> bool {
        self.changes > SHORT.max(self.snapshot.saturating_mul(TIMES))
    }

    /// Makes the next write go to `file`.
    #[cfg(test)]
    pub(super) fn fail_next(&mut self, file: File) {
        self.file = Some(file);
    }
}
