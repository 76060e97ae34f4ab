//! [`DataPlane`]: the daemon's handles to the programs and maps in the kernel.

use super::BpfError;
use super::filter::Filter;
use super::flow_quotas::FlowQuotas;
use super::frame::{self, Ran};
use super::held::Held;
use super::options::Hook;
use super::owners::{Devices, Owners};
use super::policy::PolicyTables;
use super::programs::Programs;
use super::sweep::Sweeping;
use super::table::{PortMap, Single, Table, Trie};
use super::takeover::Takeover;
use crate::kernel::own_dir::DirLock;
use pv_net_common::{
    EndpointInfo, EndpointKey, FilterSource, FlowEntry, FlowKey, GlobalConfig, HalfOpenFlow, InterfaceInfo, Ip, LinkId,
    SenderKey, SourceKey, UplinkInfo, names,
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
    pub(super) interfaces: Table<LinkId, InterfaceInfo>,
    pub(super) children: Table<EndpointKey, EndpointInfo>,
    pub(super) senders: Table<SenderKey, LinkId>,
    pub(super) locals: Table<EndpointKey, u32>,
    pub(super) uplinks: Table<u32, UplinkInfo>,
    pub(super) networks: Trie<FilterSource, u32>,
    pub(super) sources: Trie<SourceKey, Ip>,
    pub(super) port_map: PortMap,
    pub(super) filter: Filter,
    /// What is left to do until these programs and maps are in force; `None` when they are.
    pub(super) takeover: Option<Takeover>,
    /// What was pinned at the take-over.
    pub(super) held: Option<Held>,
    /// Keeps other daemons from these pins.
    pub(super) _lock: DirLock,
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

    /// Opens the policy maps that the programs use.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn policy_tables(&self) -> Result<PolicyTables, BpfError> {
        PolicyTables::open(self.programs.maps())
    }

    /// What a sweeper of the flow tables needs.
    #[must_use]
    pub fn sweeping(&self) -> Sweeping {
        Sweeping { pin_dir: self.pin_dir.clone(), flow_quotas: self.flow_quotas.clone(), devices: self.devices.clone() }
    }

    /// How programs are attached on this kernel.
    #[must_use]
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Writes what the container behind `link` may send to the map `interfaces`.
    ///
    /// # Errors
    /// When the kernel refuses to write a map, for example because it is full.
    pub fn set_interface(&mut self, link: LinkId, info: &InterfaceInfo) -> Result<(), BpfError> {
        // The counting begins first, before the link may send.
        self.flow_quotas.begin(link, info.max_flows)?;
        if link.is_assigned() {
            if let Some(former) = self.interfaces.get(&link)?.map(|former| sender(&former))
                && former != sender(info)
            {
                self.senders.remove(&former)?;
            }
            self.senders.set(&sender(info), &link)?;
        }
        self.interfaces.set(&link, info)
    }

    /// Writes where address `addr` is to the map `endpoints`, or `children` for a macvlan interface.
    ///
    /// # Errors
    /// When the kernel refuses to write the map, for example because it is full.
    pub fn set_endpoint(&mut self, addr: Ip, info: &EndpointInfo) -> Result<(), BpfError> {
        let map = if info.link.is_assigned() { &mut self.children } else { &mut self.endpoints };
        map.set(&EndpointKey { addr }, info)
    }

    /// Removes an address from the map `endpoints`; a missing one is fine.
    ///
    /// # Errors
    /// When the kernel refuses to remove the entry.
    pub fn remove_endpoint(&mut self, addr: Ip) -> Result<(), BpfError> {
        self.children.remove(&EndpointKey { addr })?;
        self.endpoints.remove(&EndpointKey { addr }).map(drop)
    }

    /// Removes a link from the map `interfaces`; a missing one is fine.
    ///
    /// # Errors
    /// When the kernel refuses to remove an entry.
    pub fn remove_interface(&mut self, link: LinkId) -> Result<(), BpfError> {
        if link.is_assigned()
            && let Some(info) = self.interfaces.get(&link)?
        {
            self.senders.remove(&sender(&info))?;
        }
        self.interfaces.remove(&link)?;
        self.flow_quotas.end(link)
    }

    /// All entries of the map `interfaces`.
    #[must_use]
    pub fn interfaces(&self) -> Vec<(LinkId, InterfaceInfo)> {
        self.interfaces.entries()
    }

    /// All entries of the maps `endpoints` and `children`.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(Ip, EndpointInfo)> {
        let all = self.endpoints.entries().into_iter().chain(self.children.entries());
        all.map(|(k, v)| (k.addr, v)).collect()
    }

    /// The policy generation in force.
    ///
    /// # Errors
    /// When the map `config` cannot be read.
    pub fn generation(&self) -> Result<u32, BpfError> {
        Ok(self.config.get()?.generation)
    }

    /// Whether the policy generation in force has rules.
    ///
    /// # Errors
    /// When the map `config` cannot be read.
    pub fn has_rules(&self) -> Result<bool, BpfError> {
        Ok(self.config.get()?.rules != 0)
    }

    /// Puts the next policy generation in force and returns its number; every flow is decided again on its next packet.
    /// `rules`: whether the generation has rules.
    ///
    /// # Errors
    /// When the map `config` cannot be read or written.
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
    /// When the map `config` cannot be read or written.
    pub fn routes_changed(&mut self) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.routes = config.epoch.wrapping_add(1).max(1);
        self.config.set(config)?;
        self.next_epoch()
    }

    /// Raises the epoch, in a write of its own after the change that it stands for, so that a program which sees the
    /// new epoch sees the change too.
    fn next_epoch(&mut self) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        config.epoch = config.epoch.wrapping_add(1).max(1);
        self.config.set(config)
    }

    /// Sets the beginning of masquerade's port range. When it changes, the owners of all ports are cleared.
    ///
    /// # Errors
    /// When the maps `config` or `nat_owners` cannot be read or written.
    pub fn set_nat_range(&mut self, first_port: u16) -> Result<(), BpfError> {
        let mut config = self.config.get()?;
        if config.nat_first_port == first_port {
            return Ok(());
        }
        config.nat_first_port = first_port;
        self.config.set(config)?;
        self.owners.clear()
    }

    /// Runs `pv_from_container` on `frame` as if it had come in on link `ifindex`, which must be in the calling
    /// thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not run it: there is no such link, or the frame is shorter than an Ethernet header.
    pub fn run_frame(&mut self, ifindex: u32, frame: &[u8]) -> Result<Ran, BpfError> {
        let name = names::PROG_FROM_CONTAINER;
        frame::run(self.programs.entry(name)?, name, ifindex, frame)
    }

    /// Frees the parsed object, which is needed only for loading.
    pub fn put_away_object(&mut self) {
        self.programs.put_away_object();
    }
}

/// The key under which the parent knows an interface: the MAC of its lease, from which its link-local address follows. The
/// frames of a macvlan interface have this MAC; those of an ipvlan interface have the parent's.
pub(super) const fn sender(info: &InterfaceInfo) -> SenderKey {
    SenderKey { parent: info.bridge, mac: info.link_local.link_local_mac(), pad: 0 }
}
