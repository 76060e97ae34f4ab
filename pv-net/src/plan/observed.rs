//! What the kernel holds, in the plan's terms, and what it holds after a step.

use super::{Bridge, DeviceIf, HookPoint, HostRoute, LinkSysctl, Op, Tables, device_if_settings};
use crate::model::{PairKind, alias};
use ipnetwork::IpNetwork;
use pv_net_common::{EndpointInfo, InterfaceInfo, Ip, LinkId};
use std::collections::{BTreeMap, BTreeSet};

/// Whether it is an index of the kernel, and not the number of a link in a container's namespace.
const fn is_index(index: u32) -> bool {
    !LinkId::of_index(index).is_assigned()
}

/// A link, as far as pv-net needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind (`veth`, `bridge`, …); `None` for a physical link.
    pub kind: Option<String>,
    /// MAC, for an Ethernet link.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is set up (`IFF_UP`).
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// `ifalias`.
    pub alias: Option<String>,
    /// For a pair: the index of its other end, in the namespace of that end (`IFLA_LINK`).
    pub other_end: Option<u32>,
    /// For a pair whose other end is in another namespace: the number of that namespace in this one
    /// (`IFLA_LINK_NETNSID`).
    pub other_ns: Option<i32>,
    /// Index of the bridge, bond or other link that it is a port of.
    pub controller: Option<u32>,
    /// It is the loopback link.
    pub loopback: bool,
    /// It is an ipvlan in mode l3s: its packets come in by its parent and become its own only after routing
    /// (`ipvlan_l3s.c`), so programs on its ingress do not see them. Seen on 6.12.
    pub l3s: bool,
}

impl Link {
    /// Its kind, for one end of a pair.
    #[must_use]
    pub fn pair(&self) -> Option<PairKind> {
        PairKind::of(self.kind.as_deref()?)
    }

    /// Whether it is the host side of a container's interface, by the alias that it was made with.
    #[must_use]
    pub fn is_containers(&self) -> bool {
        self.alias.as_deref().is_some_and(|a| alias::to_attachment(&self.name, a).is_some())
    }

    /// Whether it is the device's own interface beside the macvlan interfaces of containers.
    #[must_use]
    pub fn is_device_if(&self) -> bool {
        self.kind.as_deref() == Some("macvlan") && alias::is_device_if(self.alias.as_deref())
    }

    /// Whether it is a container's link whose attach is not finished.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.alias.as_deref().is_some_and(alias::is_unfinished)
    }
}

/// An address of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its link.
    pub link: u32,
    /// The address, with its network's prefix length.
    pub address: IpNetwork,
    /// Its scope (`rtnetlink(7)`) is wider than its link.
    pub beyond_link: bool,
    /// IPv4: it is not the first of its network. IPv6: it is temporary. Both are the same flag (`if_addr.h`).
    pub secondary: bool,
    /// It is deprecated or optimistic.
    pub avoided: bool,
    /// It is tentative or a duplicate, so the kernel does not use it.
    pub unusable: bool,
}

impl Address {
    /// A permanent address that is in use.
    #[must_use]
    pub const fn usual(link: u32, address: IpNetwork) -> Self {
        Self { link, address, beyond_link: true, secondary: false, avoided: false, unusable: false }
    }
}

/// Whether a link has the program of pv-net that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramState {
    /// It has pv-net's program.
    Own,
    /// It has another program in that place, with this id.
    Other(u32),
    /// It has none: the pin is missing, leads to no link, or to the link of another device.
    Lost,
}

impl ProgramState {
    /// The state of a link that should have two programs, which have the states `self` and `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Own { other } else { self }
    }
}

/// What the kernel holds of pv-net's concern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device's links, by name.
    pub links: BTreeMap<String, Link>,
    /// The `interfaces` map.
    pub interfaces: BTreeMap<u32, InterfaceInfo>,
    /// The `endpoints` map.
    pub endpoints: BTreeMap<Ip, EndpointInfo>,
    /// The state of the programs on containers' links, by index. `None` while it is unknown: filters of clsact cannot
    /// be told before the take-over.
    pub hooks: Option<BTreeMap<u32, ProgramState>>,
    /// The device's addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Links that default routes lead to: of IPv4, and of IPv6.
    pub default_routes: [BTreeSet<u32>; 2],
    /// Routes to containers by the device's own interfaces on parents.
    pub host_routes: BTreeSet<HostRoute>,
    /// Sysctls of bridges and of the device's own interfaces on parents. Missing where the kernel does not have the
    /// setting.
    pub sysctls: BTreeMap<LinkSysctl, String>,
    /// Bridges that pv-net did not make and whose MAC this daemon has set, so that it does not follow the MACs of their
    /// ports. The kernel does not report this.
    pub macs_held: BTreeSet<u32>,
    /// The state of the programs on uplinks and bridges, by place and the link's index.
    pub hooked: BTreeMap<(HookPoint, u32), ProgramState>,
    /// The maps that describe the device to the programs.
    pub tables: Tables,
    /// The first port of masquerade's range, 0 when there is none yet.
    pub nat_first_port: u16,
    /// Value of `ip_local_reserved_ports`: ports that the kernel does not choose for the device's own connections.
    pub reserved_ports: String,
    /// The highest index of a link that a step has deleted.
    pub deleted: DeletedIndex,
}

