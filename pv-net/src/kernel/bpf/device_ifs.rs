//! The programs on the device's own interfaces beside the macvlan interfaces of containers.

use super::BpfError;
use super::children::device_places;
use super::hooks::check_name;
use super::pin;
use super::plane::DataPlane;
use crate::model::IfName;
use crate::plan::ProgramState;
use std::collections::BTreeMap;

impl DataPlane {
    /// The state of the programs on the device's own interfaces on parents, by index.
    pub(super) fn device_if_states(&self) -> Result<BTreeMap<u32, ProgramState>, BpfError> {
        let places = device_places(self.pin_dir());
        let mut all = BTreeMap::new();
        for (_, dir, _) in &places {
            for index in pin::links(dir)? {
                let whole = places.iter().all(|(_, dir, _)| self.is_hooked(&pin::of_link(dir, index), index));
                all.insert(index, if whole { ProgramState::Own } else { ProgramState::Lost });
            }
        }
        Ok(all)
    }

    /// Attaches the programs to the device's own interface on a parent.
    ///
    /// # Errors
    /// When the kernel refuses, the link has another name by now, or a pin cannot be made.
    pub(super) fn hook_device_if(&mut self, link: &IfName, index: u32) -> Result<(), BpfError> {
        self.programs.prepare_children()?;
        for (program, dir, place) in device_places(self.pin_dir()) {
            let attach = |why: String| BpfError::Attach { program, link: link.to_string(), why };
            check_name(link, index).map_err(attach)?;
            self.hook_beside(index, program, &pin::of_link(&dir, index), place)?;
        }
        Ok(())
    }

    /// Removes the pins of these programs; missing ones are fine.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub(super) fn unhook_device_if(&self, index: u32) -> Result<(), BpfError> {
        device_places(self.pin_dir()).iter().try_for_each(|(_, dir, _)| pin::remove(&pin::of_link(dir, index)))
    }
}
