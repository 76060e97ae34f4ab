//! Puts back what the plan does not compare: pins, the entries of `stages`, and the entries that go with one of
//! `interfaces`.

use super::held::Held;
use super::plane::{DataPlane, sender};
use super::programs::{classifier, refused};
use super::table::{map_error, pinned};
use super::{BpfError, pin};
use crate::kernel::kill_point;
use aya::maps::ProgramArray;
use pv_net_common::names;
use std::path::{Path, PathBuf};

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
