//! Where the pins are: `<bpffs>/maps/NAME`, `<bpffs>/programs/DIGEST/PROGRAM`, `<bpffs>/links/PROGRAM/LINK`,
//! `<bpffs>/links/xdp_MODE/LINK` and `<bpffs>/links/sockets/PROGRAM`.
//!
//! A link's XDP mode is in the folder of its pin: the kernel does not say it of a link.
//!
//! A BPF file system refuses names with a dot, and names of links have them: VLAN links are called `eth0.100`. So LINK
//! is the name with `%2e` for a dot and `%25` for a percent sign.

use super::BpfError;
use super::place::Place;
use crate::kernel::{kill_point, own_dir};
use crate::model::XdpMode;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whoever can write to a directory of pins puts maps and programs there of which the daemon believes that they are its own.
const DIR_MODE: u32 = 0o700;

pub(super) fn maps_dir(root: &Path) -> PathBuf {
    root.join("maps")
}

/// Maps that are to take the place of those.
pub(super) fn new_maps_dir(root: &Path) -> PathBuf {
    root.join("maps_new")
}

/// Maps of which another set took the place.
pub(super) fn old_maps_dir(root: &Path) -> PathBuf {
    root.join("maps_old")
}

pub(super) fn programs_dir(root: &Path) -> PathBuf {
    root.join("programs")
}

/// Programs that are loaded, and not tried yet.
pub(super) fn new_programs_dir(root: &Path) -> PathBuf {
    programs_dir(root).join("new")
}

fn links_dir(root: &Path) -> PathBuf {
    root.join("links")
}

pub(super) fn sockets_dir(root: &Path) -> PathBuf {
    links_dir(root).join("sockets")
}

/// Where links of a program's place are pinned.
pub(super) fn place_dir(root: &Path, place: Place) -> PathBuf {
    links_dir(root).join(place.program())
}

/// Where links of the uplinks' filter are pinned that run in `mode`.
pub(super) fn filter_dir(root: &Path, mode: XdpMode) -> PathBuf {
    let name = match mode {
        XdpMode::Native => "xdp_native",
        XdpMode::Generic => "xdp_generic",
    };
    links_dir(root).join(name)
}

/// Every directory that pins of links to devices are in.
pub(super) fn link_dirs(root: &Path) -> impl Iterator<Item = PathBuf> {
    let places = Place::ALL.into_iter().map(|place| place_dir(root, place));
    places.chain(XdpMode::ALL.into_iter().map(|mode| filter_dir(root, mode)))
}

/// Every directory below `root` that is there while a daemon runs, the deeper ones first.
fn dirs(root: &Path) -> Vec<PathBuf> {
    let roofs = [sockets_dir(root), links_dir(root), programs_dir(root), maps_dir(root), root.to_owned()];
    link_dirs(root).chain(roofs).collect()
}

fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    let found = statfs(path).map_err(|e| pin_error("inspect", path)(io::Error::from(e)))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn pin_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::Pin { op, path, source }
}

/// Makes `root`, that must be on a BPF file system, and ours alone.
pub(super) fn make_root(root: &Path) -> Result<(), BpfError> {
    if root.is_symlink() {
        own_dir::check(root)?;
    }
    let existing = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing)? {
        return Err(BpfError::NotBpffs { path: root.to_owned() });
    }
    own_dir::make(root, DIR_MODE)?;
    for above in root.ancestors().skip(1) {
        if !is_bpffs(above)? {
            break;
        }
        own_dir::check_above(above)?;
    }
    Ok(())
}

/// Makes the directories in `root`; those that are there must be ours alone.
pub(super) fn make_dirs(root: &Path) -> Result<(), BpfError> {
    Ok(dirs(root).iter().rev().try_for_each(|dir| own_dir::make(dir, DIR_MODE))?)
}

/// Makes a directory that is not there yet.
pub(super) fn make_dir(dir: &Path) -> Result<(), BpfError> {
    Ok(own_dir::make(dir, DIR_MODE)?)
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

/// Uplinks that have the filter, and how it runs there.
pub(super) fn filtered_uplinks(root: &Path) -> Result<Vec<(String, XdpMode)>, BpfError> {
    let mut all = Vec::new();
    for mode in XdpMode::ALL {
        all.extend(links(&filter_dir(root, mode))?.into_iter().map(|name| (name, mode)));
    }
    Ok(all)
}

/// File names in `dir`, sorted; none when it does not exist.
pub(super) fn list(dir: &Path) -> Result<Vec<String>, BpfError> {
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
    kill_point::pass();
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

/// Removes a directory with the pins in it; one that is not there is fine.
pub(super) fn remove_dir(dir: &Path) -> Result<(), BpfError> {
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
    for dir in link_dirs(root).chain([sockets_dir(root)]) {
        note(remove_dir(&dir));
    }
    match program_dirs(root) {
        Ok(dirs) => dirs.iter().for_each(|dir| note(remove_dir(dir))),
        Err(e) => note(Err(e)),
    }
    for dir in [maps_dir(root), new_maps_dir(root), old_maps_dir(root)] {
        note(remove_dir(&dir));
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
