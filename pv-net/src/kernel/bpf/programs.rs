//! The programs: verified once, pinned, and adopted by every later daemon that would load the same.
//!
//! They are pinned as `<bpffs>/programs/DIGEST/NAME`. DIGEST covers everything that distinguishes two loads: the
//! object, its global variables, and the ids of the maps that it uses. So a directory of the right name has what this
//! daemon would load, bound to the very maps that it uses. (A kernel's pins do not survive the kernel, so it is the
//! same kernel that verified them.)
//!
//! Programs that tail-call each other share unpinned maps for passing packets on, and `stages`, the map of the
//! programs. So they must be loaded together, and no packet passes from older programs to newer ones. They are pinned
//! in `programs/new` together with `stages`, and get their final name by one rename after their self-test, so a daemon
//! that dies before that leaves nothing that could be adopted. The other programs are loaded when they are first
//! needed, each with its own pin.

use super::object::{OBJECT_SHA256, object};
use super::options::kernel_has;
use super::table::{map_error, pinned};
use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use aya::maps::{MapInfo, ProgramArray};
use aya::programs::{
    CgroupSockAddr, CgroupSockAddrAttachType, Program, ProgramError, ProgramInfo, ProgramType, SchedClassifier, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use pv_net_common::{Stage, names};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// How many bytes of a program's name the kernel keeps.
const NAME_BYTES: usize = 15;

/// The programs of the data plane that the daemon attaches to links.
const ENTRIES: [&str; 4] =
    [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK, names::PROG_FROM_BRIDGE];

/// The programs that are loaded together: those that packets of containers and uplinks meet. The largest come last.
pub(super) fn data_plane() -> impl Iterator<Item = &'static str> {
    ENTRIES.into_iter().chain([names::PROG_CLOCK]).chain(names::PROG_STAGES)
}

/// The daemon's handles to the programs that use the maps pinned in `maps`.
pub(super) struct Programs {
    root: PathBuf,
    maps: PathBuf,
    dir: PathBuf,
    entries: BTreeMap<&'static str, SchedClassifier>,
    object: Option<Ebpf>,
}

impl Programs {
    /// Opens the pinned programs of the data plane; `None` unless they are what this daemon would load over `maps`.
    ///
    /// # Errors
    /// When a pinned program cannot be opened.
    pub(super) fn find(root: &Path, maps: &Path) -> Result<Option<Self>, BpfError> {
        let Some(dir) = dir_of(root, maps).filter(|dir| is_whole(dir)) else { return Ok(None) };
        let (root, maps, entries) = (root.to_owned(), maps.to_owned(), entries(&dir)?);
        // Usually nothing changes here; it repairs entries that somebody has removed.
        set_stages(&dir)?;
        Ok(Some(Self { root, maps, dir, entries, object: None }))
    }

    /// Loads the programs of the data plane over `maps`; maps that are not pinned there are made. The programs are
    /// pinned under a name from which no daemon adopts them until [`Self::name`].
    ///
    /// # Errors
    /// When the kernel refuses a map, a program or a pin. What an earlier daemon pinned is still there then.
    pub(super) fn load(root: &Path, maps: &Path, flow_entries: u32) -> Result<Self, BpfError> {
        let dir = pin::new_programs_dir(root);
        // Left by a daemon that died.
        pin::remove_dir(&dir)?;
        pin::make_dir(&dir)?;
        let mut object = parse(maps, &dir, Some(flow_entries))?;
        load_data_plane(&mut object)?;
        for name in data_plane() {
            pin_at(object.program_mut(name).ok_or_else(|| missing(name))?, &dir.join(name))?;
        }
        set_stages(&dir)?;
        let entries = entries(&dir)?;
        Ok(Self { root: root.to_owned(), maps: maps.to_owned(), dir, entries, object: Some(object) })
    }

