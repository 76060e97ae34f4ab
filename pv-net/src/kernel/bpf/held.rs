//! What the daemon holds open beside its pins, and puts back when somebody has removed or changed it: the pins of maps
//! and programs, the entries of `stages`, and the entries that go with one of `interfaces`.
//!
//! No event reports these. The pins are what the next daemon adopts: without one of them it would load everything anew,
//! and flows would end. The map `stages` loses all of its entries when nobody holds it any more.
//!
//! Programs that are loaded when they are first needed are not held: who needs them next loads them again.

use super::plane::{DataPlane, sender};
use super::programs::{classifier, data_plane, refused};
use super::table::{map_error, pinned};
use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use aya::maps::ProgramArray;
use pv_net_common::names;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A pinned map or program.
struct Pin {
    name: &'static str,
    fd: OwnedFd,
    identity: sys::Identity,
}

impl Pin {
    fn open(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let file = dir.join(name);
        let open = || {
            let fd = sys::pinned(&file)?;
            let identity = sys::identity(&fd)?;
            Ok((fd, identity))
        };
        let (fd, identity) = open().map_err(pin::pin_error("open", &file))?;
        Ok(Self { name, fd, identity })
    }

    /// What is wrong with the pin in `dir`, if anything.
    fn lost(&self, dir: &Path) -> Option<&'static str> {
        match sys::pinned(&dir.join(self.name)).and_then(|fd| sys::identity(&fd)) {
            Ok(found) if found == self.identity => None,
            Ok(_) => Some("another one is pinned"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some("not pinned any more"),
            Err(_) => Some("something else is in the place of its pin"),
        }
    }

    fn put_back(&self, dir: &Path) -> Result<(), BpfError> {
        let file = dir.join(self.name);
        pin::remove(&file)?;
        kill_point::pass();
        sys::pin(self.fd.as_fd(), &file).map_err(pin::pin_error("pin", &file))
    }
}

/// Everything that is pinned at a take-over, except links.
pub(super) struct Held {
    maps: Vec<Pin>,
    programs: Vec<Pin>,
}

impl Held {
    fn open(maps: &Path, programs: &Path) -> Result<Self, BpfError> {
        let programs = data_plane().chain([names::MAP_STAGES]).map(|name| Pin::open(programs, name));
        Ok(Self {
            maps: names::MAPS.into_iter().map(|name| Pin::open(maps, name)).collect::<Result<_, _>>()?,
            programs: programs.collect::<Result<_, _>>()?,
        })
    }

    /// The pins that are not as they should be, with their directory and what is wrong.
    fn lost<'a>(&'a self, maps: &'a Path, programs: &'a Path) -> Vec<(&'a Pin, &'a Path, &'static str)> {
        let all = self.maps.iter().map(|pin| (pin, maps)).chain(self.programs.iter().map(|pin| (pin, programs)));
        all.filter_map(|(pin, dir)| Some((pin, dir, pin.lost(dir)?))).collect()
    }

    /// The stages that are not in the map `stages`, by index.
    fn lost_stages(&self, dir: &Path) -> Vec<(u32, &'static str)> {
        let pins = || self.programs.iter();
        let Some(stages) = pins().find(|pin| pin.name == names::MAP_STAGES) else { return Vec::new() };
        let ids: BTreeMap<_, _> = pins().map(|pin| (pin.name, pin.identity.id)).collect();
        let id_of = |name: &'static str| {
            // The stages of macvlan interfaces are there if they were needed.
            ids.get(name).copied().or_else(|| Some(sys::identity(&sys::pinned(&dir.join(name)).ok()?).ok()?.id))
        };
        let all = names::PROG_STAGES.into_iter().chain(names::PROG_ENTRIES_AGAIN).chain(names::PROG_CHILD_STAGES);
        let is_lost = |(index, name): &(u32, &'static str)| {
            let entry = sys::value_at(stages.fd.as_fd(), *index, 4).ok();
            id_of(name).is_some_and(|id| entry.as_deref() != Some(&id.to_ne_bytes()[..]))
        };
        (0u32..).zip(all).filter(is_lost).collect()
    }
}

/// A repair: what was wrong, and whether it is right now.
pub type Mended = (String, Result<(), BpfError>);

impl DataPlane {
    /// Holds what is pinned from now on.
    ///
    /// # Errors
    /// When a pin cannot be opened.
    pub(super) fn hold_pins(&mut self) -> Result<(), BpfError> {
        self.held = Some(Held::open(self.programs.maps(), self.programs.dir())?);
        Ok(())
    }

    /// Puts back pins of maps and programs, and entries of `stages`, that somebody has removed or replaced.
    pub fn mend_pins(&mut self) -> Vec<Mended> {
        let Some(held) = &self.held else { return Vec::new() };
        let (maps, programs) = (self.programs.maps(), self.programs.dir());
        let mut mended = Vec::new();
        let lost = held.lost(maps, programs);
        if !lost.is_empty() {
            let made = pin::make_root(&self.pin_dir).and_then(|()| pin::make_dirs(&self.pin_dir));
            let made = made.and_then(|()| pin::make_dir(programs));
            if let Err(e) = made {
                return vec![("pins of maps and programs: not there".to_owned(), Err(e))];
            }
            let back = lost.into_iter().map(|(pin, dir, why)| {
                let file = dir.strip_prefix(&self.pin_dir).map_or_else(|_| dir.to_owned(), PathBuf::from);
                (format!("{}: {why}", file.join(pin.name).display()), pin.put_back(dir))
            });
            mended.extend(back);
        }
        for (index, name) in held.lost_stages(programs) {
            mended.push((format!("{name}: not in the map {}", names::MAP_STAGES), enter_stage(programs, index, name)));
        }
        mended
    }

    /// Writes the entries that go with one of `interfaces` and that somebody has removed or changed: the link's sender
    /// in `senders`, and its limit and count of flows.
    pub fn mend_interfaces(&mut self) -> Vec<Mended> {
        let mut mended = Vec::new();
        for (link, info) in self.interfaces() {
            let speaks = !link.is_assigned() || matches!(self.senders.get(&sender(&info)), Ok(Some(of)) if of == link);
            let found = match (speaks, self.flow_quotas.is_counted(link, info.max_flows)) {
                (true, true) => continue,
                (false, _) => format!("link {link}: no entry, or another one, of the map {}", names::MAP_SENDERS),
                (true, false) => format!("link {link}: another limit or no count of its flows"),
            };
            mended.push((found, self.set_interface(link, &info)));
        }
        mended
    }
}

fn enter_stage(dir: &Path, index: u32, stage: &'static str) -> Result<(), BpfError> {
    let name = names::MAP_STAGES;
    let mut stages = ProgramArray::try_from(pinned(dir, name)?).map_err(map_error("open", name))?;
    let program = classifier(dir, stage)?;
    kill_point::pass();
    stages.set(index, program.fd().map_err(refused(stage))?, 0).map_err(map_error("write", name))
}
