//! Opening the data plane.
//!
//! [`DataPlane::open`] makes what is not there and changes nothing that packets meet. The daemon writes what is to be in
//! the maps. Then [`DataPlane::take_over`] puts the programs behind the links, each in one step. A daemon that fails or
//! dies before that leaves the programs and maps in force that were.

use super::filter::Filter;
use super::flow_quotas::FlowQuotas;
use super::links::{self, Pinned};
use super::options::{Adopted, Hook, Options};
use super::owners::{Devices, Owners};
use super::plane::DataPlane;
use super::programs::Programs;
use super::set::{self, MapSet};
use super::table::{Access, PortMap, Single, Table, Trie};
use super::takeover::{Takeover, remove_leftovers};
use super::{BpfError, pin, selftest};
use aya::maps::MapInfo;
use pv_net_common::flow::{DEFAULT_HALF_OPEN, FLOW_REFUSED, HALF_OPEN_SHARES};
use pv_net_common::{ABI_VERSION, GlobalConfig, names, nat};
use std::path::Path;

impl DataPlane {
    /// Opens what is pinned: maps of this layout, and programs that are those of this daemon. What is not there is made
    /// and loaded beside it, and tried. Links keep the programs that they have until [`Self::take_over`].
    ///
    /// # Errors
    /// When the directory is not on a BPF file system or not ours alone, or the kernel refuses a map or a program. What
    /// was in force still is.
    pub fn open(options: &Options) -> Result<(Self, Adopted), BpfError> {
        let root = &options.pin_dir;
        pin::make_root(root)?;
        set::recover(root)?;
        pin::make_dirs(root)?;
        let mut adopted = Adopted { conditions: remove_stale_links(root)?, ..Adopted::default() };
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
            locals: Table::open(&maps, names::MAP_LOCALS, Access::Write)?,
            uplinks: Table::open(&maps, names::MAP_UPLINKS, Access::Write)?,
            networks: Trie::open(&maps, names::MAP_NETWORKS)?,
            sources: Trie::open(&maps, names::MAP_SOURCES)?,
            port_map: PortMap::open(&maps, names::MAP_PORT_MAP)?,
            filter: Filter::open(&maps)?,
            takeover: Some(takeover),
        };
        plane.begin_config(&maps)?;
        Ok((plane, adopted))
    }

    /// What `config` must have before a program runs; what is there already stays.
    fn begin_config(&mut self, maps: &Path) -> Result<(), BpfError> {
        let before = self.takeover.as_ref().and_then(|t| t.set.config);
        let mut config = match before {
            // Flows that are kept may be of later epochs than this one: those of a start that failed.
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

    /// The latest epoch that a flow was decided in, and not before `epoch`.
    fn newest_epoch(&self, epoch: u32) -> u32 {
        let established = self.flows.entries().into_iter().map(|(_, flow)| flow.epoch);
        let half_open = self.half_open.entries().into_iter().flat_map(|(_, f)| [f.forward.epoch, f.reply.epoch]);
        let stamps = established.chain(half_open).filter(|stamp| *stamp != FLOW_REFUSED);
        stamps.fold(epoch, |latest, stamp| if stamp.wrapping_sub(latest).cast_signed() > 0 { stamp } else { latest })
    }
}

/// Loads programs over the pinned maps, or over a set that is made beside them.
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

/// Removes pins that guard nothing: what they stand for is attached anew where it should be.
fn remove_stale_links(root: &Path) -> Result<Vec<String>, BpfError> {
    let mut conditions = Vec::new();
    for dir in pin::link_dirs(root) {
        for name in pin::links(&dir)? {
            let path = pin::of_link(&dir, &name);
            if let Pinned::Stale(why) = links::open(path.clone())? {
                pin::remove(&path)?;
                conditions.push(format!("{}; pin removed", BpfError::Link { path, why }));
            }
        }
    }
    Ok(conditions)
}

/// Places that a CPU has in each opener's ring of claims.
fn claims_of_a_cpu(maps: &Path) -> u16 {
    let entries =
        MapInfo::from_pin(maps.join(names::MAP_HALF_OPEN)).map_or(DEFAULT_HALF_OPEN, |info| info.max_entries());
    // SAFETY: it takes a number, and may be called at any time.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    let places = entries / HALF_OPEN_SHARES / u32::try_from(cpus).unwrap_or(1).max(1);
    u16::try_from(places).unwrap_or(u16::MAX).max(16)
}
