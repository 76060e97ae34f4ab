//! The programs: verified once, pinned, and taken over by every later daemon that would load the same.
//!
//! They are at `<bpffs>/programs/DIGEST/NAME`. DIGEST stands for all that tells two loads apart: the object, what is set
//! in it, and which maps they use, by the kernel's numbers. A directory of that name has what this daemon would load,
//! bound to those very maps. (The kernel that verified a program is the one that holds its pin.)
//!
//! Programs that tail-call each other share an unpinned map for what they hand on, and `stages`, the map that they find
//! each other by; so they are of one load, and no packet of older programs comes to them. They are pinned in
//! `programs/new` with `stages`, and get their name by one rename when their self-test has passed: who dies before it
//! leaves nothing that could be taken over. The others are loaded when they are wanted first, each with a pin of its own.

use super::object::{OBJECT, OBJECT_SHA256};
use super::options::kernel_has;
use super::table::{map_error, pinned};
use super::{BpfError, pin};
use aya::maps::{MapInfo, ProgramArray};
use aya::programs::{
    CgroupSockAddr, CgroupSockAddrAttachType, Program, ProgramError, ProgramInfo, ProgramType, SchedClassifier, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use pv_net_common::names;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What the kernel keeps of a program's name.
const NAME_BYTES: usize = 15;

/// Those that the daemon attaches, of the data plane.
const ENTRIES: [&str; 4] =
    [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK, names::PROG_FROM_BRIDGE];

/// Those that are of one load: what packets of containers and uplinks meet. The last ones are the largest.
fn data_plane() -> impl Iterator<Item = &'static str> {
    ENTRIES.into_iter().chain([names::PROG_CLOCK]).chain(names::PROG_STAGES)
}

/// The daemon's hold on the programs that go with the maps pinned in `maps`.
pub(super) struct Programs {
    root: PathBuf,
    maps: PathBuf,
    dir: PathBuf,
    entries: BTreeMap<&'static str, SchedClassifier>,
    object: Option<Ebpf>,
}

impl Programs {
    /// Those of the data plane that are pinned, if they are what this daemon would load over `maps`.
    ///
    /// # Errors
    /// When one that was there cannot be opened.
    pub(super) fn find(root: &Path, maps: &Path) -> Result<Option<Self>, BpfError> {
        let Some(dir) = dir_of(root, maps).filter(|dir| is_whole(dir)) else { return Ok(None) };
        let (root, maps, entries) = (root.to_owned(), maps.to_owned(), entries(&dir)?);
        // Where that is not so already, somebody has changed it.
        set_stages(&dir)?;
        Ok(Some(Self { root, maps, dir, entries, object: None }))
    }

