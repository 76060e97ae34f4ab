//! Loading, attaching and adopting: [`DataPlane`] is the daemon's hold on what runs in the kernel.

use super::BpfError;
use super::flow_quotas::FlowQuotas;
use super::owners::{Devices, Owners};
use super::pin;
use super::programs::Programs;
use super::stages::set_stages;
use super::sweep::Sweeping;
use super::table::{Access, PortMap, Single, Table, Trie};
use super::xdp::Filter;
use aya::maps::{Map, MapData, MapInfo};
use pv_net_common::flow::{DEFAULT_HALF_OPEN, HALF_OPEN_SHARES};
use pv_net_common::{
    ABI_VERSION, EndpointInfo, EndpointKey, FilterSource, FlowEntry, FlowKey, GlobalConfig, HalfOpenFlow,
    InterfaceInfo, Ip, SourceKey, UplinkInfo, names, nat,
};
use std::path::{Path, PathBuf};

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for the pins, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Entries of the flow table; takes effect when the map is made.
    pub flow_entries: u32,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A tcx link (kernel 6.6), pinned.
    Tcx,
    /// A filter on a clsact qdisc.
    Clsact,
}

impl Hook {
    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What an earlier daemon had left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Whether the maps were there.
    pub maps: bool,
    /// Whether the programs were, and the same that this daemon would have loaded.
    pub programs: bool,
    /// Host-side links that have these programs now.
    pub links: Vec<String>,
    /// What could not be adopted, and why.
    pub conditions: Vec<String>,
}

/// The loaded programs and their maps.
pub struct DataPlane {
    pub(super) pin_dir: PathBuf,
    hook: Hook,
    pub(super) programs: Programs,
    pub(super) config: Single<GlobalConfig>,
    pub(super) flows: Table<FlowKey, FlowEntry>,
    pub(super) half_open: Table<FlowKey, HalfOpenFlow>,
    pub(super) flow_quotas: FlowQuotas,
    pub(super) owners: Owners,
    pub(super) devices: Devices,
    endpoints: Table<EndpointKey, EndpointInfo>,
    pub(super) interfaces: Table<u32, InterfaceInfo>,
    pub(super) locals: Table<EndpointKey, u32>,
    pub(super) uplinks: Table<u32, UplinkInfo>,
    pub(super) networks: Trie<FilterSource, u32>,
    pub(super) sources: Trie<SourceKey, Ip>,
    pub(super) port_map: PortMap,
    pub(super) filter: Filter,
}

impl DataPlane {
    /// Takes over what is pinned: maps of this layout, programs that are those of this daemon, links. What is not there
    /// is made and loaded, and new programs are put behind the pinned links.
    ///
    /// # Errors
    /// When the directory is not on a BPF file system, or the kernel refuses a map or a program.
    pub fn open(options: &Options) -> Result<(Self, Adopted), BpfError> {
        let mut adopted = Adopted::default();
        pin::make_dirs(&options.pin_dir)?;
        let maps = pin::maps_dir(&options.pin_dir);
        match pinned_abi(&maps) {
            None => {}
            Some(ABI_VERSION) => adopted.maps = true,
            Some(other) => {
                pin::remove_all(&options.pin_dir)?;
                pin::make_dirs(&options.pin_dir)?;
                adopted.conditions.push(format!(
                    "pinned maps of layout {other} were replaced by layout {ABI_VERSION}: flows start anew"
                ));
            }
        }
        let (programs, taken_over) = Programs::open(options)?;
        adopted.programs = taken_over;
        // Before any program hands a packet on.
        set_stages(&maps, &programs)?;
        let mut plane = Self {
            pin_dir: options.pin_dir.clone(),
            hook: hook_of_kernel(),
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
        };
        let mut config = plane.config.get()?;
        config.abi = ABI_VERSION;
        config.epoch = config.epoch.max(1);
        config.generation = config.generation.max(1);
        if config.nat_first_port == 0 {
            config.nat_first_port = nat::FIRST_PORT;
        }
        config.claims = claims_of_a_cpu(&maps);
        plane.config.set(config)?;
        let (links, conditions) = plane.adopt_links()?;
        adopted.links = links;
        adopted.conditions.extend(conditions);
        adopted.conditions.extend(plane.adopt_filters()?);
        plane.programs.remove_others()?;
        Ok((plane, adopted))
    }

