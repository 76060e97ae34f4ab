//! Which containers were stopped by a request: a file for each, until the next boot.

use super::containers::{Containers, directory};
use crate::model::ContainerName;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

impl Containers {
    /// Where it is written down that a container was stopped by a request.
    fn stopped_mark(&self, name: &ContainerName) -> PathBuf {
        directory(self.paths()).join(format!("{name}.stopped"))
    }

    /// Whether a container was stopped by a request since the last boot, and not started since.
    pub(super) fn is_kept_stopped(&self, name: &ContainerName) -> bool {
        self.stopped_mark(name).exists()
    }

    /// Writes down whether it was, for the automatic starts.
    pub(super) fn keep_stopped(&self, name: &ContainerName, is_kept: bool) {
        let mark = self.stopped_mark(name);
        let done = match is_kept {
            true => {
                let mut options = File::options();
                options.create(true).truncate(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
                options.open(&mark).map(drop)
            }
            false if mark.exists() => std::fs::remove_file(&mark),
            false => Ok(()),
        };
        if let Err(e) = done {
            tracing::warn!(file = %mark.display(), error = %e, "not written down whether the container was stopped");
        }
    }
}
