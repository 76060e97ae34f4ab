//! Macvlan interfaces: the programs on them, and where they are.
//!
//! Such an interface is made in the device's namespace, gets its programs there, and is then moved into the container's.
//! The programs stay on it, and only who holds their links can detach them: these are pinned, and the container does
//! not see the pins. A pinned link also tells the interface's present index, and that it is gone.
//!
//! For the daemon the interface has the number that maps have for it ([`LinkId::assigned`]) in place of an index, and the
//! name of its attachment's host-side link. [`Net`](crate::kernel::netlink::Net) finds it by these, here.
//!
//! The pins are called `HOST_IF@NSID`: NSID is the number of the container's namespace in the device's. While the
//! attach is not finished, the one of the egress has `;` behind.

use super::plane::{DataPlane, sender};
use super::sys::{self, Tcx};
use super::table::{Access, Table};
use super::{BpfError, pin};
use crate::kernel::kill_point;
use crate::model::IfName;
use crate::plan::ProgramState;
use pv_net_common::link::{CHILD_IN, CHILD_OUT};
use pv_net_common::{InterfaceInfo, LinkId, SenderKey, Stage, names};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The alias of an interface whose attachment is not known.
const STRAY: &str = "pv-net:stray";
/// The end of a pin's name while the attach is not finished.
const UNFINISHED: char = ';';

/// A macvlan interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its number in place of an index.
    pub number: u32,
    /// The name of its attachment's host-side link.
    pub host_if: IfName,
    /// The number of its namespace in the device's.
    pub ns: i32,
    /// Its index there.
    pub index: u32,
    /// The alias that its attachment has, as on other kinds of links.
    pub alias: String,
    /// The MAC of its lease, if its attachment is known.
    pub mac: Option<[u8; 6]>,
    /// Its attach is finished.
    pub finished: bool,
}

struct Known {
    host_if: IfName,
    ns: i32,
    alias: String,
    mac: Option<[u8; 6]>,
    /// The link of the program at its egress.
    link: OwnedFd,
    /// That link's pin, and that of the ingress.
    pins: [PathBuf; 2],
}

impl Known {
    fn finished(&self) -> bool {
        !self.pins[0].to_string_lossy().ends_with(UNFINISHED)
    }

    /// Its index in its namespace; 0 when it is gone.
    fn index(&self) -> u32 {
        sys::link_info(&self.link).ok().flatten().map_or(0, |info| info.ifindex)
    }
}

/// The interfaces that this process knows, by number. What is in it is a fact about the kernel, the same for all who ask.
static KNOWN: Mutex<BTreeMap<u32, Known>> = Mutex::new(BTreeMap::new());

fn known() -> MutexGuard<'static, BTreeMap<u32, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of the interface whose attachment has this host-side link. It is the same every time; two of a device's
/// names could have the same one only by a chance of one in two thousand millions, and then the second attach is refused.
#[must_use]
pub fn number_of(host_if: &IfName) -> u32 {
    let hash = Sha256::digest(host_if.as_str());
    let number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    LinkId::assigned(number >> 1).number()
}

/// Whether this number is that of a macvlan interface, and no index.
#[must_use]
pub const fn is_number(index: u32) -> bool {
    LinkId::of_index(index).is_assigned()
}

/// The interfaces that exist.
#[must_use]
pub fn all() -> Vec<Child> {
    let present = |(number, child): (&u32, &Known)| {
        let index = child.index();
        (index != 0).then(|| Child {
            number: *number,
            host_if: child.host_if.clone(),
            ns: child.ns,
            index,
            alias: child.alias.clone(),
            mac: child.mac,
            finished: child.finished(),
        })
    };
    known().iter().filter_map(present).collect()
}

/// The interface with this number, if it exists.
#[must_use]
pub fn at(number: u32) -> Option<Child> {
    all().into_iter().find(|child| child.number == number)
}

/// The interface of this attachment, if it exists.
#[must_use]
pub fn named(host_if: &str) -> Option<Child> {
    all().into_iter().find(|child| child.host_if.as_str() == host_if)
}

/// Notes that the attachment of an interface has another alias now, as its addresses have changed.
pub fn note_alias(number: u32, alias: String) {
    if let Some(child) = known().get_mut(&number) {
        child.alias = alias;
    }
}

/// Marks the attach of an interface as finished.
///
/// # Errors
/// When the pin cannot be renamed.
pub fn finish(number: u32) -> Result<(), BpfError> {
    let mut known = known();
    let Some(child) = known.get_mut(&number).filter(|child| !child.finished()) else { return Ok(()) };
    let path = child.pins[0].clone();
    let name = path.file_name().unwrap_or_default().to_string_lossy().trim_end_matches(UNFINISHED).to_owned();
    let whole = path.with_file_name(name);
    kill_point::pass();
    fs::rename(&path, &whole).map_err(pin::pin_error("rename", &path))?;
    child.pins[0] = whole;
    Ok(())
}

