//! Where the pins are: `<bpffs>/maps/NAME`, `<bpffs>/programs/DIGEST/PROGRAM`, `<bpffs>/links/PROGRAM/LINK`,
//! `<bpffs>/links/xdp_MODE/LINK` and `<bpffs>/links/sockets/PROGRAM`.
//!
//! A BPF file system refuses names with a dot, and names of links have them: VLAN links are called `eth0.100`. So LINK
//! is the name with `%2e` for a dot and `%25` for a percent sign.

use super::BpfError;
use super::hooks::Place;
use super::xdp;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use pv_net_common::names;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) fn maps_dir(root: &Path) -> PathBuf {
    root.join("maps")
}

pub(super) fn programs_dir(root: &Path) -> PathBuf {
    root.join("programs")
}

pub(super) fn links_dir(root: &Path) -> PathBuf {
    root.join("links")
}

pub(super) fn sockets_dir(root: &Path) -> PathBuf {
    links_dir(root).join("sockets")
}

/// Every directory below `root`, the deeper ones first.
fn dirs(root: &Path) -> Vec<PathBuf> {
    let places = Place::ALL.into_iter().map(|place| place.dir(root));
    let roofs = [sockets_dir(root), links_dir(root), programs_dir(root), maps_dir(root), root.to_owned()];
    places.chain(xdp::dirs(root)).chain(roofs).collect()
}

pub(super) fn pin_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::Pin { op, path, source }
}

/// Makes the directories; an error when `root` is not on a BPF file system.
pub(super) fn make_dirs(root: &Path) -> Result<(), BpfError> {
    let existing = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(existing).map_err(|e| pin_error("inspect", existing)(io::Error::from(e)))?.filesystem_type();
    if kind != BPF_FS_MAGIC {
        return Err(BpfError::NotBpffs { path: root.to_owned() });
    }
    for dir in dirs(root) {
        fs::create_dir_all(&dir).map_err(pin_error("create directory", &dir))?;
    }
    Ok(())
}

/// Where the link called `link` is pinned in `dir`.
pub(super) fn of_link(dir: &Path, link: &str) -> PathBuf {
    dir.join(link.replace('%', "%25").replace('.', "%2e"))
}

/// Names of the links that are pinned in `dir`, sorted; none when it does not exist.
pub(super) fn links(dir: &Path) -> Result<Vec<String>, BpfError> {
    let mut names: Vec<String> = list(dir)?.iter().map(|file| file.replace("%2e", ".").replace("%25", "%")).collect();
    names.sort();
    Ok(names)
}

/// File names in `dir`, sorted; none when it does not exist.
fn list(dir: &Path) -> Result<Vec<String>, BpfError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(pin_error("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(pin_error("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes a pin; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Directories of pinned programs.
pub(super) fn program_dirs(root: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let all = programs_dir(root);
    Ok(list(&all)?.into_iter().map(|name| all.join(name)).collect())
}

/// Removes a directory of pinned programs; one that is not there is fine.
pub(super) fn remove_programs(dir: &Path) -> Result<(), BpfError> {
    list(dir)?.iter().try_for_each(|name| remove(&dir.join(name)))?;
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove directory", dir)(e)),
        _ => Ok(()),
    }
}

/// Removes every pin of pv-net under `root` and the directories: links first, so that no program runs without its
/// maps being findable. What else is in `root` stays.
///
/// # Errors
/// The first pin that could not be removed; those after it are tried all the same.
pub fn remove_all(root: &Path) -> Result<(), BpfError> {
    let mut first = Ok(());
    let mut note = |result: Result<(), BpfError>| {
        if first.is_ok() {
            first = result;
        }
    };
    for dir in Place::ALL.into_iter().map(|place| place.dir(root)).chain(xdp::dirs(root)).chain([sockets_dir(root)]) {
        match list(&dir) {
            Ok(names) => names.iter().for_each(|name| note(remove(&dir.join(name)))),
            Err(e) => note(Err(e)),
        }
    }
    match program_dirs(root) {
        Ok(dirs) => dirs.iter().for_each(|dir| note(remove_programs(dir))),
        Err(e) => note(Err(e)),
    }
    for name in names::MAPS.into_iter().chain(names::FORMER_MAPS) {
        note(remove(&maps_dir(root).join(name)));
    }
    for dir in dirs(root) {
        match fs::remove_dir(&dir) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::EBUSY)) => {}
            other => note(other.map_err(pin_error("remove directory", &dir))),
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pin_has_no_dot() {
        let path = of_link(Path::new("/x"), "eth0.100%2e");
        assert_eq!(path, Path::new("/x/eth0%2e100%252e"));
    }

    proptest! {
        #[test]
        fn names_of_links_come_back(names in proptest::collection::btree_set("[a-z0-9%.]{1,15}", 0..5)) {
            let names: Vec<String> = names.into_iter().filter(|n| n != "." && n != "..").collect();
            let dir = tempfile::tempdir().expect("a folder");
            for name in &names {
                fs::write(of_link(dir.path(), name), "").expect("written");
            }
            prop_assert_eq!(links(dir.path()).expect("listed"), names);
        }
    }
}
