//! What stands between programs and maps that are made and their being in force.

use super::links::programs_in_use;
use super::options::Hook;
use super::place::Place;
use super::programs::{go_with, ids_in};
use super::set::MapSet;
use super::{BpfError, pin};
use crate::model::IfName;
use std::path::{Path, PathBuf};

/// New programs, or those of the daemon before, on their way to the links. Dropped before that, what was made for them is
/// removed again: what is in force stays so.
pub(super) struct Takeover {
    root: PathBuf,
    pub set: MapSet,
    /// Where the programs are pinned that this daemon has loaded.
    pub loaded: Option<PathBuf>,
    /// Filters of an earlier daemon that are to be replaced, where they are.
    pub filters: Vec<(Place, IfName)>,
    done: bool,
}

impl Takeover {
    pub(super) fn new(root: &Path, set: MapSet) -> Self {
        Self { root: root.to_owned(), set, loaded: None, filters: Vec::new(), done: false }
    }

    /// Nothing is to be removed any more.
    pub(super) fn finish(mut self) {
        self.done = true;
    }

    fn give_up(&self) -> Result<(), BpfError> {
        if let Some(dir) = &self.loaded {
            let unseen = Hook::of_kernel() == Hook::Clsact && *dir != pin::new_programs_dir(&self.root);
            if !unseen && !is_used(&self.root, dir)? {
                pin::remove_dir(dir)?;
            }
        }
        if self.set.beside { pin::remove_dir(&self.set.dir) } else { Ok(()) }
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The next start tries again.
        if let Err(e) = self.give_up() {
            tracing::warn!(error = %e, "pins of programs that did not come into force are left");
        }
    }
}

/// Whether a pinned link has a program of `dir` (where links are filters nobody can tell, once the programs have their name): then the map that they find each other by must stay pinned too, for the
/// kernel empties one that nobody holds.
fn is_used(root: &Path, dir: &Path) -> Result<bool, BpfError> {
    let used = programs_in_use(root)?;
    Ok(ids_in(dir)?.iter().any(|id| used.contains(id)))
}

/// Removes the programs of starts that failed: those that no link has, and that do not go with the maps in force. Where
/// links are not pinned nobody can tell who has the latter.
///
/// # Errors
/// When a pin cannot be read or removed.
pub(super) fn remove_leftovers(root: &Path) -> Result<(), BpfError> {
    let used = programs_in_use(root)?;
    let in_force = pin::maps_dir(root);
    for dir in pin::program_dirs(root)? {
        let linked = ids_in(&dir)?.iter().any(|id| used.contains(id));
        if !linked && !go_with(&dir, &in_force) {
            pin::remove_dir(&dir)?;
        }
    }
    Ok(())
}
