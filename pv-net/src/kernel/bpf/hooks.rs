//! Attaches programs to links: of containers, uplinks and bridges. A link is identified by its index, so renaming a
//! link does not change whether it counts as having its programs.

use super::children::is_number;
use super::links;
use super::options::Hook;
use super::place::Place;
use super::plane::DataPlane;
use super::{BpfError, clsact, pin};
use crate::kernel::kill_point;
use crate::model::{IfName, XdpMode};
use crate::plan::{HookPoint, ProgramState};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Fails unless the link with this index has the name `name`, because aya attaches programs by name.
pub(super) fn check_name(name: &IfName, index: u32) -> Result<(), String> {
    match if_nametoindex(name.as_str()) {
        Ok(found) if found == index => Ok(()),
        Ok(found) => Err(format!("link {found} has this name now, and not link {index}")),
        Err(e) => Err(e.to_string()),
    }
}

/// The state behind each pin in `dir`, by index. A pin that cannot be read is left out: attaching to that link then
/// fails in the same way, and becomes a condition of that link alone.
fn states(dir: &Path, own: Option<&[u32]>) -> Result<BTreeMap<u32, ProgramState>, BpfError> {
    let mut all = BTreeMap::new();
    for index in pin::links(dir)? {
        match links::state(pin::of_link(dir, index), index, own) {
            Ok(state) => drop(all.insert(index, state)),
            Err(e) => tracing::warn!(error = %e, "a pin is not read"),
        }
    }
    Ok(all)
}

impl DataPlane {
    /// The directory in which links of a place's program are pinned.
    pub(super) fn pins(&self, place: Place) -> PathBuf {
        pin::place_dir(self.pin_dir(), place)
    }

    /// The ids of the programs that count as pv-net's own at `place`. `None` until the take-over: any pinned program
    /// will be replaced by it.
    fn own(&self, place: Place) -> Result<Option<[u32; 1]>, BpfError> {
        if self.is_waiting() { Ok(None) } else { Ok(Some([self.programs.id_of(place.program())?])) }
    }

    fn states_at(&self, place: Place) -> Result<BTreeMap<u32, ProgramState>, BpfError> {
        states(&self.pins(place), self.own(place)?.as_ref().map(<[u32; 1]>::as_slice))
    }

    /// Whether the program with this id is one that the daemon attaches to links.
    #[must_use]
    pub fn has_program(&self, id: u32) -> bool {
        Place::ALL.iter().any(|place| self.programs.id_of(place.program()).is_ok_and(|own| own == id))
    }

