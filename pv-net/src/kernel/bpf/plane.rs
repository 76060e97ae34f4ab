//! [`DataPlane`]: the daemon's hold on what runs in the kernel.

use super::BpfError;
use super::filter::Filter;
use super::flow_quotas::FlowQuotas;
use super::frame::{self, Ran};
use super::options::Hook;
use super::owners::{Devices, Owners};
use super::policy::PolicyTables;
use super::programs::Programs;
use super::sweep::Sweeping;
use super::table::{PortMap, Single, Table, Trie};
use super::takeover::Takeover;
use pv_net_common::{
    EndpointInfo, EndpointKey, FilterSource, FlowEntry, FlowKey, GlobalConfig, HalfOpenFlow, InterfaceInfo, Ip,
    SourceKey, UplinkInfo, names,
};
use std::path::{Path, PathBuf};

/// The loaded programs and their maps.
pub struct DataPlane {
    pub(super) pin_dir: PathBuf,
    pub(super) hook: Hook,
    pub(super) programs: Programs,
    pub(super) config: Single<GlobalConfig>,
    pub(super) flows: Table<FlowKey, FlowEntry>,
    pub(super) half_open: Table<FlowKey, HalfOpenFlow>,
    pub(super) flow_quotas: FlowQuotas,
    pub(super) owners: Owners,
    pub(super) devices: Devices,
    pub(super) endpoints: Table<EndpointKey, EndpointInfo>,
    pub(super) interfaces: Table<u32, InterfaceInfo>,
    pub(super) locals: Table<EndpointKey, u32>,
    pub(super) uplinks: Table<u32, UplinkInfo>,
    pub(super) networks: Trie<FilterSource, u32>,
    pub(super) sources: Trie<SourceKey, Ip>,
    pub(super) port_map: PortMap,
    pub(super) filter: Filter,
    /// What is still to be done until these programs and maps are in force.
    pub(super) takeover: Option<Takeover>,
}

impl DataPlane {
    pub(super) fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Whether [`Self::take_over`] is still to come.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.takeover.is_some()
    }

    /// The policy maps that go with the programs.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn policy_tables(&self) -> Result<PolicyTables, BpfError> {
        PolicyTables::open(self.programs.maps())
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

    /// Whether the policy generation in force has rules.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_rules(&self) -> Result<bool, BpfError> {
        Ok(self.config.get()?.rules != 0)
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

    /// Runs `pv_from_container` on `frame` as if it had come in on link `ifindex`, that must be one of the calling
    /// thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not run it: there is no such link, or the frame is shorter than an Ethernet header.
    pub fn run_frame(&mut self, ifindex: u32, frame: &[u8]) -> Result<Ran, BpfError> {
        let name = names::PROG_FROM_CONTAINER;
        frame::run(self.programs.entry(name)?, name, ifindex, frame)
    }

    /// Gives back the memory of what was only needed for loading.
    pub fn put_away_object(&mut self) {
        self.programs.put_away_object();
    }
}
