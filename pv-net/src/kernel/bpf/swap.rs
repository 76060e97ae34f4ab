//! Putting new programs in force: behind each link in one step, and then in the place of what was pinned before.

use super::links::{self, Link, Pinned};
use super::place::Place;
use super::plane::DataPlane;
use super::{BpfError, clsact, pin, sys};
use crate::model::{IfName, XdpMode};
use aya::programs::{ProgramError, ProgramFd, ProgramInfo};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// What was done to the pinned links so far.
#[derive(Default)]
struct Swap {
    /// Those of containers that have their program.
    containers: Vec<String>,
    conditions: Vec<String>,
    /// Those that have another one than before, with the number of that.
    changed: Vec<(PathBuf, u32)>,
    /// Programs that some of them had.
    before: HashMap<u32, OwnedFd>,
}

impl Swap {
    /// Puts a program behind the link pinned at `path`; whether that is there.
    fn one(&mut self, path: PathBuf, id: u32, program: BorrowedFd<'_>) -> Result<bool, BpfError> {
        let link = match links::open(path.clone())? {
            Pinned::Link(link) if link.program == id => return Ok(true),
            Pinned::Link(link) => link,
            Pinned::Stale(why) => return self.gone(path, why),
        };
        self.keep(&link)?;
        if !link.update(program)? {
            return self.gone(path, "its device is gone".to_owned());
        }
        self.changed.push((path, link.program));
        Ok(true)
    }

    /// Holds on to the program that a link has.
    fn keep(&mut self, link: &Link) -> Result<(), BpfError> {
        if let Entry::Vacant(place) = self.before.entry(link.program) {
            let failed = |e| BpfError::Load(format!("open program {}: {e}", link.program));
            place.insert(sys::program(link.program).map_err(failed)?);
        }
        Ok(())
    }

    fn gone(&mut self, path: PathBuf, why: String) -> Result<bool, BpfError> {
        pin::remove(&path)?;
        self.conditions.push(format!("{}; pin removed", BpfError::Link { path, why }));
        Ok(false)
    }

    /// Gives the links back what they had.
    fn undo(self) {
        for (path, id) in self.changed {
            let done = match (links::open(path), self.before.get(&id)) {
                (Ok(Pinned::Link(link)), Some(program)) => link.update(program.as_fd()).map(drop),
                (Ok(_), _) => Ok(()),
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
    /// Puts the programs behind all pinned links, and removes what was in force before. To be called when the maps hold
    /// all that the programs go by; later calls change nothing. Names of containers' links that have the programs now,
    /// and what is to be said.
    ///
    /// # Errors
    /// When a link cannot be given its program. Those that were given theirs have the earlier ones again.
    pub fn take_over(&mut self) -> Result<(Vec<String>, Vec<String>), BpfError> {
        let Some(filters) = self.takeover.as_ref().map(|t| t.filters.clone()) else { return Ok((vec![], vec![])) };
        let mut swap = Swap::default();
        if let Err(e) = self.swap_links(&mut swap) {
            swap.undo();
            return Err(e);
        }
        self.replace_filters(&filters)?;
        let Some(mut takeover) = self.takeover.take() else { return Ok((vec![], vec![])) };
        if takeover.set.beside || self.programs.has_others()? {
            // The map that the old programs find each other by is emptied with its pin.
            sys::wait_for_programs();
        }
        takeover.set.put_in_force(&self.pin_dir)?;
        self.programs.maps_moved(&takeover.set.dir);
        takeover.finish();
        self.programs.remove_others()?;
        Ok((swap.containers, swap.conditions))
    }

    fn swap_links(&mut self, swap: &mut Swap) -> Result<(), BpfError> {
        for place in Place::ALL {
            let dir = self.pins(place);
            let program = self.programs.entry(place.program())?;
            let (id, program) = (told(program.info())?, opened(program.fd())?);
            for name in pin::links(&dir)? {
                if swap.one(pin::of_link(&dir, &name), id, program)? && place == Place::FromContainer {
                    swap.containers.push(name);
                }
            }
        }
        for mode in XdpMode::ALL {
            let dir = pin::filter_dir(&self.pin_dir, mode);
            let names = pin::links(&dir)?;
            if names.is_empty() {
                continue;
            }
            let program = self.programs.xdp()?;
            let (id, program) = (told(program.info())?, opened(program.fd())?);
            for name in names {
                swap.one(pin::of_link(&dir, &name), id, program)?;
            }
        }
        Ok(())
    }

    /// Where links are not pinned.
    fn replace_filters(&mut self, filters: &[(Place, IfName)]) -> Result<(), BpfError> {
        for (place, link) in filters {
            let failed = |e: &ProgramError| {
                let (program, link) = (place.program(), link.to_string());
                BpfError::Attach { program, link, why: BpfError::chain(e) }
            };
            let program = self.programs.entry(place.program())?;
            let id = clsact::replace(program, link.as_str(), place.attach_type()).map_err(|e| failed(&e))?;
            // A filter belongs to its link; dropping the handle would remove it.
            std::mem::forget(program.take_link(id).map_err(|e| failed(&e))?);
        }
        Ok(())
    }
}