    /// Gives the loaded programs the name under which later daemons adopt them.
    ///
    /// # Errors
    /// When a map is not pinned, or the directory cannot be renamed.
    pub(super) fn name(&mut self) -> Result<(), BpfError> {
        let dir = dir_of(&self.root, &self.maps).ok_or_else(unpinned)?;
        if dir.exists() {
            // The directory is incomplete, else [`Self::find`] would have found it. Links may use its programs until
            // the take-over, so it is moved and not removed.
            let aside = pin::programs_dir(&self.root).join("aside");
            pin::remove_dir(&aside)?;
            kill_point::pass();
            fs::rename(&dir, &aside).map_err(pin::pin_error("rename", &dir))?;
        }
        kill_point::pass();
        fs::rename(&self.dir, &dir).map_err(pin::pin_error("rename", &self.dir))?;
        self.dir = dir;
        Ok(())
    }

    /// Directory of their maps.
    pub(super) fn maps(&self) -> &Path {
        &self.maps
    }

    /// Notes that the maps are pinned in `maps` from now on.
    pub(super) fn maps_moved(&mut self, maps: &Path) {
        maps.clone_into(&mut self.maps);
    }

    /// Directory of the programs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the program `pv_policy_probe` that goes with the maps pinned under `root`; loads and pins it first where
    /// it is missing.
    ///
    /// # Errors
    /// When the maps are not pinned, or the kernel refuses the program.
    pub(super) fn policy_probe(root: &Path) -> Result<SchedClassifier, BpfError> {
        let maps = pin::maps_dir(root);
        let dir = dir_of(root, &maps).ok_or_else(unpinned)?;
        let mut programs = Self { root: root.to_owned(), maps, dir, entries: BTreeMap::new(), object: None };
        programs.pinned(names::PROG_POLICY_PROBE, SchedClassifier::PROGRAM_TYPE)?;
        classifier(&programs.dir, names::PROG_POLICY_PROBE)
    }

    /// Opens the program `pv_clock` that goes with the maps pinned under `root`.
    ///
    /// # Errors
    /// When the maps or the program are not pinned.
    pub(super) fn clock(root: &Path) -> Result<SchedClassifier, BpfError> {
        classifier(&dir_of(root, &pin::maps_dir(root)).ok_or_else(unpinned)?, names::PROG_CLOCK)
    }

    /// A program that the daemon runs or attaches.
    pub(super) fn entry(&mut self, name: &'static str) -> Result<&mut SchedClassifier, BpfError> {
        self.entries.get_mut(name).ok_or_else(|| missing(name))
    }

    /// The kernel's id of a program that the daemon attaches.
    ///
    /// # Errors
    /// When the kernel does not tell it.
    pub(super) fn id_of(&self, name: &'static str) -> Result<u32, BpfError> {
        let program = self.entries.get(name).ok_or_else(|| missing(name))?;
        program.info().map(|info| info.id()).map_err(refused(name))
    }

    /// Ids of the programs that can be the uplinks' filter; empty while none is loaded.
    pub(super) fn filter_ids(&self) -> Vec<u32> {
        let both = [names::PROG_XDP_UPLINK, names::PROG_XDP_UPLINK_SINGLE];
        both.iter().filter_map(|name| Some(found(&self.dir, name, Xdp::PROGRAM_TYPE)?.id())).collect()
    }

    /// Whether the program with this id is the socket hook `name`.
    pub(super) fn is_socket_hook(&self, name: &'static str, id: u32) -> bool {
        found(&self.dir, name, CgroupSockAddr::PROGRAM_TYPE).is_some_and(|info| info.id() == id)
    }

    /// A pinned program that the daemon runs but attaches nowhere.
    pub(super) fn pinned_one(&self, name: &'static str) -> Result<SchedClassifier, BpfError> {
        classifier(&self.dir, name)
    }

