//! What the next runner must know of a container: marks in the runner's directory, which stay until the next boot.

use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::model::ContainerName;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A mark: an empty file for each container that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// It was stopped by a request, and not started since: no automatic start starts it.
    Stopped,
    /// pv-net has begun to start it, and has not seen yet that it is outside of the device's network.
    Unchecked,
}

impl Mark {
    fn file(self, paths: &Paths, name: &ContainerName) -> PathBuf {
        let end = match self {
            Self::Stopped => "stopped",
            Self::Unchecked => "unchecked",
        };
        directory(paths).join(format!("{name}.{end}"))
    }

    /// Whether a container has the mark.
    pub(super) fn is_on(self, paths: &Paths, name: &ContainerName) -> bool {
        self.file(paths, name).exists()
    }

    /// Gives a container the mark.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn put(self, paths: &Paths, name: &ContainerName) -> Result<(), Failure> {
        let file = self.file(paths, name);
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&file).map(drop).map_err(|e| Failure::new(Kind::Internal, format!("{}: {e}", file.display())))
    }

    /// Takes the mark away.
    pub(super) fn remove(self, paths: &Paths, name: &ContainerName) {
        let file = self.file(paths, name);
        if let Err(e) = std::fs::remove_file(&file)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), error = %e, "a mark is not removed");
        }
    }
}

/// The runner's own directory, beside the daemon's and not in it: the daemon, which has fewer rights, can write to its own
/// and could put a symbolic link there.
pub(super) fn directory(paths: &Paths) -> PathBuf {
    let mut name = paths.run_dir.file_name().unwrap_or_default().to_owned();
    name.push("-runner");
    paths.run_dir.with_file_name(name)
}
