//! What the daemon holds open beside its pins, to put it back when somebody has removed or changed it: the pins of maps
//! and programs, and the entries of `stages`.
//!
//! No event reports these. The pins are what the next daemon adopts: without one of them it would load everything anew,
//! and flows would end. The map `stages` loses all of its entries when nobody holds it any more.
//!
//! Programs that are loaded when they are first needed are not held: who needs them next loads them again.

use super::programs::data_plane;
use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use pv_net_common::names;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A pinned map or program.
pub(super) struct Pin {
    pub name: &'static str,
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

    pub(super) fn put_back(&self, dir: &Path) -> Result<(), BpfError> {
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
    pub(super) fn open(maps: &Path, programs: &Path) -> Result<Self, BpfError> {
        let programs = data_plane().chain([names::MAP_STAGES]).map(|name| Pin::open(programs, name));
        Ok(Self {
            maps: names::MAPS.into_iter().map(|name| Pin::open(maps, name)).collect::<Result<_, _>>()?,
            programs: programs.collect::<Result<_, _>>()?,
        })
    }

    /// The pins that are not as they should be, with their directory and what is wrong.
    pub(super) fn lost<'a>(&'a self, maps: &'a Path, programs: &'a Path) -> Vec<(&'a Pin, &'a Path, &'static str)> {
        let all = self.maps.iter().map(|pin| (pin, maps)).chain(self.programs.iter().map(|pin| (pin, programs)));
        all.filter_map(|(pin, dir)| Some((pin, dir, pin.lost(dir)?))).collect()
    }

    /// The stages that are not in the map `stages`, by index.
    pub(super) fn lost_stages(&self, dir: &Path) -> Vec<(u32, &'static str)> {
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