    /// A socket hook, loaded and pinned when it is missing.
    pub(super) fn socket_hook(
        &mut self,
        name: &'static str,
        at: CgroupSockAddrAttachType,
    ) -> Result<CgroupSockAddr, BpfError> {
        self.pinned(name, CgroupSockAddr::PROGRAM_TYPE)?;
        CgroupSockAddr::from_pin(self.dir.join(name), at).map_err(refused(name))
    }

    /// The uplinks' filter: the program for frames in several buffers where the kernel supports those.
    pub(super) fn xdp(&mut self) -> Result<Xdp, BpfError> {
        let both = [names::PROG_XDP_UPLINK, names::PROG_XDP_UPLINK_SINGLE];
        // Once one of the two is pinned, the one that the kernel refused is not tried again.
        let there = both.into_iter().find(|name| found(&self.dir, name, Xdp::PROGRAM_TYPE).is_some());
        let name = match there {
            Some(there) => there,
            None if self.pinned(both[0], Xdp::PROGRAM_TYPE).is_ok() => both[0],
            None => {
                self.pinned(both[1], Xdp::PROGRAM_TYPE)?;
                both[1]
            }
        };
        Xdp::from_pin(self.dir.join(name), XdpAttachType::Interface).map_err(refused(name))
    }

    /// Loads and pins the programs for macvlan interfaces and their parents where they are missing, and enters the stages.
    ///
    /// # Errors
    /// When the kernel refuses a program or a pin.
    pub(super) fn prepare_children(&mut self) -> Result<(), BpfError> {
        let beside = [names::PROG_PARENT, names::PROG_PARENT_IN, names::PROG_DEVICE_OUT, names::PROG_DEVICE_IN];
        let all = || names::PROG_CHILD_STAGES.into_iter().chain(beside);
        if !all().all(|name| found(&self.dir, name, SchedClassifier::PROGRAM_TYPE).is_some()) {
            // They pass packets on by a map that is not pinned, so they must come from one load.
            all().try_for_each(|name| pin::remove(&self.dir.join(name)))?;
            for name in all() {
                self.pinned(name, SchedClassifier::PROGRAM_TYPE)?;
            }
        }
        let name = names::MAP_STAGES;
        let mut stages = ProgramArray::try_from(pinned(&self.dir, name)?).map_err(map_error("open", name))?;
        for (index, stage) in (Stage::ChildOut as u32..).zip(names::PROG_CHILD_STAGES) {
            let program = classifier(&self.dir, stage)?;
            stages.set(index, program.fd().map_err(refused(stage))?, 0).map_err(map_error("write", name))?;
        }
        Ok(())
    }

    /// Frees the parsed object, which is needed only for loading. A later load parses it again.
    pub(super) fn put_away_object(&mut self) {
        self.object = None;
    }

    /// Whether programs other than these are pinned.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub(super) fn has_others(&self) -> Result<bool, BpfError> {
        Ok(pin::program_dirs(&self.root)?.iter().any(|dir| *dir != self.dir))
    }

    /// Removes the pins of all other programs; none of them may be in use any more.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub(super) fn remove_others(&self) -> Result<(), BpfError> {
        let mut dirs = pin::program_dirs(&self.root)?;
        dirs.retain(|dir| *dir != self.dir);
        dirs.iter().try_for_each(|dir| pin::remove_dir(dir))
    }

    /// The pinned program; it is loaded and pinned first where it is missing.
    fn pinned(&mut self, name: &'static str, kind: ProgramType) -> Result<ProgramInfo, BpfError> {
        if let Some(info) = found(&self.dir, name, kind) {
            return Ok(info);
        }
        let object = match &mut self.object {
            Some(object) => object,
            none => {
                // Loading the object would create maps that are missing, so it is checked first that the maps are still
                // those of these programs.
                if dir_of(&self.root, &self.maps).as_ref() != Some(&self.dir) {
                    return Err(unpinned());
                }
                none.insert(parse(&self.maps, &self.dir, None)?)
            }
        };
        let program = object.program_mut(name).ok_or_else(|| missing(name))?;
        if program.fd().is_err() {
            load(name, program)?;
        }
        let file = self.dir.join(name);
        pin::remove(&file)?;
        pin_at(program, &file)?;
        found(&self.dir, name, kind).ok_or_else(|| missing(name))
    }
}