    pub(super) fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// What sweeps of the flow tables need.
    #[must_use]
    pub fn sweeping(&self) -> Sweeping {
        Sweeping { pin_dir: self.pin_dir.clone(), flow_quotas: self.flow_quotas.clone(), devices: self.devices.clone() }
    }

    /// How programs are attached on this kernel.
    #[must_use]
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Says what the container behind link `ifindex` may send.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_interface(&mut self, ifindex: u32, info: &InterfaceInfo) -> Result<(), BpfError> {
        // Before the link may send.
        self.flow_quotas.begin(ifindex, info.max_flows)?;
        self.interfaces.set(&ifindex, info)
    }

    /// Says where address `addr` is.
    ///
    /// # Errors
    /// The kernel's, such as a full map.
    pub fn set_endpoint(&mut self, addr: Ip, info: &EndpointInfo) -> Result<(), BpfError> {
        self.endpoints.set(&EndpointKey { addr }, info)
    }

    /// Forgets an address; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_endpoint(&mut self, addr: Ip) -> Result<(), BpfError> {
        self.endpoints.remove(&EndpointKey { addr }).map(drop)
    }

    /// Forgets a link; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_interface(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.interfaces.remove(&ifindex)?;
        self.flow_quotas.end(ifindex)
    }

    /// All links with what they may send.
    #[must_use]
    pub fn interfaces(&self) -> Vec<(u32, InterfaceInfo)> {
        self.interfaces.entries()
    }

    /// All container addresses.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(Ip, EndpointInfo)> {
        self.endpoints.entries().into_iter().map(|(k, v)| (k.addr, v)).collect()
    }

    /// The policy generation in force.
    ///
    /// # Errors
    /// The kernel's.
    pub fn generation(&self) -> Result<u32, BpfError> {
        Ok(self.config.get()?.generation)
    }

    /// Puts the next policy generation in force: every flow is decided again on its next packet. `rules`: it has some.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next_generation(&mut self, rules: bool) -> Result<u32, BpfError> {
        let mut config = self.config.get()?;
        config.generation = config.generation.wrapping_add(1).max(1);
        config.rules = u32::from(rules);
        self.config.set(config)?;
        self.next_epoch()?;
        Ok(config.generation)
    }

    /// Has the way out of every flow looked up again on its next packet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes_changed(&mut self) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.routes = config.epoch.wrapping_add(1).max(1);
        self.config.set(config)?;
        self.next_epoch()
    }

    /// A write of its own: who sees the new epoch sees what it stands for.
    fn next_epoch(&mut self) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.epoch = config.epoch.wrapping_add(1).max(1);
        self.config.set(config)
    }

    /// Masquerade takes its ports from the range that begins here. Nobody owns a port of another range.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_nat_range(&mut self, first_port: u16) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        if config.nat_first_port == first_port {
            return Ok(());
        }
        config.nat_first_port = first_port;
        self.config.set(config)?;
        self.owners.clear()
    }

    /// Gives back the memory of what was only needed for loading.
    pub fn put_away_object(&mut self) {
        self.programs.put_away_object();
    }
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

/// The layout version of the pinned maps; `None` when there are none.
fn pinned_abi(maps: &Path) -> Option<u32> {
    let path = maps.join(names::MAP_CONFIG);
    if !path.exists() {
        return None;
    }
    let read = || -> Result<u32, aya::maps::MapError> {
        let data = MapData::from_pin(&path)?;
        let map = aya::maps::Array::<_, GlobalConfig>::try_from(Map::from_map_data(data)?)?;
        Ok(map.get(&0, 0)?.abi)
    };
    // A map of another size is of another layout; zero is none that ever was.
    Some(read().unwrap_or(0))
}

/// tcx links came with kernel 6.6.
fn hook_of_kernel() -> Hook {
    if kernel_has(6, 6) { Hook::Tcx } else { Hook::Clsact }
}

pub(super) fn kernel_has(major: u8, minor: u8) -> bool {
    aya::util::KernelVersion::current().is_ok_and(|v| v >= aya::util::KernelVersion::new(major, minor, 0))
}
