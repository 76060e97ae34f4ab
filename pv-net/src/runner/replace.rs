//! Changes a file that somebody else may own, such as a runtime's configuration.

use crate::config::load;
use crate::failure::{Failure, Kind};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

/// How many names that are taken are passed over.
const TRIED: u32 = 16;

/// A file that was read, to be replaced.
///
/// Its directory may belong to a user who wants root to write or to show something else. Therefore everything is done in
/// the directory that was opened first, whatever its path leads to later; no symbolic link is followed at the file's own
/// name; and the new file is none that was there already.
pub struct Replaced {
    path: PathBuf,
    dir: File,
    name: OsString,
    old: Metadata,
    text: String,
}

fn failed(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, format!("{}: {e}", path.display()))
}

impl Replaced {
    /// Opens the file and reads it.
    ///
    /// # Errors
    /// When it is no regular file, or cannot be read.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| failed(path, "is no regular file"))?.to_owned();
        let dir = File::open(parent).map_err(|e| failed(path, e))?;
        // A pipe would make the reader wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&dir, &name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::LOOP) => return Err(no_regular(path)),
            Err(e) => return Err(failed(path, io::Error::from(e))),
        };
        let old = file.metadata().map_err(|e| failed(path, e))?;
        if !old.is_file() {
            return Err(no_regular(path));
        }
        let text = load::content(file, path)?;
        Ok(Self { path: path.to_owned(), dir, name, old, text })
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes it as a whole or not at all; its owner and permissions stay.
    ///
    /// # Errors
    /// When it cannot be written. It is unchanged then.
    pub fn with(&self, text: &str) -> Result<(), Failure> {
        if text == self.text {
            return Ok(());
        }
        let (new, file) = self.beside().map_err(|e| failed(&self.path, e))?;
        let written = self.fill(file, text).and_then(|()| Ok(renameat(&self.dir, &new, &self.dir, &self.name)?));
        if let Err(e) = written {
            unlinkat(&self.dir, &new, AtFlags::empty()).ok();
            return Err(failed(&self.path, e));
        }
        self.dir.sync_all().map_err(|e| failed(&self.path, e))
    }

    /// A new file in the same directory, and its name. A name that is taken is left alone: the file may be that of a
    /// process that was killed, and had the same id.
    fn beside(&self) -> io::Result<(OsString, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut tried = 0;
        loop {
            let mut new = self.name.clone();
            new.push(format!(".pv-net-{}-{tried}", std::process::id()));
            match openat(&self.dir, &new, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((new, File::from(file))),
                Err(rustix::io::Errno::EXIST) if tried < TRIED => tried += 1,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn fill(&self, mut file: File, text: &str) -> io::Result<()> {
        file.write_all(text.as_bytes())?;
        fchown(&file, Some(self.old.uid()), Some(self.old.gid()))?;
        file.set_permissions(self.old.permissions())?;
        file.sync_all()
    }
}

fn no_regular(path: &Path) -> Failure {
    failed(path, "is no regular file").help("name the file itself, not a link that leads to it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_keeps_its_permissions_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config");
        fs::write(&file, "old").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        let read = Replaced::read(&file).expect("read");
        assert_eq!(read.text(), "old");
        read.with("new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("read"), "new");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn nothing_but_the_file_itself_is_read_or_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let (target, link, pipe) = (dir.path().join("target"), dir.path().join("link"), dir.path().join("pipe"));
        fs::write(&target, "old").expect("written");
        symlink(&target, &link).expect("linked");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        for other in [&link, &pipe, &dir.path().to_owned()] {
            let failure = Replaced::read(other).map(|_| ()).expect_err("no regular file");
            assert!(failure.to_string().contains("no regular file"), "{failure}");
        }
        // Nor what its path leads to later, and nothing that lies at the name of the new file.
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        for each in [&here, &there] {
            fs::create_dir(each).expect("made");
            fs::write(each.join("config"), "old").expect("written");
        }
        let read = Replaced::read(&here.join("config")).expect("read");
        fs::rename(&here, dir.path().join("moved")).expect("moved");
        symlink(&there, &here).expect("linked");
        read.with("new").expect("replaced");
        assert_eq!(fs::read_to_string(there.join("config")).expect("read"), "old");
        assert_eq!(fs::read_to_string(dir.path().join("moved/config")).expect("read"), "new");
        let new = there.join(format!("config.pv-net-{}-0", std::process::id()));
        symlink(&target, &new).expect("linked");
        Replaced::read(&there.join("config")).expect("read").with("new").expect("by another name");
        assert_eq!(fs::read_to_string(&target).expect("read"), "old");
        assert_eq!(fs::read_to_string(there.join("config")).expect("read"), "new");
        assert!(fs::symlink_metadata(&new).expect("there").is_symlink());
    }
}