/// The directory of the programs that this daemon would load over `maps`; `None` when one of the maps is not pinned.
fn dir_of(root: &Path, maps: &Path) -> Option<PathBuf> {
    let mut digest = Sha256::new_with_prefix(OBJECT_SHA256);
    for (_, value) in globals() {
        digest.update(value.to_ne_bytes());
    }
    for name in names::MAPS {
        digest.update(MapInfo::from_pin(maps.join(name)).ok()?.id().to_ne_bytes());
    }
    let name: String = digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(pin::programs_dir(root).join(name))
}

/// Whether `dir` has all programs of the data plane and their map `stages`.
fn is_whole(dir: &Path) -> bool {
    let all = data_plane().all(|name| found(dir, name, SchedClassifier::PROGRAM_TYPE).is_some());
    let stages = MapInfo::from_pin(dir.join(names::MAP_STAGES)).map(|info| info.id());
    // All of the programs were loaded with the same `stages`, so one is enough to check.
    all && stages.is_ok_and(|id| uses(&dir.join(names::PROG_FROM_CONTAINER), id))
}

/// Ids of the programs that are pinned in `dir`.
///
/// # Errors
/// When `dir` cannot be listed.
pub(super) fn ids_in(dir: &Path) -> Result<Vec<u32>, BpfError> {
    let names = pin::list(dir)?;
    Ok(names.iter().filter_map(|name| Some(ProgramInfo::from_pin(dir.join(name)).ok()?.id())).collect())
}

/// Opens the program with this id, if it is pinned under `root`.
///
/// # Errors
/// When the pins cannot be listed, or that program cannot be opened.
pub(super) fn pinned_by_id(root: &Path, id: u32) -> Result<Option<OwnedFd>, BpfError> {
    for dir in pin::program_dirs(root)? {
        for name in pin::list(&dir)? {
            let file = dir.join(name);
            if ProgramInfo::from_pin(&file).is_ok_and(|info| info.id() == id) {
                return sys::pinned(&file).map(Some).map_err(pin::pin_error("open", &file));
            }
        }
    }
    Ok(None)
}

/// Whether the programs in `dir` use the map `config` that is pinned in `maps`.
pub(super) fn go_with(dir: &Path, maps: &Path) -> bool {
    let Ok(config) = MapInfo::from_pin(maps.join(names::MAP_CONFIG)) else { return false };
    uses(&dir.join(names::PROG_CLOCK), config.id())
}

/// Whether the program pinned at `file` uses the map with id `map`.
fn uses(file: &Path, map: u32) -> bool {
    sys::pinned(file).and_then(|program| sys::maps_of(&program)).is_ok_and(|used| used.contains(&map))
}

/// Enters the stages' programs into the map `stages`.
fn set_stages(dir: &Path) -> Result<(), BpfError> {
    let name = names::MAP_STAGES;
    let mut stages = ProgramArray::try_from(pinned(dir, name)?).map_err(map_error("open", name))?;
    for (index, stage) in (0u32..).zip(names::PROG_STAGES.into_iter().chain(names::PROG_ENTRIES_AGAIN)) {
        let program = classifier(dir, stage)?;
        let fd = program.fd().map_err(refused(stage))?;
        stages.set(index, fd, 0).map_err(map_error("write", name))?;
    }
    Ok(())
}

/// The program pinned in `dir` as `name`, if it really has this name and type.
fn found(dir: &Path, name: &str, kind: ProgramType) -> Option<ProgramInfo> {
    let info = ProgramInfo::from_pin(dir.join(name)).ok()?;
    let kept = &name.as_bytes()[..name.len().min(NAME_BYTES)];
    (info.name() == kept && info.program_type() == kind.into()).then_some(info)
}

