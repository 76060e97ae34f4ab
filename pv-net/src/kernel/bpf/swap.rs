//! Puts new programs in force: on each link in one step, and then in the place of the pins before.

use super::links::{self, Link, Pinned};
use super::place::Place;
use super::plane::DataPlane;
use super::{BpfError, clsact, pin, programs, sys};
use crate::kernel::kill_point;
use crate::model::{IfName, XdpMode};
use aya::programs::{ProgramError, ProgramFd, ProgramInfo};
use nix::net::if_::if_nametoindex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The progress of a swap.
#[derive(Default)]
struct Swap {
    /// How many links of containers have the new program.
    containers: usize,
    conditions: Vec<String>,
    /// Links whose program was replaced, with the id of the earlier one.
    changed: Vec<(PathBuf, u32)>,
    /// The earlier programs, by id, kept open so that they can be put back.
    before: HashMap<u32, OwnedFd>,
}

impl Swap {
    /// Replaces the program of the link pinned at `path`. Returns whether the link exists.
    fn one(&mut self, root: &Path, path: PathBuf, id: u32, program: BorrowedFd<'_>) -> Result<bool, BpfError> {
        let link = match links::open(path.clone())? {
            Pinned::Link(link) if link.program == id => return Ok(true),
            Pinned::Link(link) => link,
            Pinned::Stale(why) => return self.gone(path, why),
        };
        if !self.keep(root, &link)? {
            let what = format!("program {} was behind it, which pv-net did not put there", link.program);
            self.conditions.push(format!("{}; replaced", BpfError::Link { path: path.clone(), why: what }));
        }
        if !link.update(program)? {
            return self.gone(path, "its device is gone".to_owned());
        }
        self.changed.push((path, link.program));
        Ok(true)
    }

    /// Keeps the link's present program open. That works only if it is pinned, because opening a program by its id
    /// takes `CAP_SYS_ADMIN`. Returns whether it worked.
    fn keep(&mut self, root: &Path, link: &Link) -> Result<bool, BpfError> {
        if let Entry::Vacant(place) = self.before.entry(link.program)
            && let Some(program) = programs::pinned_by_id(root, link.program)?
        {
            place.insert(program);
        }
        Ok(self.before.contains_key(&link.program))
    }

    fn gone(&mut self, path: PathBuf, why: String) -> Result<bool, BpfError> {
        pin::remove(&path)?;
        self.conditions.push(format!("{}; pin removed", BpfError::Link { path, why }));
        Ok(false)
    }

    /// Gives the links their earlier programs back.
    fn undo(self) {
        for (path, id) in self.changed {
            let done = match (links::open(path), self.before.get(&id)) {
                (Ok(Pinned::Link(link)), Some(program)) => link.update(program.as_fd()).map(drop),
                (Ok(Pinned::Link(link)), None) => Err(link.unknown_before()),
                (Ok(Pinned::Stale(_)), _) => Ok(()),
                (Err(e), _) => Err(e),
            };
            if let Err(e) = done {
                tracing::warn!(error = %e, "the link keeps its new program");
            }
        }
    }
}

fn told(program: Result<ProgramInfo, ProgramError>) -> Result<u32, BpfError> {
    program.map(|info| info.id()).map_err(|e| BpfError::Load(BpfError::chain(&e)))
}

fn opened(program: Result<&ProgramFd, ProgramError>) -> Result<BorrowedFd<'_>, BpfError> {
    program.map(AsFd::as_fd).map_err(|e| BpfError::Load(BpfError::chain(&e)))
}

impl DataPlane {
    /// Attaches the programs to all pinned links, and removes what was in force before. Call this when the maps hold
    /// all that the programs need; later calls change nothing. Returns how many links of containers have the programs,
    /// and conditions.
    ///
    /// # Errors
    /// When a link cannot be given its program. Links that had been changed get their earlier programs back. Filters of
    /// clsact stay as they are, old or new; both guard.
    pub fn take_over(&mut self) -> Result<(usize, Vec<String>), BpfError> {
        let Some(filters) = self.takeover.as_ref().map(|t| t.filters.clone()) else { return Ok((0, vec![])) };
        let _points = kill_point::begin("take_over");
        let mut swap = Swap::default();
        if let Err(e) = self.swap_links(&mut swap) {
            swap.undo();
            return Err(e);
        }
        self.replace_filters(&filters, &mut swap)?;
        self.swap_children()?;
        let Some(mut takeover) = self.takeover.take() else { return Ok((0, vec![])) };
        takeover.is_swapped();
        if takeover.set.beside || self.programs.has_others()? {
            // When its pin is removed, the kernel empties the map of the old programs' stages, so they must have ended
            // before.
            sys::wait_for_programs();
        }
        takeover.set.put_in_force(&self.pin_dir)?;
        self.programs.maps_moved(&takeover.set.dir);
        self.programs.remove_others()?;
        self.hold_pins()?;
        Ok((swap.containers, swap.conditions))
    }

    fn swap_links(&mut self, swap: &mut Swap) -> Result<(), BpfError> {
        let root = self.pin_dir.clone();
        for place in Place::ALL {
            let dir = self.pins(place);
            let program = self.programs.entry(place.program())?;
            let (id, program) = (told(program.info())?, opened(program.fd())?);
            for file in pin::list(&dir)? {
                let is_there = swap.one(&root, dir.join(file), id, program)?;
                swap.containers += usize::from(is_there && place == Place::FromContainer);
            }
        }
        for mode in XdpMode::ALL {
            let dir = pin::filter_dir(&self.pin_dir, mode);
            let files = pin::list(&dir)?;
            if files.is_empty() {
                continue;
            }
            let program = self.programs.xdp()?;
            let (id, program) = (told(program.info())?, opened(program.fd())?);
            for file in files {
                swap.one(&root, dir.join(file), id, program)?;
            }
        }
        Ok(())
    }

    /// Replaces filters of clsact, which are not pinned.
    fn replace_filters(&mut self, filters: &[(Place, IfName)], swap: &mut Swap) -> Result<(), BpfError> {
        for (place, link) in filters {
            let failed = |e: &ProgramError| {
                let (program, link) = (place.program(), link.to_string());
                BpfError::Attach { program, link, why: BpfError::chain(e) }
            };
            let program = self.programs.entry(place.program())?;
            let id = match clsact::replace(program, link.as_str(), place.attach_type()) {
                Ok(id) => id,
                // The container has ended meanwhile, and its link is gone.
                Err(_) if if_nametoindex(link.as_str()).is_err() => {
                    swap.conditions.push(format!("{link}: it is gone since its programs were looked at"));
                    continue;
                }
                Err(e) => return Err(failed(&e)),
            };
            // A filter belongs to its link. Dropping the handle would remove it.
            std::mem::forget(program.take_link(id).map_err(|e| failed(&e))?);
        }
        Ok(())
    }
}
