//! The layout of the pins: `<bpffs>/maps/NAME`, `<bpffs>/programs/DIGEST/PROGRAM`, `<bpffs>/links/PROGRAM/INDEX`,
//! `<bpffs>/links/xdp_MODE/INDEX`, `<bpffs>/links/sockets/PROGRAM` and `<bpffs>/links/child_{out,in}/CHILD`.
//!
//! The XDP mode of a link is part of its pin's path, since the kernel does not report it.
//!
//! INDEX is the interface index of the device. A name can be given to another device at any time, but an index stays
//! with its device as long as that is in the namespace.

use super::BpfError;
use super::place::Place;
use crate::kernel::{kill_point, own_dir};
use crate::model::XdpMode;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use pv_net_common::names;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Mode of the directories: whoever can write to them could put maps and programs there that the daemon takes for its
/// own.
const DIR_MODE: u32 = 0o700;

pub(super) fn maps_dir(root: &Path) -> PathBuf {
    root.join("maps")
}

/// Directory of the maps that are to replace those in force.
pub(super) fn new_maps_dir(root: &Path) -> PathBuf {
    root.join("maps_new")
}

/// Directory of the maps that were replaced and are about to be removed.
pub(super) fn old_maps_dir(root: &Path) -> PathBuf {
    root.join("maps_old")
}

pub(super) fn programs_dir(root: &Path) -> PathBuf {
    root.join("programs")
}

/// Directory of programs that are loaded but have not passed their self-test yet.
pub(super) fn new_programs_dir(root: &Path) -> PathBuf {
    programs_dir(root).join("new")
}

fn links_dir(root: &Path) -> PathBuf {
    root.join("links")
}

pub(super) fn sockets_dir(root: &Path) -> PathBuf {
    links_dir(root).join("sockets")
}

/// Directory of the links of the programs at the egress of macvlan interfaces.
pub(super) fn child_out_dir(root: &Path) -> PathBuf {
    links_dir(root).join("child_out")
}

/// Directory of the links of the programs at their ingress.
pub(super) fn child_in_dir(root: &Path) -> PathBuf {
    links_dir(root).join("child_in")
}

/// Directory of the links of the program at the egress of their parents.
pub(super) fn parent_out_dir(root: &Path) -> PathBuf {
    links_dir(root).join(names::PROG_PARENT)
}

/// Directory of the links of the program at the ingress of their parents.
pub(super) fn parent_in_dir(root: &Path) -> PathBuf {
    links_dir(root).join(names::PROG_PARENT_IN)
}

/// Directory of the links of the program at the egress of the device's own interfaces on parents.
pub(super) fn device_out_dir(root: &Path) -> PathBuf {
    links_dir(root).join(names::PROG_DEVICE_OUT)
}

/// Directory of the links of the program at their ingress.
pub(super) fn device_in_dir(root: &Path) -> PathBuf {
    links_dir(root).join(names::PROG_DEVICE_IN)
}

/// Directory of the links of a place's program.
pub(super) fn place_dir(root: &Path, place: Place) -> PathBuf {
    links_dir(root).join(place.program())
}

/// Directory of the links of the uplinks' filter that run in `mode`.
pub(super) fn filter_dir(root: &Path, mode: XdpMode) -> PathBuf {
    let name = match mode {
        XdpMode::Native => "xdp_native",
        XdpMode::Generic => "xdp_generic",
    };
    links_dir(root).join(name)
}

/// Every directory with pins of links to devices.
pub(super) fn link_dirs(root: &Path) -> impl Iterator<Item = PathBuf> {
    let places = Place::ALL.into_iter().map(|place| place_dir(root, place));
    let parents = [parent_out_dir(root), parent_in_dir(root), device_out_dir(root), device_in_dir(root)];
    places.chain(parents).chain(XdpMode::ALL.into_iter().map(|mode| filter_dir(root, mode)))
}

