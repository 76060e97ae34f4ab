//! Finds the cgroup on which the socket hooks are attached.

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use std::path::{Path, PathBuf};

/// `wanted` if it is in the cgroup2 hierarchy, else the place where that is mounted, as on hybrid systems.
#[must_use]
pub fn find(wanted: &Path) -> Option<PathBuf> {
    let unified = |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if unified(wanted) {
        return Some(wanted.to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().filter_map(mount_point).find(|path| unified(path))
}

/// The mount point of a cgroup2 line of `mountinfo` (proc(5)).
#[must_use]
pub fn mount_point(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let is_unified = kind.split(' ').next() == Some("cgroup2");
    is_unified.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::mount_point;

    #[test]
    fn a_cgroup2_line_names_its_mount_point() {
        let line = "32 24 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount_point(line).as_deref(), Some("/sys/fs/cgroup/unified".as_ref()));
        assert_eq!(mount_point("33 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }
}