/// What the name of a pin says: the host-side link and the namespace's number.
fn read(pin: &str) -> Option<(IfName, i32)> {
    let (host_if, ns) = pin.trim_end_matches(UNFINISHED).split_once('@')?;
    Some((host_if.parse().ok()?, ns.parse().ok()?))
}

/// Reads which interfaces exist from the pins below `root`, and removes the pins of those that are gone. `of` tells the
/// alias and the MAC of the attachment that has a host-side link.
///
/// # Errors
/// When pins cannot be listed or removed.
pub fn discover(root: &Path, of: impl Fn(&IfName) -> Option<(String, [u8; 6])>) -> Result<(), BpfError> {
    let (out, inward) = (pin::child_out_dir(root), pin::child_in_dir(root));
    let mut found = BTreeMap::new();
    for name in pin::list(&out)? {
        let Some((host_if, ns)) = read(&name) else { continue };
        let pins = [out.join(&name), inward.join(format!("{host_if}@{ns}"))];
        let link = sys::pinned(&pins[0]).map_err(pin::pin_error("open", &pins[0]))?;
        let (alias, mac) = of(&host_if).map_or_else(|| (STRAY.to_owned(), None), |(alias, mac)| (alias, Some(mac)));
        let child = Known { host_if, ns, alias, mac, link, pins };
        if child.index() == 0 {
            child.pins.iter().try_for_each(|path| pin::remove(path))?;
        } else {
            found.insert(number_of(&child.host_if), child);
        }
    }
    let kept: BTreeSet<PathBuf> = found.values().map(|child| child.pins[1].clone()).collect();
    for path in pin::list(&inward)?.into_iter().map(|name| inward.join(name)) {
        // An ingress alone guards nobody: the pin of the egress is made first and removed last.
        if !kept.contains(&path) {
            pin::remove(&path)?;
        }
    }
    *known() = found;
    Ok(())
}

/// Closes an interface that cannot be deleted, by the maps that are pinned below `root`: its programs stay, and drop
/// everything.
///
/// # Errors
/// When a map cannot be opened or written.
pub fn close(root: &Path, number: u32) -> Result<(), BpfError> {
    let maps = pin::maps_dir(root);
    let mut interfaces: Table<LinkId, InterfaceInfo> = Table::open(&maps, names::MAP_INTERFACES, Access::Write)?;
    let mut senders: Table<SenderKey, LinkId> = Table::open(&maps, names::MAP_SENDERS, Access::Write)?;
    let link = LinkId::of_index(number);
    if let Some(info) = interfaces.get(&link)? {
        senders.remove(&sender(&info))?;
    }
    interfaces.remove(&link).map(drop)
}

impl DataPlane {
    fn stages(&self) -> Result<OwnedFd, BpfError> {
        let path = self.programs.dir().join(names::MAP_STAGES);
        sys::pinned(&path).map_err(pin::pin_error("open", &path))
    }

    /// Loads the program that leads from an interface to the stages.
    fn forwarder(&self, number: u32, at: u32) -> Result<OwnedFd, BpfError> {
        let stage = if at == CHILD_OUT { Stage::ChildOut } else { Stage::ChildIn };
        let failed = |e: std::io::Error| BpfError::Load(format!("program of a macvlan interface: {e}"));
        sys::load_forwarder(self.stages()?.as_fd(), [number, at], stage as u32).map_err(failed)
    }