    /// Loads those of the data plane over `maps`; maps that are not pinned there are made. They are pinned under a name
    /// that nobody takes over until [`Self::name`].
    ///
    /// # Errors
    /// When the kernel refuses a map, a program or a pin. What an earlier daemon pinned is still there then.
    pub(super) fn load(root: &Path, maps: &Path, flow_entries: u32) -> Result<Self, BpfError> {
        let dir = pin::new_programs_dir(root);
        // Of a daemon that died.
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

    /// Gives those that were loaded the name that another daemon takes them over by.
    ///
    /// # Errors
    /// When a map is not pinned, or the directory cannot be renamed.
    pub(super) fn name(&mut self) -> Result<(), BpfError> {
        let dir = dir_of(&self.root, &self.maps).ok_or_else(unpinned)?;
        if dir.exists() {
            // Not what it should be, else it had been found. Links may have its programs until they are replaced.
            let aside = pin::programs_dir(&self.root).join("aside");
            pin::remove_dir(&aside)?;
            fs::rename(&dir, &aside).map_err(pin::pin_error("rename", &dir))?;
        }
        fs::rename(&self.dir, &dir).map_err(pin::pin_error("rename", &self.dir))?;
        self.dir = dir;
        Ok(())
    }

    /// Where their maps are pinned.
    pub(super) fn maps(&self) -> &Path {
        &self.maps
    }

    /// The maps are pinned in `maps` from now on.
    pub(super) fn maps_moved(&mut self, maps: &Path) {
        maps.clone_into(&mut self.maps);
    }

    /// Where they are pinned.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Of those that go with the maps pinned under `root`, the one that answers what the rules say.
    ///
    /// # Errors
    /// When there are no such maps, or the kernel refuses it.
    pub(super) fn policy_probe(root: &Path) -> Result<SchedClassifier, BpfError> {
        let maps = pin::maps_dir(root);
        let dir = dir_of(root, &maps).ok_or_else(unpinned)?;
        let mut programs = Self { root: root.to_owned(), maps, dir, entries: BTreeMap::new(), object: None };
        programs.pinned(names::PROG_POLICY_PROBE, SchedClassifier::PROGRAM_TYPE)?;
        classifier(&programs.dir, names::PROG_POLICY_PROBE)
    }

    /// Of those that go with the maps pinned under `root`, the one that tells the time.
    ///
    /// # Errors
    /// When there are no such maps, or it is not pinned.
    pub(super) fn clock(root: &Path) -> Result<SchedClassifier, BpfError> {
        classifier(&dir_of(root, &pin::maps_dir(root)).ok_or_else(unpinned)?, names::PROG_CLOCK)
    }

    /// One that the daemon runs or attaches.
    pub(super) fn entry(&mut self, name: &'static str) -> Result<&mut SchedClassifier, BpfError> {
        self.entries.get_mut(name).ok_or_else(|| missing(name))
    }

    /// One that the daemon runs, and attaches nowhere.
    pub(super) fn pinned_one(&self, name: &'static str) -> Result<SchedClassifier, BpfError> {
        classifier(&self.dir, name)
    }

    /// A socket hook.
    pub(super) fn socket_hook(
        &mut self,
        name: &'static str,
        at: CgroupSockAddrAttachType,
    ) -> Result<CgroupSockAddr, BpfError> {
        self.pinned(name, CgroupSockAddr::PROGRAM_TYPE)?;
        CgroupSockAddr::from_pin(self.dir.join(name), at).map_err(refused(name))
    }

    /// The uplinks' filter: the program for frames of several pieces where the kernel has those.
    pub(super) fn xdp(&mut self) -> Result<Xdp, BpfError> {
        let both = [names::PROG_XDP_UPLINK, names::PROG_XDP_UPLINK_SINGLE];
        // What the kernel refuses is not tried anew as long as the other one is there.
        let there = both.into_iter().find_map(|name| Some((name, found(&self.dir, name, Xdp::PROGRAM_TYPE)?)));
        let (name, info) = match there {
            Some(there) => there,
            None => match self.pinned(both[0], Xdp::PROGRAM_TYPE) {
                Ok(info) => (both[0], info),
                Err(_) => (both[1], self.pinned(both[1], Xdp::PROGRAM_TYPE)?),
            },
        };
        Xdp::from_program_info(info, name.into(), XdpAttachType::Interface).map_err(refused(name))
    }

    /// Gives back the memory of what was only needed for loading. What is loaded later parses the object anew.
    pub(super) fn put_away_object(&mut self) {
        self.object = None;
    }

    /// Whether other programs than these are pinned.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub(super) fn has_others(&self) -> Result<bool, BpfError> {
        Ok(pin::program_dirs(&self.root)?.iter().any(|dir| *dir != self.dir))
    }

