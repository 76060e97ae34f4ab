//! Opens the data plane.
//!
//! [`DataPlane::open`] makes what is missing, without changing what any packet meets. Then the daemon fills the maps.
//! Last, [`DataPlane::take_over`] attaches the programs to the links, each in one step. When a daemon fails or dies
//! before that, the earlier programs and maps stay in force.

use super::filter::Filter;
use super::flow_quotas::FlowQuotas;
use super::links;
use super::options::{Adopted, Hook, Options};
use super::owners::{Devices, Owners};
use super::plane::DataPlane;
use super::programs::Programs;
use super::set::{self, MapSet};
use super::table::{Access, PortMap, Single, Table, Trie};
use super::takeover::{Takeover, remove_leftovers};
use super::{BpfError, pin, selftest};
use crate::kernel::own_dir;
use aya::maps::MapInfo;
use pv_net_common::flow::{DEFAULT_HALF_OPEN, FLOW_REFUSED, HALF_OPEN_SHARES};
use pv_net_common::{ABI_VERSION, GlobalConfig, names, nat};
use std::path::Path;

impl DataPlane {
    /// Opens what is pinned, if maps and programs are those of this daemon. Otherwise makes and loads the missing parts
    /// beside the pinned ones and tests them. Links keep their present programs until [`Self::take_over`].
    ///
    /// # Errors
    /// When the pin directory is not on a BPF file system or not the daemon's own, the kernel refuses a map or a
    /// program, or the self-test fails. What was in force still is.
    pub fn open(options: &Options) -> Result<(Self, Adopted), BpfError> {
        let root = &options.pin_dir;
        pin::make_root(root)?;
        let lock = own_dir::lock(root)?;
        set::recover(root)?;
        pin::make_dirs(root)?;
        let mut adopted = Adopted { conditions: links::fit_pins(root)?, ..Adopted::default() };
        let in_force = pin::maps_dir(root);
        let (programs, takeover) = match Programs::find(root, &in_force)? {
            Some(programs) => {
                adopted.programs = true;
                (programs, Takeover::new(root, MapSet::whole(in_force)))
            }
            None => load_beside(options)?,
        };
        adopted.maps = takeover.set.kept;
        adopted.conditions.extend(takeover.set.conditions.iter().cloned());
        let maps = takeover.set.dir.clone();
        let mut plane = Self {
            pin_dir: root.clone(),
            hook: Hook::of_kernel(),
            programs,
            config: Single::open(&maps, names::MAP_CONFIG, Access::Write)?,
            flows: Table::open(&maps, names::MAP_FLOWS, Access::Write)?,
            half_open: Table::open(&maps, names::MAP_HALF_OPEN, Access::Write)?,
            flow_quotas: FlowQuotas::open(&maps)?,
            owners: Owners::open(&maps)?,
            devices: Devices::default(),
            endpoints: Table::open(&maps, names::MAP_ENDPOINTS, Access::Write)?,
            interfaces: Table::open(&maps, names::MAP_INTERFACES, Access::Write)?,
            children: Table::open(&maps, names::MAP_CHILDREN, Access::Write)?,
            senders: Table::open(&maps, names::MAP_SENDERS, Access::Write)?,
            locals: Table::open(&maps, names::MAP_LOCALS, Access::Write)?,
            uplinks: Table::open(&maps, names::MAP_UPLINKS, Access::Write)?,
            networks: Trie::open(&maps, names::MAP_NETWORKS)?,
            sources: Trie::open(&maps, names::MAP_SOURCES)?,
            port_map: PortMap::open(&maps, names::MAP_PORT_MAP)?,
            filter: Filter::open(&maps)?,
            takeover: Some(takeover),
            held: None,
            _lock: lock,
        };
        plane.begin_config(&maps)?;
        Ok((plane, adopted))
    }

    /// Writes what `config` must have before a program runs; values that are there already stay.
    fn begin_config(&mut self, maps: &Path) -> Result<(), BpfError> {
        let before = self.takeover.as_ref().and_then(|t| t.set.config);
        let mut config = match before {
            // Flows that are kept may carry later epochs than the old `config`, from a start that failed, so the new
            // epoch must be later than theirs.
            Some(before) => GlobalConfig { epoch: self.newest_epoch(before.epoch).wrapping_add(1), ..before },
            None => self.config.get()?,
        };
        config.abi = ABI_VERSION;
        config.epoch = config.epoch.max(1);
        config.generation = config.generation.max(1);
        if config.nat_first_port == 0 {
            config.nat_first_port = nat::FIRST_PORT;
        }
        config.claims = claims_of_a_cpu(maps);
        self.config.set(config)
    }

    /// The latest epoch of any flow, and at least `epoch`.
    fn newest_epoch(&self, epoch: u32) -> u32 {
        let established = self.flows.entries().into_iter().map(|(_, flow)| flow.epoch);
        let half_open = self.half_open.entries().into_iter().flat_map(|(_, f)| [f.forward.epoch, f.reply.epoch]);
        let stamps = established.chain(half_open).filter(|stamp| *stamp != FLOW_REFUSED);
        stamps.fold(epoch, |latest, stamp| if stamp.wrapping_sub(latest).cast_signed() > 0 { stamp } else { latest })
    }
}

/// Loads programs over the pinned maps, or over a new set of maps beside them.
fn load_beside(options: &Options) -> Result<(Programs, Takeover), BpfError> {
    let root = &options.pin_dir;
    remove_leftovers(root)?;
    let set = MapSet::choose(root)?;
    let maps = set.dir.clone();
    let mut takeover = Takeover::new(root, set);
    takeover.loaded = Some(pin::new_programs_dir(root));
    let mut programs = Programs::load(root, &maps, options.flow_entries)?;
    selftest::run(&mut programs, &takeover.set)?;
    programs.name()?;
    takeover.loaded = Some(programs.dir().to_owned());
    Ok((programs, takeover))
}

/// Places that each CPU has in an opener's ring of claims.
fn claims_of_a_cpu(maps: &Path) -> u16 {
    let entries =
        MapInfo::from_pin(maps.join(names::MAP_HALF_OPEN)).map_or(DEFAULT_HALF_OPEN, |info| info.max_entries());
    // SAFETY: it takes a number, and may be called at any time.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    let places = entries / HALF_OPEN_SHARES / u32::try_from(cpus).unwrap_or(1).max(1);
    u16::try_from(places).unwrap_or(u16::MAX).max(16)
}
