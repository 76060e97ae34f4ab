//! The state between making new programs or maps and putting them in force.

use super::links::programs_in_use;
use super::options::Hook;
use super::place::Place;
use super::programs::{go_with, ids_in};
use super::set::MapSet;
use super::{BpfError, pin};
use crate::model::IfName;
use std::path::{Path, PathBuf};

/// New programs, or adopted ones, on their way to the links. When this is dropped before the swap, what was made for it
/// is removed again, and what is in force stays so.
pub(super) struct Takeover {
    root: PathBuf,
    pub set: MapSet,
    /// Directory of the programs that this daemon has loaded; `None` when they were adopted.
    pub loaded: Option<PathBuf>,
    /// Filters of clsact of an earlier daemon that are to be replaced, by place and link.
    pub filters: Vec<(Place, IfName)>,
    done: bool,
}

impl Takeover {
    pub(super) fn new(root: &Path, set: MapSet) -> Self {
        Self { root: root.to_owned(), set, loaded: None, filters: Vec::new(), done: false }
    }

    /// All links have the new programs: from now on nothing that was made is removed again, whatever fails later.
    pub(super) fn is_swapped(&mut self) {
        self.done = true;
    }

    fn give_up(&self) -> Result<(), BpfError> {
        if let Some(dir) = &self.loaded {
            // Filters of clsact are not pinned, so once the programs have their final name it cannot be told which
            // links use them.
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
        // If this fails, the next start tries again.
        if let Err(e) = self.give_up() {
            tracing::warn!(error = %e, "pins of programs that did not come into force are left");
        }
    }
}

/// Whether a pinned link uses a program in `dir`. Then their map `stages` must stay pinned too, since the kernel
/// empties such a map when nobody holds it.
fn is_used(root: &Path, dir: &Path) -> Result<bool, BpfError> {
    let used = programs_in_use(root)?;
    Ok(ids_in(dir)?.iter().any(|id| used.contains(id)))
}

/// Removes the programs of starts that failed: those that no link uses and that do not go with the maps in force. With
/// filters of clsact it cannot be told which programs links use, so all that have a final name stay until the
/// take-over.
///
/// # Errors
/// When a pin cannot be read or removed.
pub(super) fn remove_leftovers(root: &Path) -> Result<(), BpfError> {
    let used = programs_in_use(root)?;
    let in_force = pin::maps_dir(root);
    for dir in pin::program_dirs(root)? {
        let unseen = Hook::of_kernel() == Hook::Clsact && dir != pin::new_programs_dir(root);
        let linked = unseen || ids_in(&dir)?.iter().any(|id| used.contains(id));
        if !linked && !go_with(&dir, &in_force) {
            pin::remove_dir(&dir)?;
        }
    }
    Ok(())
}
