//! What the kernel holds, in the plan's own terms, and what it holds after a step.

use super::Op;
use crate::model::alias;
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip};
use std::collections::{BTreeMap, BTreeSet};

/// A link, as far as pv-net cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind (`veth`, `bridge`, …); none for a physical one.
    pub kind: Option<String>,
    /// MAC, for an Ethernet link.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// `ifalias`.
    pub alias: Option<String>,
    /// For a veth the index of its other end, in that one's namespace (`IFLA_LINK`).
    pub other_end: Option<u32>,
    /// Index of the bridge, bond or the like that it is a port of.
    pub controller: Option<u32>,
    /// It is the loopback link.
    pub loopback: bool,
    /// An ipvlan in mode l3s: its packets come in as its parent's, and are its own only after routing (`ipvlan_l3s.c`),
    /// where no program of the link's ingress sees them. Seen on 6.12.
    pub l3s: bool,
}

impl Link {
    /// Whether it is the host side of a container's interface, by the mark that it was made with.
    #[must_use]
    pub fn is_containers(&self) -> bool {
        self.alias.as_deref().is_some_and(|a| alias::to_attachment(&self.name, a).is_some())
    }

    /// Whether it is one whose attach has not come to its end.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.alias.as_deref().is_some_and(alias::is_unfinished)
    }
}

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device's links, by name.
    pub links: BTreeMap<String, Link>,
    /// The `interfaces` map.
    pub interfaces: BTreeMap<u32, InterfaceInfo>,
    /// The `endpoints` map.
    pub endpoints: BTreeMap<Ip, EndpointInfo>,
    /// Containers' links with their programs; none when the kernel does not say, as of filters of clsact.
    pub hooks: Option<BTreeSet<String>>,
}

impl Observed {
    /// The link with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.values().find(|l| l.index == index)
    }

    fn link_mut(&mut self, index: u32) -> Option<&mut Link> {
        self.links.values_mut().find(|l| l.index == index)
    }

    /// Whether the link called `name` has its programs; not known counts as no.
    #[must_use]
    pub fn is_guarded(&self, name: &str) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| hooks.contains(name))
    }

    /// Makes it what the kernel holds after `op`, when that succeeds.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::SetInterface { index, info, .. } => drop(self.interfaces.insert(*index, **info)),
            Op::RemoveInterface { index } => drop(self.interfaces.remove(index)),
            Op::AttachPrograms { host_if, .. } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.insert(host_if.to_string());
                }
            }
            Op::DetachPrograms { host_if } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.remove(host_if);
                }
            }
            Op::Enslave { index, bridge, .. } => self.change(*index, |l| l.controller = Some(*bridge)),
            Op::Release { index, .. } => self.change(*index, |l| l.controller = None),
            Op::SetUp { index, .. } => self.change(*index, |l| l.up = true),
            Op::SetDown { index, .. } => self.change(*index, |l| l.up = false),
            Op::DeleteLink { index, .. } => self.links.retain(|_, l| l.index != *index),
            Op::SetEndpoint { addr, info } => drop(self.endpoints.insert(*addr, *info)),
            Op::RemoveEndpoint { addr } => drop(self.endpoints.remove(addr)),
            // Flows come and go without the daemon.
            Op::EndFlows { .. } => {}
        }
    }

    fn change(&mut self, index: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.link_mut(index) {
            change(link);
        }
    }

    /// Containers' links that can carry a packet without a guard. There must never be one.
    #[must_use]
    pub fn unguarded(&self) -> Vec<&str> {
        let open = |l: &&Link| l.is_containers() && l.up && !self.is_guarded(&l.name);
        self.links.values().filter(open).map(|l| l.name.as_str()).collect()
    }
}