    /// Puts the programs on the link with index `index`, which is in the device's namespace and down, and pins them.
    /// Afterwards the link may be moved into the namespace with the number `ns`. `alias` and MAC are those of its
    /// attachment. Until the map `interfaces` has an entry
    /// for the returned number, the programs drop everything.
    ///
    /// # Errors
    /// When another interface has the number, or the kernel refuses a program or a pin. Nothing is pinned then.
    pub fn guard_child(
        &mut self,
        host_if: &IfName,
        index: u32,
        ns: i32,
        (alias, mac): (&str, [u8; 6]),
    ) -> Result<u32, BpfError> {
        let number = number_of(host_if);
        let attach = |why: String| BpfError::Attach { program: "pv_child", link: host_if.to_string(), why };
        if known().get(&number).is_some_and(|child| child.index() != 0) {
            return Err(attach("another macvlan interface of this number exists".to_owned()));
        }
        self.programs.prepare_children()?;
        let name = format!("{host_if}@{ns}");
        let root = self.pin_dir().to_owned();
        let pins =
            [pin::child_out_dir(&root).join(format!("{name}{UNFINISHED}")), pin::child_in_dir(&root).join(&name)];
        for path in pins.iter().chain([&pin::child_out_dir(&root).join(&name)]) {
            pin::remove(path)?;
        }
        let mut links = Vec::new();
        for (path, at, place) in [(&pins[0], CHILD_OUT, Tcx::Egress), (&pins[1], CHILD_IN, Tcx::Ingress)] {
            let program = self.forwarder(number, at)?;
            kill_point::pass();
            let link = sys::attach(program.as_fd(), index, place).map_err(|e| attach(e.to_string()))?;
            kill_point::pass();
            if let Err(e) = sys::pin(link.as_fd(), path) {
                pin::remove(&pins[0])?;
                return Err(pin::pin_error("pin", path)(e));
            }
            links.push(link);
        }
        let link = links.swap_remove(0);
        let (host_if, alias) = (host_if.clone(), alias.to_owned());
        known().insert(number, Known { host_if, ns, alias, mac: Some(mac), link, pins });
        Ok(number)
    }

    /// The state of the programs on macvlan interfaces, by number.
    pub(super) fn child_guards(&self) -> BTreeMap<u32, ProgramState> {
        let pins: Vec<(u32, [PathBuf; 2])> =
            known().iter().map(|(number, child)| (*number, child.pins.clone())).collect();
        // A link that is there has programs of pv-net: the take-over gives all of them its own.
        let state = |path: &PathBuf| match sys::pinned(path).map(|link| sys::link_info(&link)) {
            Ok(Ok(Some(info))) if info.ifindex != 0 => ProgramState::Own,
            _ => ProgramState::Lost,
        };
        pins.iter().map(|(number, [out, inward])| (*number, state(out).and(state(inward)))).collect()
    }

    /// Has the programs on all macvlan interfaces, the device's own and those of parents lead to the stages of this daemon.
    ///
    /// # Errors
    /// When the kernel refuses a program. Interfaces keep the programs that they have then, which guard too.
    pub(super) fn swap_children(&mut self) -> Result<(), BpfError> {
        let all: Vec<(u32, [PathBuf; 2])> =
            known().iter().map(|(number, child)| (*number, child.pins.clone())).collect();
        let mut hooked = Vec::new();
        for (name, dir, _) in parent_places(self.pin_dir()).into_iter().chain(device_places(self.pin_dir())) {
            hooked.extend(pin::list(&dir)?.into_iter().map(|pin| (name, dir.join(pin))));
        }
        if all.is_empty() && hooked.is_empty() {
            return Ok(());
        }
        self.programs.prepare_children()?;
        for (number, pins) in all {
            for (path, at) in pins.iter().zip([CHILD_OUT, CHILD_IN]) {
                let program = self.forwarder(number, at)?;
                update(path, &program)?;
            }
        }
        hooked.into_iter().try_for_each(|(name, path)| update(&path, &self.parent_program(name)?))
    }

    /// Removes the pins of an interface that is gone.
    ///
    /// # Errors
    /// When the interface still exists: it keeps its guard. Or when a pin cannot be removed.
    pub(super) fn forget_child(&mut self, number: u32) -> Result<(), BpfError> {
        let mut known = known();
        let Some(child) = known.get(&number) else { return Ok(()) };
        let [out, inward] = child.pins.clone();
        if child.index() != 0 {
            let why = "the interface still exists, and keeps its programs".to_owned();
            return Err(BpfError::Link { path: out, why });
        }
        pin::remove(&inward)?;
        pin::remove(&out)?;
        known.remove(&number);
        Ok(())
    }

    fn parent_program(&self, name: &str) -> Result<OwnedFd, BpfError> {
        let path = self.programs.dir().join(name);
        sys::pinned(&path).map_err(pin::pin_error("open", &path))
    }