    /// The state of containers' links that have pins, by index. Only with tcx, since filters of clsact have no pins.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn guards(&self) -> Result<BTreeMap<u32, ProgramState>, BpfError> {
        let mut all = self.states_at(Place::FromContainer)?;
        let mut inwards = self.states_at(Place::ToContainer)?;
        for (index, state) in &mut all {
            *state = state.and(inwards.remove(index).unwrap_or(ProgramState::Lost));
        }
        all.extend(inwards.into_keys().map(|index| (index, ProgramState::Lost)));
        all.extend(self.child_guards());
        Ok(all)
    }

    /// The state of pinned programs on uplinks and bridges, by place and index. Without tcx these are only the uplinks'
    /// filters.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn hooked_beside(&self) -> Result<BTreeMap<(HookPoint, u32), ProgramState>, BpfError> {
        let mut found = BTreeMap::new();
        if self.hook() == Hook::Tcx {
            for (at, place) in [(HookPoint::Uplink, Place::FromUplink), (HookPoint::Bridge, Place::FromBridge)] {
                found.extend(self.states_at(place)?.into_iter().map(|(index, state)| ((at, index), state)));
            }
        }
        found.extend(self.device_if_states()?.into_iter().map(|(index, state)| ((HookPoint::DeviceIf, index), state)));
        let own = (!self.is_waiting()).then(|| self.programs.filter_ids());
        for mode in XdpMode::ALL {
            let all = states(&pin::filter_dir(&self.pin_dir, mode), own.as_deref())?;
            found.extend(all.into_iter().map(|(index, state)| ((HookPoint::Filter(mode), index), state)));
        }
        Ok(found)
    }

    /// Attaches a program to an uplink or a bridge; one that is there already stays.
    ///
    /// # Errors
    /// When the kernel refuses, the link has another name by now, or the pin cannot be made.
    pub fn hook_at(&mut self, at: HookPoint, link: &IfName, index: u32) -> Result<(), BpfError> {
        match at {
            HookPoint::Uplink => self.attach_at(Place::FromUplink, link, index),
            HookPoint::Bridge => self.attach_at(Place::FromBridge, link, index),
            HookPoint::DeviceIf => self.hook_device_if(link, index),
            HookPoint::Filter(mode) => self.attach_filter(link, index, mode),
        }
    }

    /// Detaches a program from an uplink or a bridge; a missing one is fine.
    ///
    /// # Errors
    /// When the pin, or the filter of clsact, cannot be removed.
    pub fn unhook_at(&mut self, at: HookPoint, link: &str, index: u32) -> Result<(), BpfError> {
        let dir = match (at, self.hook()) {
            (HookPoint::DeviceIf, _) => return self.unhook_device_if(index),
            (HookPoint::Filter(mode), _) => pin::filter_dir(&self.pin_dir, mode),
            // The link is gone, and its filter with it.
            (_, Hook::Clsact) if if_nametoindex(link) != Ok(index) => return Ok(()),
            (_, Hook::Clsact) => return clsact::remove_clsact(link),
            (HookPoint::Uplink, Hook::Tcx) => self.pins(Place::FromUplink),
            (HookPoint::Bridge, Hook::Tcx) => self.pins(Place::FromBridge),
        };
        pin::remove(&pin::of_link(&dir, index))
    }

    /// Attaches both programs to a container's host-side link; those that are there already stay.
    ///
    /// # Errors
    /// When the kernel refuses, the link has another name by now, or a pin cannot be made.
    pub fn attach(&mut self, host_if: &IfName, index: u32) -> Result<(), BpfError> {
        if is_number(index) {
            let why = "its programs can be attached only when it is made: detach the container, and attach it again";
            let (program, link) = ("pv_child", host_if.to_string());
            return Err(BpfError::Attach { program, link, why: why.to_owned() });
        }
        self.attach_at(Place::ToContainer, host_if, index)?;
        self.attach_at(Place::FromContainer, host_if, index)
    }

    /// Removes the pins of the link with this index, which detaches the programs if the link still exists.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self, index: u32) -> Result<(), BpfError> {
        if is_number(index) {
            return self.forget_child(index);
        }
        for place in [Place::FromContainer, Place::ToContainer] {
            pin::remove(&pin::of_link(&self.pins(place), index))?;
        }
        Ok(())
    }

    fn attach_at(&mut self, place: Place, link_name: &IfName, index: u32) -> Result<(), BpfError> {
        let failed = |why: String| BpfError::Attach { program: place.program(), link: link_name.to_string(), why };
        let pin = pin::of_link(&self.pins(place), index);
        let hook = self.hook();
        let is_waiting = self.is_waiting();
        if hook == Hook::Tcx && pin.exists() {
            // Before the take-over any program behind the pin will do, since the take-over replaces it.
            if is_waiting && links::state(pin.clone(), index, None)? == ProgramState::Own {
                return Ok(());
            }
            let id = self.programs.id_of(place.program())?;
            let fd = self.programs.entry(place.program())?.fd().map_err(|e| failed(BpfError::chain(&e)))?;
            if links::renew(pin.clone(), index, id, fd.as_fd())? {
                return Ok(());
            }
        }
        check_name(link_name, index).map_err(failed)?;
        let program = self.programs.entry(place.program())?;
        kill_point::pass();
        let id = match hook {
            Hook::Tcx => {
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(link_name.as_str(), place.attach_type(), options)
            }
            Hook::Clsact => match clsact::attach(program, link_name.as_str(), place.attach_type()) {
                Err(e) if clsact::is_there(&e) => match &mut self.takeover {
                    // The filter of an earlier daemon keeps guarding the link until everything that the new program
                    // needs is written.
                    Some(takeover) => {
                        takeover.filters.push((place, link_name.clone()));
                        return Ok(());
                    }
                    None => clsact::replace(program, link_name.as_str(), place.attach_type()),
                },
                done => done,
            },
        };
        let id = id.map_err(|e| failed(BpfError::chain(&e)))?;
        let link = program.take_link(id).map_err(|e| failed(BpfError::chain(&e)))?;
        match hook {
            Hook::Tcx => {
                let link = FdLink::try_from(link).map_err(|e| failed(BpfError::chain(&e)))?;
                // If the link was renamed meanwhile, the program is on another link; the error drops the handle, which
                // detaches it.
                check_name(link_name, index).map_err(failed)?;
                kill_point::pass();
                link.pin(&pin).map_err(|e| failed(format!("pin {}: {}", pin.display(), BpfError::chain(&e))))?;
            }
            // A filter belongs to its link. Dropping the handle would remove it.
            Hook::Clsact => std::mem::forget(link),
        }
        Ok(())
    }
}
