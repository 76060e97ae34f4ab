//! The steps that undo a step.

use super::Op;
use crate::model::Mac;
use crate::plan::Observed;

impl Op {
    /// The steps that lead back to `before`, the state of the kernel before this step. None when the step changed
    /// nothing, or cannot be undone: a link was deleted, or a flow ended. Undoing never takes the programs off a link
    /// that is up.
    #[must_use]
    pub fn undo(&self, before: &Observed) -> Vec<Self> {
        let back = match self {
            Self::SetInterface { host_if, index, .. } => Some(match before.interfaces.get(index) {
                Some(info) => Self::SetInterface { host_if: host_if.clone(), index: *index, info: Box::new(*info) },
                None => Self::RemoveInterface { index: *index },
            }),
            Self::RemoveInterface { index } => before.interfaces.get(index).map(|info| Self::SetInterface {
                host_if: before.name_of(*index),
                index: *index,
                info: Box::new(*info),
            }),
            Self::AttachPrograms { index, .. } => {
                let was_open = before.link(*index).is_some_and(|l| l.up);
                let keep = before.hooks.as_ref().is_none_or(|hooks| hooks.contains_key(index)) || was_open;
                (!keep).then_some(Self::DetachPrograms { index: *index })
            }
            Self::DetachPrograms { index } => before
                .link(*index)
                .filter(|_| before.is_guarded(*index))
                .and_then(|link| Some(Self::AttachPrograms { host_if: link.name.parse().ok()?, index: *index })),
            Self::Enslave { host_if, index, mac, .. } => before.link(*index).map(|l| match l.controller {
                Some(bridge) => Self::Enslave { host_if: host_if.clone(), index: *index, bridge, mac: *mac },
                None => Self::Release { host_if: host_if.clone(), index: *index },
            }),
            Self::Release { host_if, index } => before.link(*index).and_then(|l| {
                let mac = before.interfaces.get(index).map_or(Mac([0; 6]), |info| Mac(info.mac));
                Some(Self::Enslave { host_if: host_if.clone(), index: *index, bridge: l.controller?, mac })
            }),
            Self::SetUp { link, index } => {
                let was_down = before.link(*index).is_some_and(|l| !l.up);
                was_down.then(|| Self::SetDown { link: link.clone(), index: *index })
            }
            Self::SetDown { link, index } => {
                // A container's link that was up without its programs stays down.
                let may_be_up = before.hooks.is_none() || before.is_guarded(*index);
                let was_up = before.link(*index).is_some_and(|l| l.up && (!l.is_containers() || may_be_up));
                was_up.then(|| Self::SetUp { link: link.clone(), index: *index })
            }
            Self::Rename { index, name, .. } => before
                .link(*index)
                .and_then(|l| Some(Self::Rename { link: name.to_string(), index: *index, name: l.name.parse().ok()? })),
            Self::SetEndpoint { addr, .. } => Some(match before.endpoints.get(addr) {
                Some(info) => Self::SetEndpoint { addr: *addr, info: *info },
                None => Self::RemoveEndpoint { addr: *addr },
            }),
            Self::RemoveEndpoint { addr } => {
                before.endpoints.get(addr).map(|info| Self::SetEndpoint { addr: *addr, info: *info })
            }
            Self::MakeBridge(bridge) => {
                let is_new = !before.links.contains_key(bridge.name.as_str());
                is_new.then(|| Self::DeleteBridge { name: bridge.name.clone() })
            }
            Self::MakeDeviceIf(own) => {
                let is_new = !before.links.contains_key(own.name.as_str());
                is_new.then(|| Self::DeleteDeviceIf { name: own.name.clone() })
            }
            Self::AddRoute { link, route } => {
                (!before.host_routes.contains(route)).then(|| Self::RemoveRoute { link: link.clone(), route: *route })
            }
            Self::RemoveRoute { link, route } => {
                (before.host_routes.contains(route)).then(|| Self::AddRoute { link: link.clone(), route: *route })
            }
            Self::SetMac { link, index, .. } => before.link(*index).and_then(|l| l.mac).map(|mac| Self::SetMac {
                link: link.clone(),
                index: *index,
                mac: Mac(mac),
            }),
            Self::SetMtu { link, index, .. } => {
                before.link(*index).map(|l| Self::SetMtu { link: link.clone(), index: *index, mtu: l.mtu })
            }
            Self::SetAlias { link, index, .. } => before.link(*index).map(|l| Self::SetAlias {
                link: link.clone(),
                index: *index,
                alias: l.alias.clone().unwrap_or_default(),
            }),
            Self::AddAddress { link, index, address, .. } => (!before.has_address(*index, *address))
                .then(|| Self::RemoveAddress { link: link.clone(), index: *index, address: *address }),
            Self::RemoveAddress { link, index, address } => {
                let was = before.addresses.iter().find(|a| a.link == *index && a.address == *address);
                was.map(|was| Self::AddAddress {
                    link: link.clone(),
                    index: *index,
                    address: *address,
                    deprecated: was.avoided,
                })
            }
            Self::SetSysctl { sysctl, .. } => {
                before.sysctls.get(sysctl).map(|value| Self::SetSysctl { sysctl: sysctl.clone(), value: value.clone() })
            }
            Self::Hook { at, link, index } => (!before.hooked.contains_key(&(*at, *index))).then(|| Self::Unhook {
                at: *at,
                link: link.to_string(),
                index: *index,
            }),
            Self::Unhook { at, link, index } => (before.is_hooked(*at, *index))
                .then(|| Some(Self::Hook { at: *at, link: link.parse().ok()?, index: *index }))
                .flatten(),
            Self::Set(entry) => Some(match before.tables.get(entry) {
                Some(was) => Self::Set(was),
                None => Self::Remove(*entry),
            }),
            Self::Remove(entry) => before.tables.get(entry).map(Self::Set),
            Self::SetNatRange { .. } => Some(Self::SetNatRange { first: before.nat_first_port }),
            Self::ReservePorts { .. } => Some(Self::ReservePorts { list: before.reserved_ports.clone() }),
            Self::DeleteLink { .. }
            | Self::DeleteBridge { .. }
            | Self::DeleteDeviceIf { .. }
            | Self::EndFlows { .. }
            | Self::EndUplinkFlows { .. }
            | Self::EndPortFlows { .. }
            | Self::RenewRoutes => None,
        };
        back.into_iter().collect()
    }
}