    /// Guards the parents of macvlan interfaces: `parents` are their indexes, each with the MACs of the device's links on
    /// it, its own included. These are the outside, but the one by which the device reaches containers is itself. Frames
    /// with other MACs leave only by interfaces of containers. Parents that are not named lose the program.
    ///
    /// # Errors
    /// When the kernel refuses a map entry, a program or a pin.
    pub fn guard_parents(&mut self, parents: &BTreeMap<u32, BTreeMap<[u8; 6], LinkId>>) -> Result<(), BpfError> {
        let key = |parent: u32, mac: [u8; 6]| SenderKey { parent, mac, pad: 0 };
        let of = |(parent, macs): (&u32, &BTreeMap<[u8; 6], LinkId>)| {
            macs.iter().map(|(mac, link)| (key(*parent, *mac), *link)).collect::<Vec<_>>()
        };
        let wanted: BTreeMap<SenderKey, LinkId> = parents.iter().flat_map(of).collect();
        let there: BTreeMap<SenderKey, LinkId> = self.senders.entries().into_iter().collect();
        let is_right = |key: &SenderKey, link: &LinkId| there.get(key).is_some_and(|l| l == link || l.is_assigned());
        for (key, link) in wanted.iter().filter(|(key, link)| !is_right(key, link)) {
            self.senders.set(key, link)?;
        }
        if !parents.is_empty() {
            self.programs.prepare_children()?;
        }
        for (name, dir, place) in parent_places(self.pin_dir()) {
            for index in parents.keys() {
                self.hook_beside(*index, name, &pin::of_link(&dir, *index), place)?;
            }
        }
        for (_, dir, _) in parent_places(self.pin_dir()).into_iter().rev() {
            for index in pin::links(&dir)?.iter().filter(|index| !parents.contains_key(index)) {
                pin::remove(&pin::of_link(&dir, *index))?;
            }
        }
        for (key, link) in &there {
            if !link.is_assigned() && !wanted.contains_key(key) {
                self.senders.remove(key)?;
            }
        }
        Ok(())
    }

    /// Attaches a program to a parent, or to the device's own interface on one; one that is there already stays.
    pub(super) fn hook_beside(&self, index: u32, name: &'static str, path: &Path, place: Tcx) -> Result<(), BpfError> {
        if self.is_hooked(path, index) {
            return Ok(());
        }
        pin::remove(path)?;
        let program = self.parent_program(name)?;
        let failed =
            |why: std::io::Error| BpfError::Attach { program: name, link: index.to_string(), why: why.to_string() };
        kill_point::pass();
        let link = sys::attach(program.as_fd(), index, place).map_err(failed)?;
        kill_point::pass();
        sys::pin(link.as_fd(), path).map_err(pin::pin_error("pin", path))
    }

    /// The links that have the program of a parent.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn guarded_parents(&self) -> Result<Vec<u32>, BpfError> {
        let dir = pin::parent_out_dir(self.pin_dir());
        let mut all = pin::links(&dir)?;
        all.retain(|index| self.is_hooked(&pin::of_link(&dir, *index), *index));
        Ok(all)
    }

    /// Whether the pin leads to the link with this index.
    pub(super) fn is_hooked(&self, path: &Path, index: u32) -> bool {
        sys::pinned(path)
            .is_ok_and(|link| sys::link_info(&link).ok().flatten().is_some_and(|info| info.ifindex == index))
    }
}

/// The places on a parent: each one's program, the directory of its pins, and where it is. The first one keeps from the
/// device what the second one returns to containers.
fn parent_places(root: &Path) -> [(&'static str, PathBuf, Tcx); 2] {
    [
        (names::PROG_PARENT_IN, pin::parent_in_dir(root), Tcx::Ingress),
        (names::PROG_PARENT, pin::parent_out_dir(root), Tcx::Egress),
    ]
}

/// The places on the device's own interface on a parent.
pub(super) fn device_places(root: &Path) -> [(&'static str, PathBuf, Tcx); 2] {
    [
        (names::PROG_DEVICE_OUT, pin::device_out_dir(root), Tcx::Egress),
        (names::PROG_DEVICE_IN, pin::device_in_dir(root), Tcx::Ingress),
    ]
}

/// Replaces the program of the pinned link at `path`. A device that is gone needs none.
fn update(path: &Path, program: &OwnedFd) -> Result<(), BpfError> {
    let failed = |e: std::io::Error| BpfError::Link { path: path.to_owned(), why: e.to_string() };
    let link = match sys::pinned(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    kill_point::pass();
    match sys::update_link(&link, program.as_fd()) {
        Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => Err(failed(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_says_whose_it_is() {
        for (pin, want) in [
            ("pvweb-0123abc@4", Some(("pvweb-0123abc", 4))),
            ("pvweb-0123abc@4;", Some(("pvweb-0123abc", 4))),
            ("pvweb-0123abc", None),
            ("pvweb-0123abc@", None),
            ("@4", None),
        ] {
            let found = read(pin);
            assert_eq!(found.as_ref().map(|(name, ns)| (name.as_str(), *ns)), want, "{pin}");
        }
    }

    #[test]
    fn a_number_is_no_index() {
        let number = number_of(&"pvweb-0123abc".parse().expect("a name"));
        assert!(is_number(number) && !is_number(7) && !is_number(0));
        assert_eq!(number, number_of(&"pvweb-0123abc".parse().expect("a name")));
    }
}
