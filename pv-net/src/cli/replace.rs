//! Changes a file that somebody else may own, such as a runtime's configuration.

use crate::failure::{Failure, Kind};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// Writes a file that has the text `before` as a whole or not at all; its owner and permissions stay.
///
/// Its directory may belong to a user who wants root to write elsewhere. Therefore no symbolic link is followed at the
/// file's own name, and the new file is none that was there already.
///
/// # Errors
/// When the file is a symbolic link, is gone, or cannot be written. It is unchanged then.
pub(super) fn replace(file: &Path, before: &str, after: &str) -> Result<(), Failure> {
    if before == after {
        return Ok(());
    }
    let failed = |e: io::Error| Failure::new(Kind::Usage, format!("{}: {e}", file.display()));
    let old = fs::symlink_metadata(file).map_err(failed)?;
    if !old.is_file() {
        return Err(Failure::new(Kind::Usage, format!("{}: is no regular file", file.display()))
            .help("name the file itself, not a link that leads to it"));
    }
    let new = beside(file);
    let written = write(&new, &old, after).and_then(|()| fs::rename(&new, file));
    if let Err(e) = written {
        // One that somebody else has put there is left alone.
        if e.kind() != io::ErrorKind::AlreadyExists {
            fs::remove_file(&new).ok();
        }
        return Err(failed(e));
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".pv-net-{}", std::process::id()));
    file.with_file_name(name)
}

fn write(new: &Path, old: &fs::Metadata, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(text.as_bytes())?;
    fchown(&file, Some(old.uid()), Some(old.gid()))?;
    file.set_permissions(old.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_keeps_its_permissions_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config");
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        replace(&file, "old", "new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("read"), "new");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (target, link) = (dir.path().join("target"), dir.path().join("config"));
        fs::write(&target, "old").expect("written");
        symlink(&target, &link).expect("linked");
        let failure = replace(&link, "old", "new").expect_err("a link");
        assert!(failure.to_string().contains("no regular file"), "{failure}");
        // Nor at the name of the new file.
        let file = dir.path().join("other");
        fs::write(&file, "old").expect("written");
        symlink(&target, beside(&file)).expect("linked");
        replace(&file, "old", "new").expect_err("somebody else's");
        assert_eq!(fs::read_to_string(&target).expect("read"), "old");
        assert_eq!(fs::read_to_string(&file).expect("read"), "old");
    }
}
