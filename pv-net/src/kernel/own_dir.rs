//! Directories that nobody else has a hand in: where the state, the lock and the pins are.
//!
//! Whoever can write to one of them could put a lock, a map or a program there that the daemon takes for its own. Both
//! `/sys/fs/bpf` and `/tmp` let everybody make a directory, so one that is there already proves nothing.

use nix::unistd::geteuid;
use std::fs::{DirBuilder, Metadata, create_dir_all, symlink_metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bits of a mode that let the group and everybody else write.
const OTHERS_WRITE: u32 = 0o022;
/// Whoever writes to a directory with this bit cannot rename or remove what is another's.
const STICKY: u32 = 0o1000;

/// Why a directory or file is not used.
#[derive(Debug, thiserror::Error)]
pub enum OwnDirError {
    /// It could not be made or looked at.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is of another kind.
    #[error("{}: it is {found}, not {wanted}", path.display())]
    Kind {
        /// Which one.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be.
        wanted: &'static str,
    },
    /// It is another user's.
    #[error("{}: it belongs to user {owner}, not to user {}", path.display(), geteuid())]
    Owner {
        /// Which one.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Others may write to it.
    #[error("{}: other users may write to it (mode {mode:04o})", path.display())]
    Writable {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl OwnDirError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Kind { .. } | Self::Owner { .. } | Self::Writable { .. } => Some(
                "see who made it; then remove it, and the daemon makes its own, or name another one with --bpffs, \
                 --run-dir or --state-dir"
                    .to_owned(),
            ),
        }
    }
}

/// Makes `path` with `mode`, and the directories above it; one that is there must be ours alone.
///
/// # Errors
/// When it cannot be made, or somebody else could change what is in it.
pub fn make(path: &Path, mode: u32) -> Result<(), OwnDirError> {
    let failed = |source| OwnDirError::Io { op: "make directory", path: path.to_owned(), source };
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_dir_all(above).map_err(failed)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    check(path)
}

/// Fails unless `path` is a directory that is ours alone.
///
/// # Errors
/// Why it is not.
pub fn check(path: &Path) -> Result<(), OwnDirError> {
    // What a link leads to can be another directory a moment later.
    let found =
        symlink_metadata(path).map_err(|source| OwnDirError::Io { op: "look at", path: path.to_owned(), source })?;
    if !found.is_dir() {
        return Err(OwnDirError::Kind { path: path.to_owned(), found: kind(&found), wanted: "a directory" });
    }
    owned(path, &found)?;
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(OwnDirError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Fails unless nobody else can put something in the place of what is below `path`: it is ours or root's, and others
/// may write to it at most as to `/tmp`.
///
/// # Errors
/// Why somebody can.
pub fn check_above(path: &Path) -> Result<(), OwnDirError> {
    let found = path.metadata().map_err(|source| OwnDirError::Io { op: "look at", path: path.to_owned(), source })?;
    if found.uid() != 0 {
        owned(path, &found)?;
    }
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(OwnDirError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Fails unless `found`, that is at `path`, is a file of ours.
///
/// # Errors
/// Why it is not.
pub fn check_file(path: &Path, found: &Metadata) -> Result<(), OwnDirError> {
    if !found.is_file() {
        return Err(OwnDirError::Kind { path: path.to_owned(), found: kind(found), wanted: "a file" });
    }
    owned(path, found)
}

fn owned(path: &Path, found: &Metadata) -> Result<(), OwnDirError> {
    if found.uid() == geteuid().as_raw() {
        return Ok(());
    }
    Err(OwnDirError::Owner { path: path.to_owned(), owner: found.uid() })
}

fn kind(found: &Metadata) -> &'static str {
    if found.is_symlink() {
        "a symbolic link"
    } else if found.is_dir() {
        "a directory"
    } else if found.is_file() {
        "a file"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn refusal(path: &Path) -> String {
        let error = make(path, 0o700).expect_err("refused");
        assert!(error.help().is_some(), "{error}");
        error.to_string()
    }

    #[test]
    fn what_is_made_has_the_mode_and_is_taken_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("above/own");
        make(&path, 0o700).expect("made");
        assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o700);
        make(&path, 0o700).expect("taken again");
    }

    #[test]
    fn what_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("own");
        for mode in [0o777, 0o1777, 0o770, 0o702] {
            make(&path, 0o700).expect("made");
            set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            assert_eq!(refusal(&path), format!("{}: other users may write to it (mode {mode:04o})", path.display()));
            std::fs::remove_dir(&path).expect("removed");
        }
    }

    #[test]
    fn a_link_and_a_file_are_no_directory() {
        let dir = tempfile::tempdir().expect("a folder");
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        symlink(dir.path(), &link).expect("linked");
        std::fs::write(&file, "").expect("written");
        assert_eq!(refusal(&link), format!("{}: it is a symbolic link, not a directory", link.display()));
        assert_eq!(refusal(&file), format!("{}: it is a file, not a directory", file.display()));
    }

    #[test]
    fn above_it_others_may_write_as_to_tmp() {
        let dir = tempfile::tempdir().expect("a folder");
        for (mode, fine) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false)] {
            set_permissions(dir.path(), Permissions::from_mode(mode)).expect("set");
            assert_eq!(check_above(dir.path()).is_ok(), fine, "{mode:o}");
        }
    }
}
