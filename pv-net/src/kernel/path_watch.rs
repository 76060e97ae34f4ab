//! Tells when something may have changed at watched paths. It tells neither what nor where, and there may be false
//! alarms: the caller has to look.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Events by which a name in the directory, or the directory itself, comes to mean another file.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Two sources of events. inotify reports names that come and go, but not mounts; those are reported by
/// `/proc/self/mountinfo`. `ip netns add` makes a file, which inotify reports, and then mounts the namespace on it,
/// which it does not.
pub struct PathWatch {
    names: AsyncFd<Names>,
    mounts: AsyncFd<File>,
}

struct Names(Inotify);

impl AsRawFd for Names {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl PathWatch {
    /// Watches only mounts at first. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no more inotify instances (`EMFILE`), or `/proc` is not there.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mounts = File::open("/proc/self/mountinfo")?;
        Ok(Self {
            // SAFETY: the instance owns its descriptor, and is neither changed nor taken out.
            names: unsafe { AsyncFd::register_with_interest(Names(inotify), Interest::READABLE) }?,
            // SAFETY: the file owns its descriptor, and is neither changed nor taken out.
            mounts: unsafe { AsyncFd::register_with_interest(mounts, Interest::PRIORITY) }?,
        })
    }

    /// Watches `dir`, or the nearest directory above it that exists, so that its creation is reported. Changes after
    /// this returns are never missed. Blocks as long as the file system does.
    ///
    /// # Errors
    /// When nothing on the path can be watched, such as when the user has too many watches (`ENOSPC`).
    pub fn watch(&self, dir: &Path) -> io::Result<Watched> {
        loop {
            let mut below = dir;
            let found = dir.ancestors().find_map(|at| match self.names.get_ref().0.add_watch(at, CHANGES) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => {
                    below = at;
                    None
                }
                done => Some((at, done)),
            });
            let Some((at, watched)) = found else { return Err(Errno::ENOENT.into()) };
            let watched = Watched(watched?);
            // Something made before the watch existed was not reported, so the path is checked again.
            if at == dir || !below.is_dir() {
                return Ok(watched);
            }
        }
    }

    /// Ends the watches in `old` that are not in `kept`.
    pub fn forget(&self, old: &BTreeSet<Watched>, kept: &BTreeSet<Watched>) {
        for gone in old.difference(kept) {
            // Fails when the directory is gone, since the kernel has ended the watch then.
            let _ = self.names.get_ref().0.rm_watch(gone.0);
        }
    }

    /// Waits until something may have changed.
    ///
    /// # Errors
    /// When the kernel's events cannot be read.
    pub async fn changed(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.names.readable() => {
                let mut ready = ready?;
                // Reads all events away; the caller looks for itself what has changed.
                while let Ok(read) = ready.try_io(|names| Ok(names.get_ref().0.read_events()?)) {
                    read?;
                }
            }
            ready = self.mounts.ready(Interest::PRIORITY) => ready?.clear_ready(),
        }
        Ok(())
    }
}

/// A directory that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched(WatchDescriptor);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    /// Mounts by other processes may wake the watch at any time, so this only checks that it wakes.
    async fn tells(watch: &PathWatch, what: &str) {
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap_or_else(|_| panic!("{what}")).expect("told");
    }

    #[tokio::test]
    async fn a_directory_that_is_made_later_is_watched_step_by_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let watch = PathWatch::new().expect("inotify");
        let deep = dir.path().join("a/b");
        let top = watch.watch(&deep).expect("the directory above");
        assert_eq!(top, watch.watch(dir.path()).expect("the same"));
        std::fs::create_dir(dir.path().join("a")).expect("made");
        tells(&watch, "the first step").await;
        let first = watch.watch(&deep).expect("one step more");
        assert_ne!(top, first);
        std::fs::create_dir(&deep).expect("made");
        tells(&watch, "the second step").await;
        let whole = watch.watch(&deep).expect("all of it");
        std::fs::write(deep.join("web"), []).expect("made");
        tells(&watch, "a file").await;
        std::fs::remove_file(deep.join("web")).expect("gone");
        tells(&watch, "a file that goes").await;
        watch.forget(&[top, first, whole].into(), &[whole].into());
        std::fs::remove_dir(&deep).expect("gone");
        tells(&watch, "the directory itself").await;
        assert_ne!(whole, watch.watch(&deep).expect("what is left of it"));
    }
}
