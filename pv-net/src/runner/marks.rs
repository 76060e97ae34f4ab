//! What the next runner must know of a container: marks in the runner's directory, which stay until the next boot.

use super::containers::{Containers, directory};
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

impl Containers {
    fn mark_file(&self, name: &ContainerName, mark: Mark) -> PathBuf {
        let end = match mark {
            Mark::Stopped => "stopped",
            Mark::Unchecked => "unchecked",
        };
        directory(self.paths()).join(format!("{name}.{end}"))
    }

    /// Whether a container has a mark.
    pub(super) fn is_marked(&self, name: &ContainerName, mark: Mark) -> bool {
        self.mark_file(name, mark).exists()
    }

    /// Gives a container a mark.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn mark(&self, name: &ContainerName, mark: Mark) -> Result<(), Failure> {
        let file = self.mark_file(name, mark);
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&file).map(drop).map_err(|e| Failure::new(Kind::Internal, format!("{}: {e}", file.display())))
    }

    /// Takes a mark away.
    pub(super) fn unmark(&self, name: &ContainerName, mark: Mark) {
        let file = self.mark_file(name, mark);
        if let Err(e) = std::fs::remove_file(&file)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), error = %e, "a mark is not removed");
        }
    }
}