/// Every directory under `root` that exists while a daemon runs, the deepest first.
fn dirs(root: &Path) -> Vec<PathBuf> {
    let children = [child_out_dir(root), child_in_dir(root)];
    let roofs = [sockets_dir(root), links_dir(root), programs_dir(root), maps_dir(root), root.to_owned()];
    link_dirs(root).chain(children).chain(roofs).collect()
}

fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    let found = statfs(path).map_err(|e| pin_error("inspect", path)(io::Error::from(e)))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn pin_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::Pin { op, path, source }
}

/// Makes `root`. It must be on a BPF file system and belong to the daemon alone.
pub(super) fn make_root(root: &Path) -> Result<(), BpfError> {
    if root.is_symlink() {
        own_dir::check(root)?;
    }
    let existing = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing)? {
        return Err(BpfError::NotBpffs { path: root.to_owned() });
    }
    Ok(own_dir::make(root, DIR_MODE)?)
}

/// Makes the directories under `root`. Existing ones must belong to the daemon alone.
pub(super) fn make_dirs(root: &Path) -> Result<(), BpfError> {
    Ok(dirs(root).iter().rev().try_for_each(|dir| own_dir::make(dir, DIR_MODE))?)
}

/// Makes one directory that does not exist yet.
pub(super) fn make_dir(dir: &Path) -> Result<(), BpfError> {
    Ok(own_dir::make(dir, DIR_MODE)?)
}

/// The pin in `dir` of the link to the device with this index.
pub(super) fn of_link(dir: &Path, index: u32) -> PathBuf {
    dir.join(index.to_string())
}

/// The indexes by which links are pinned in `dir`, sorted; empty when `dir` does not exist.
pub(super) fn links(dir: &Path) -> Result<Vec<u32>, BpfError> {
    let mut all: Vec<u32> = list(dir)?.iter().filter_map(|file| file.parse().ok()).collect();
    all.sort_unstable();
    Ok(all)
}

/// Every pin of a link to a device under `root`.
pub(super) fn all_links(root: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut all = Vec::new();
    for dir in link_dirs(root) {
        all.extend(list(&dir)?.iter().map(|file| dir.join(file)));
    }
    Ok(all)
}

/// Indexes of uplinks that have the filter, with its mode.
pub(super) fn filtered_uplinks(root: &Path) -> Result<Vec<(u32, XdpMode)>, BpfError> {
    let mut all = Vec::new();
    for mode in XdpMode::ALL {
        all.extend(links(&filter_dir(root, mode))?.into_iter().map(|index| (index, mode)));
    }
    Ok(all)
}

/// File names in `dir`, sorted; empty when `dir` does not exist.
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

/// Removes a pin; a missing one is fine.
pub(super) fn remove(path: &Path) -> Result<(), BpfError> {
    kill_point::pass();
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The directories of pinned programs.
pub(super) fn program_dirs(root: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let all = programs_dir(root);
    Ok(list(&all)?.into_iter().map(|name| all.join(name)).collect())
}

/// Removes a directory with the pins in it; a missing one is fine.
pub(super) fn remove_dir(dir: &Path) -> Result<(), BpfError> {
    list(dir)?.iter().try_for_each(|name| remove(&dir.join(name)))?;
    kill_point::pass();
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove directory", dir)(e)),
        _ => Ok(()),
    }
}

/// Removes every pin of pv-net under `root` and the directories. The links go first, so that no program keeps running
/// after its maps' pins are gone. Other files in `root` stay.
///
/// # Errors
/// The first pin that could not be removed; the rest is tried all the same.
pub fn remove_all(root: &Path) -> Result<(), BpfError> {
    let mut first = Ok(());
    let mut note = |result: Result<(), BpfError>| {
        if first.is_ok() {
            first = result;
        }
    };
    for dir in link_dirs(root).chain([child_out_dir(root), child_in_dir(root), sockets_dir(root)]) {
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

    #[test]
    fn pins_are_found_by_their_index() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["10", "9", "eth0"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        assert_eq!(links(dir.path()).expect("listed"), [9, 10]);
        assert_eq!(of_link(dir.path(), 9), dir.path().join("9"));
    }
}
