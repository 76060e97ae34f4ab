//! Checks that the directories of the state, the lock and the pins belong to the daemon alone.
//!
//! Whoever can write to such a directory could put a lock, a map or a program there that the daemon takes for its own.
//! In `/sys/fs/bpf` and `/tmp` everybody can make directories, so an existing one proves nothing.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use std::fs::{DirBuilder, File, Metadata, Permissions, create_dir_all, symlink_metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode bits that let the group or everybody else write.
const OTHERS_WRITE: u32 = 0o022;
/// The sticky bit: in such a directory nobody can rename or remove another user's files.
const STICKY: u32 = 0o1000;

/// Why a directory or file is not used.
#[derive(Debug, thiserror::Error)]
pub enum OwnDirError {
    /// It could not be made or looked at.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// It is not of the expected kind.
    #[error("{}: it is {found}, not {wanted}", path.display())]
    Kind {
        /// Which one.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What was expected.
        wanted: &'static str,
    },
    /// It belongs to another user.
    #[error("{}: it belongs to user {owner}, not to user {}", path.display(), geteuid())]
    Owner {
        /// Which one.
        path: PathBuf,
        /// That user's id.
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
    /// Another daemon has locked it.
    #[error("{}: another daemon runs with this directory", path.display())]
    InUse {
        /// Which one.
        path: PathBuf,
    },
}

impl OwnDirError {
    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::InUse { .. } => Some(
                "stop it; daemons in different network namespaces need --bpffs, --run-dir and --state-dir of their own"
                    .to_owned(),
            ),
            Self::Kind { .. } | Self::Owner { .. } | Self::Writable { .. } => Some(
                "see who made it; then remove it, and the daemon makes its own, or name another one with --bpffs, \
                 --run-dir or --state-dir"
                    .to_owned(),
            ),
        }
    }
}

/// Makes `path` with `mode`, and the directories above it. If `path` exists, it must belong to the daemon alone. Nobody
/// else may be able to put another directory in its place.
///
/// # Errors
/// When it cannot be made, or somebody else could change what is in it.
pub fn make(path: &Path, mode: u32) -> Result<(), OwnDirError> {
    let failed = |source| OwnDirError::Io { op: "make directory", path: path.to_owned(), source };
    // The existing directories above are checked first: the daemon may be unable to make a directory in another user's,
    // and that it is another user's says more than the error of making one.
    if let Some(there) = path.ancestors().skip(1).find(|above| above.exists()) {
        there.canonicalize().map_err(failed)?.ancestors().try_for_each(check_above)?;
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_dir_all(above).map_err(failed)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    check(path)?;
    let whole = path.canonicalize().map_err(failed)?;
    whole.ancestors().skip(1).try_for_each(check_above)
}

/// The lock of a directory, as long as this is held. It ends with the process, however that ends.
#[derive(Debug)]
pub struct DirLock {
    _dir: Option<Flock<File>>,
}

/// Locks `path`, a directory that belongs to the daemon alone, with permissions for nobody else: whoever can open it can
/// hold the lock. Nothing is written, so nothing is left behind. On a file system without locks of directories (NFS) the
/// lock is without effect.
///
/// # Errors
/// When another process holds the lock, or the directory cannot be opened.
pub fn lock(path: &Path) -> Result<DirLock, OwnDirError> {
    let failed = |op| move |source| OwnDirError::Io { op, path: path.to_owned(), source };
    let options = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).clone();
    let dir = options.open(path).map_err(failed("open"))?;
    let mode = dir.metadata().map_err(failed("look at"))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        dir.set_permissions(Permissions::from_mode(mode & 0o700)).map_err(failed("set the mode of"))?;
    }
    match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
        Ok(dir) => Ok(DirLock { _dir: Some(dir) }),
        Err((_, Errno::EWOULDBLOCK)) => Err(OwnDirError::InUse { path: path.to_owned() }),
        Err((_, why @ (Errno::EBADF | Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP))) => {
            tracing::warn!(path = %path.display(), %why, "not locked: a second daemon would not be noticed by it");
            Ok(DirLock { _dir: None })
        }
        Err((_, e)) => Err(failed("lock")(e.into())),
    }
}

/// Checks that `path` is a directory that belongs to the daemon alone.
///
/// # Errors
/// [`OwnDirError`], which says why it does not.
pub fn check(path: &Path) -> Result<(), OwnDirError> {
    // A symbolic link is refused, since it can lead to another directory a moment later.
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

/// Checks that nobody else can replace what is below `path`: it belongs to the daemon's user or root, and others may
/// write to it at most as to `/tmp`.
///
/// # Errors
/// [`OwnDirError`], which says who could.
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

/// Checks that `found`, the metadata of `path`, is a regular file of the daemon's user.
///
/// # Errors
/// [`OwnDirError`], which says why it is not.
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
    use std::fs::set_permissions;
    use std::os::unix::fs::symlink;

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
    fn a_locked_directory_is_in_use_until_the_lock_ends() {
        let dir = tempfile::tempdir().expect("a folder");
        set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("set");
        let held = lock(dir.path()).expect("locked");
        assert_eq!(dir.path().metadata().expect("there").mode() & 0o777, 0o700, "others could hold the lock");
        let error = lock(dir.path()).expect_err("in use");
        assert!(matches!(&error, OwnDirError::InUse { .. }) && error.help().is_some(), "{error}");
        drop(held);
        lock(dir.path()).expect("free again");
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