/// Opens a pinned TC program. Its name, as the kernel cut it, becomes the name of filters of clsact.
pub(super) fn classifier(dir: &Path, name: &'static str) -> Result<SchedClassifier, BpfError> {
    found(dir, name, SchedClassifier::PROGRAM_TYPE).ok_or_else(|| missing(name))?;
    SchedClassifier::from_pin(dir.join(name)).map_err(refused(name))
}

fn entries(dir: &Path) -> Result<BTreeMap<&'static str, SchedClassifier>, BpfError> {
    ENTRIES.into_iter().map(|name| Ok((name, classifier(dir, name)?))).collect()
}

/// The object's global variables, by name, and their values.
fn globals() -> [(&'static str, u32); 2] {
    [
        (names::GLOBAL_HAS_SET_RETVAL, u32::from(kernel_has(5, 18))),
        (names::GLOBAL_PEER_SCRUBS, u32::from(kernel_has(6, 15))),
    ]
}

/// Entries of the half-open table for a flow table of `flow_entries`.
fn half_open_entries(flow_entries: u32) -> u32 {
    (flow_entries / 2).max(1024)
}

/// Parses the object, and makes and pins maps that are missing: `stages` in `dir`, the others in `maps`.
fn parse(maps: &Path, dir: &Path, flow_entries: Option<u32>) -> Result<Ebpf, BpfError> {
    let globals = globals();
    let mut loader = EbpfLoader::new();
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    for name in names::MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    loader.map_pin_path(names::MAP_STAGES, dir.join(names::MAP_STAGES));
    if let Some(entries) = flow_entries {
        loader.map_max_entries(names::MAP_FLOWS, entries);
        loader.map_max_entries(names::MAP_HALF_OPEN, half_open_entries(entries));
        loader.map_max_entries(names::MAP_CLAIMS, half_open_entries(entries));
    }
    loader.load(&object()?).map_err(|e| BpfError::Load(BpfError::chain(&e)))
}

/// Loads the programs of the data plane, two at a time, since the verifier uses one CPU for each. More at a time would
/// need more memory, of which small devices have little.
fn load_data_plane(object: &mut Ebpf) -> Result<(), BpfError> {
    let wanted: Vec<_> = data_plane().collect();
    let place = |name: &str| wanted.iter().position(|w| *w == name);
    let mut found: Vec<_> = object.programs_mut().filter(|(name, _)| place(name).is_some()).collect();
    if let Some(lost) = wanted.iter().find(|w| found.iter().all(|(name, _)| name != *w)) {
        return Err(missing(lost));
    }
    found.sort_by_key(|(name, _)| place(name));
    let rest = Mutex::new(found);
    let work = || {
        loop {
            // The largest are loaded first, so that no thread is left with a large one at the end.
            let next = rest.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, program)) = next else { return Ok(()) };
            load(name, program)?;
        }
    };
    thread::scope(|scope| {
        let beside = scope.spawn(work);
        let here = work();
        let there = beside.join().unwrap_or_else(|_| Err(BpfError::Load("a thread that loads programs".to_owned())));
        here.and(there)
    })
}

fn load(name: &str, program: &mut Program) -> Result<(), BpfError> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(refused(name))
}

fn pin_at(program: &mut Program, file: &Path) -> Result<(), BpfError> {
    kill_point::pass();
    program.pin(file).map_err(|e| BpfError::Load(format!("pin {}: {}", file.display(), BpfError::chain(&e))))
}

pub(super) fn refused(name: &str) -> impl FnOnce(ProgramError) -> BpfError {
    move |e| BpfError::Load(format!("{name}: {}", BpfError::chain(&e)))
}

fn missing(name: &str) -> BpfError {
    BpfError::Load(format!("{name}: it is not there"))
}

fn unpinned() -> BpfError {
    BpfError::Load("not all maps are pinned".to_owned())
}