    /// Removes the pins of programs that are not these; none of them must be in use any more.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub(super) fn remove_others(&self) -> Result<(), BpfError> {
        let mut dirs = pin::program_dirs(&self.root)?;
        dirs.retain(|dir| *dir != self.dir);
        dirs.iter().try_for_each(|dir| pin::remove_dir(dir))
    }

    /// The pinned program, loaded and pinned where it is not there yet.
    fn pinned(&mut self, name: &'static str, kind: ProgramType) -> Result<ProgramInfo, BpfError> {
        if let Some(info) = found(&self.dir, name, kind) {
            return Ok(info);
        }
        let object = match &mut self.object {
            Some(object) => object,
            none => {
                // Reading the object would make the one that is missing.
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

/// Where the programs are that this daemon would load over `maps`; none when one of these is not there.
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

/// Whether all programs of the data plane are pinned in `dir`, and the map that they find each other by.
fn is_whole(dir: &Path) -> bool {
    let all = data_plane().all(|name| found(dir, name, SchedClassifier::PROGRAM_TYPE).is_some());
    let stages = MapInfo::from_pin(dir.join(names::MAP_STAGES)).map(|info| info.id());
    // All of them have the same.
    let used = found(dir, names::PROG_FROM_CONTAINER, SchedClassifier::PROGRAM_TYPE)
        .and_then(|info| info.map_ids().ok().flatten());
    all && stages.is_ok_and(|id| used.is_some_and(|used| used.contains(&id)))
}

/// Numbers of the programs that are pinned in `dir`.
///
/// # Errors
/// When it cannot be listed.
pub(super) fn ids_in(dir: &Path) -> Result<Vec<u32>, BpfError> {
    let names = pin::list(dir)?;
    Ok(names.iter().filter_map(|name| Some(ProgramInfo::from_pin(dir.join(name)).ok()?.id())).collect())
}

/// Whether the programs in `dir` use the `config` that is pinned in `maps`.
pub(super) fn go_with(dir: &Path, maps: &Path) -> bool {
    let Ok(config) = MapInfo::from_pin(maps.join(names::MAP_CONFIG)) else { return false };
    let used = ProgramInfo::from_pin(dir.join(names::PROG_CLOCK)).and_then(|clock| clock.map_ids());
    used.is_ok_and(|used| used.is_some_and(|used| used.contains(&config.id())))
}

/// Enters the stages' programs into the map that they find each other by.
fn set_stages(dir: &Path) -> Result<(), BpfError> {
    let name = names::MAP_STAGES;
    let mut stages = ProgramArray::try_from(pinned(dir, name)?).map_err(map_error("open", name))?;
    for (index, stage) in (0u32..).zip(names::PROG_STAGES) {
        let program = classifier(dir, stage)?;
        let fd = program.fd().map_err(refused(stage))?;
        stages.set(index, fd, 0).map_err(map_error("write", name))?;
    }
    Ok(())
}

/// The program that is pinned in `dir`, if it is of this name and kind.
fn found(dir: &Path, name: &str, kind: ProgramType) -> Option<ProgramInfo> {
    let info = ProgramInfo::from_pin(dir.join(name)).ok()?;
    let kept = &name.as_bytes()[..name.len().min(NAME_BYTES)];
    (info.name() == kept && info.program_type() == kind.into()).then_some(info)
}

/// The pinned program, by its whole name: filters of clsact bear it.
fn classifier(dir: &Path, name: &'static str) -> Result<SchedClassifier, BpfError> {
    let info = found(dir, name, SchedClassifier::PROGRAM_TYPE).ok_or_else(|| missing(name))?;
    SchedClassifier::from_program_info(info, name.into()).map_err(refused(name))
}

fn entries(dir: &Path) -> Result<BTreeMap<&'static str, SchedClassifier>, BpfError> {
    ENTRIES.into_iter().map(|name| Ok((name, classifier(dir, name)?))).collect()
}

/// What is set in the object, by the global's name.
fn globals() -> [(&'static str, u32); 2] {
    [
        (names::GLOBAL_HAS_SET_RETVAL, u32::from(kernel_has(5, 18))),
        (names::GLOBAL_PEER_SCRUBS, u32::from(kernel_has(6, 15))),
    ]
}

/// Entries of the half-open table beside a flow table of so many.
fn half_open_entries(flow_entries: u32) -> u32 {
    (flow_entries / 2).max(1024)
}

/// Reads the object, and makes and pins the maps that are not there: `stages` in `dir`, the others in `maps`.
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
    loader.load(OBJECT).map_err(|e| BpfError::Load(BpfError::chain(&e)))
}

/// Loads the programs of the data plane, two at a time: the verifier has one CPU a program. Its memory would grow with
/// every further one, and small devices have little.
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
            // The largest first, so that nobody waits for it at the end.
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
    program.pin(file).map_err(|e| BpfError::Load(format!("pin {}: {}", file.display(), BpfError::chain(&e))))
}

fn refused(name: &str) -> impl FnOnce(ProgramError) -> BpfError {
    move |e| BpfError::Load(format!("{name}: {}", BpfError::chain(&e)))
}

fn missing(name: &str) -> BpfError {
    BpfError::Load(format!("{name}: it is not there"))
}

fn unpinned() -> BpfError {
    BpfError::Load("not all maps are pinned".to_owned())
}