/// The highest index of the links that steps have deleted, so that a later link gets another one, as in the kernel. What
/// is known of a deleted link would be taken for the new one's. It is about the past, so states with different ones are
/// the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeletedIndex(u32);

impl PartialEq for DeletedIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for DeletedIndex {}

impl Observed {
    /// The link with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.values().find(|l| l.index == index)
    }

    /// The host side of a container's interface, by its name. A link of that name without pv-net's alias does not
    /// count.
    #[must_use]
    pub fn host_side(&self, host_if: &str) -> Option<&Link> {
        self.links.get(host_if).filter(|link| link.is_containers())
    }

    fn link_mut(&mut self, index: u32) -> Option<&mut Link> {
        self.links.values_mut().find(|l| l.index == index)
    }

    /// Whether the container's link with this index has its programs; `false` when that is unknown.
    #[must_use]
    pub fn is_guarded(&self, index: u32) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| hooks.get(&index) == Some(&ProgramState::Own))
    }

    /// Whether the link with this index has this address.
    #[must_use]
    pub fn has_address(&self, link: u32, address: IpNetwork) -> bool {
        self.addresses.iter().any(|a| a.link == link && a.address == address)
    }

    /// The device's addresses with the index of their link.
    #[must_use]
    pub fn networks(&self) -> Vec<(u32, IpNetwork)> {
        self.addresses.iter().map(|a| (a.link, a.address)).collect()
    }

    /// Whether the link with this index has pv-net's program at this place.
    #[must_use]
    pub fn is_hooked(&self, at: HookPoint, index: u32) -> bool {
        self.hooked.get(&(at, index)) == Some(&ProgramState::Own)
    }

    /// Name of the link with this index for messages; the index when there is no such link.
    #[must_use]
    pub fn name_of(&self, index: u32) -> String {
        self.link(index).map_or_else(|| index.to_string(), |l| l.name.clone())
    }

    /// Changes `self` to what the kernel holds after `op` has succeeded.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::SetInterface { index, info, .. } => drop(self.interfaces.insert(*index, **info)),
            Op::RemoveInterface { index } => drop(self.interfaces.remove(index)),
            Op::AttachPrograms { index, .. } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.insert(*index, ProgramState::Own);
                }
            }
            Op::DetachPrograms { index } => {
                if let Some(hooks) = &mut self.hooks {
                    hooks.remove(index);
                }
            }
            Op::Enslave { index, bridge, .. } => self.change(*index, |l| l.controller = Some(*bridge)),
            Op::Release { index, .. } => self.change(*index, |l| l.controller = None),
            Op::SetUp { index, .. } => self.change(*index, |l| l.up = true),
            Op::SetDown { index, .. } => self.change(*index, |l| l.up = false),
            Op::Rename { index, name, .. } => {
                self.change(*index, |l| l.name = name.to_string());
                self.links = std::mem::take(&mut self.links).into_values().map(|l| (l.name.clone(), l)).collect();
            }
            Op::DeleteLink { index, .. } => {
                if let Some(name) = self.link(*index).map(|link| link.name.clone()) {
                    self.delete(&name);
                }
            }
            Op::SetEndpoint { addr, info } => drop(self.endpoints.insert(*addr, *info)),
            Op::RemoveEndpoint { addr } => drop(self.endpoints.remove(addr)),
            Op::MakeBridge(bridge) => self.make_bridge(bridge),
            Op::MakeDeviceIf(own) => self.make_device_if(own),
            Op::AddRoute { route, .. } => drop(self.host_routes.insert(*route)),
            Op::RemoveRoute { route, .. } => drop(self.host_routes.remove(route)),
            Op::DeleteBridge { name } | Op::DeleteDeviceIf { name } => self.delete(name.as_str()),
            Op::SetMac { index, mac, .. } => {
                self.change(*index, |l| l.mac = Some(mac.0));
                if !self.link(*index).is_some_and(|l| alias::is_ours(l.alias.as_deref())) {
                    self.macs_held.insert(*index);
                }
            }
            Op::SetMtu { index, mtu, .. } => self.change(*index, |l| l.mtu = *mtu),
            Op::SetAlias { index, alias, .. } => self.change(*index, |l| l.alias = Some(alias.clone())),
            Op::AddAddress { index, address, deprecated, .. } => {
                if !self.has_address(*index, *address) {
                    self.addresses.push(Address { avoided: *deprecated, ..Address::usual(*index, *address) });
                }
            }
            Op::RemoveAddress { index, address, .. } => {
                self.addresses.retain(|a| a.link != *index || a.address != *address);
            }
            Op::SetSysctl { sysctl, value } => drop(self.sysctls.insert(sysctl.clone(), value.clone())),
            Op::Hook { at, index, .. } => drop(self.hooked.insert((*at, *index), ProgramState::Own)),
            Op::Unhook { at, index, .. } => drop(self.hooked.remove(&(*at, *index))),
            Op::Set(entry) => self.tables.set(entry),
            Op::Remove(entry) => self.tables.remove(entry),
            Op::SetNatRange { first } => self.nat_first_port = *first,
            Op::ReservePorts { list } => self.reserved_ports.clone_from(list),
            // Flows are no part of the observed state.
            Op::EndFlows { .. } | Op::EndUplinkFlows { .. } | Op::EndPortFlows { .. } | Op::RenewRoutes => {}
        }
    }

    /// With a link goes what hangs on it, and a bridge loses its ports. The programs' pins of a container's link stay
    /// until they are forgotten.
    fn delete(&mut self, name: &str) {
        let Some(Link { index, .. }) = self.links.remove(name) else { return };
        if is_index(index) {
            self.deleted.0 = self.deleted.0.max(index);
        }
        self.addresses.retain(|a| a.link != index);
        self.macs_held.remove(&index);
        self.sysctls.retain(|sysctl, _| sysctl.link.as_str() != name);
        self.hooked.retain(|(_, link), _| *link != index);
        self.host_routes.retain(|route| route.link != index);
        for port in self.links.values_mut().filter(|link| link.controller == Some(index)) {
            port.controller = None;
        }
    }

    /// The index of the next link.
    fn next_index(&self) -> u32 {
        self.links.values().map(|l| l.index).filter(|index| is_index(*index)).fold(self.deleted.0, u32::max) + 1
    }

    /// A new bridge has the kernel's default settings.
    fn make_bridge(&mut self, bridge: &Bridge) {
        if self.links.contains_key(bridge.name.as_str()) {
            return;
        }
        let index = self.next_index();
        for (family, key, value) in
            [("ipv4", "forwarding", "0"), ("ipv6", "forwarding", "0"), ("ipv6", "accept_ra", "1")]
        {
            self.sysctls.insert(LinkSysctl { family, link: bridge.name.clone(), key }, value.to_owned());
        }
        let link = Link {
            index,
            name: bridge.name.to_string(),
            kind: Some("bridge".to_owned()),
            mac: Some(bridge.mac.0),
            mtu: bridge.mtu,
            up: false,
            carrier: false,
            alias: Some(bridge.alias.clone()),
            other_end: None,
            other_ns: None,
            controller: None,
            loopback: false,
            l3s: false,
        };
        self.links.insert(link.name.clone(), link);
    }

    /// A new macvlan has the kernel's default settings, on a device that forwards.
    fn make_device_if(&mut self, own: &DeviceIf) {
        if self.links.contains_key(own.name.as_str()) {
            return;
        }
        self.sysctls.extend(device_if_settings(&own.name).map(|sysctl| (sysctl, "1".to_owned())));
        let link = Link {
            index: self.next_index(),
            name: own.name.to_string(),
            kind: Some("macvlan".to_owned()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: own.mtu,
            up: false,
            carrier: false,
            alias: Some(own.alias.clone()),
            other_end: Some(own.parent),
            other_ns: None,
            controller: None,
            loopback: false,
            l3s: false,
        };
        self.links.insert(link.name.clone(), link);
    }

    fn change(&mut self, index: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.link_mut(index) {
            change(link);
        }
    }

    /// Containers' links that can carry a packet without a guard. There must never be one.
    #[must_use]
    pub fn unguarded(&self) -> Vec<&str> {
        let open = |l: &&Link| l.is_containers() && l.up && !self.is_guarded(l.index);
        self.links.values().filter(open).map(|l| l.name.as_str()).collect()
    }
}
