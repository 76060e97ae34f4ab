//! The text of a step for people: in the log, in errors and in `pv-net plan`.

use super::{HookPoint, Op};
use crate::plan::Entry;
use std::fmt;
use std::net::IpAddr;

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => write!(f, "program on uplink"),
            Self::Bridge => write!(f, "program on bridge"),
            Self::DeviceIf => write!(f, "programs on the device's interface"),
            Self::Filter(mode) => write!(f, "filter ({}) on uplink", mode.label()),
        }
    }
}

fn joined<T: ToString>(all: impl Iterator<Item = T>) -> String {
    all.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetInterface { host_if, index, .. } => write!(f, "interface {index} ({host_if}) guarded"),
            Self::RemoveInterface { index } => write!(f, "interface {index} removed"),
            Self::AttachPrograms { host_if, .. } => write!(f, "programs on {host_if}"),
            Self::DetachPrograms { index } => write!(f, "programs of link {index} forgotten"),
            Self::Enslave { host_if, bridge, .. } => write!(f, "{host_if} port of bridge {bridge}"),
            Self::Release { host_if, .. } => write!(f, "{host_if} port of no bridge"),
            Self::SetUp { link, .. } => write!(f, "{link} up"),
            Self::SetDown { link, .. } => write!(f, "{link} down"),
            Self::Rename { link, name, .. } => write!(f, "{link} called {name}"),
            Self::DeleteLink { link, .. } => write!(f, "{link} deleted"),
            Self::SetEndpoint { addr, info } => write!(f, "endpoint {} at {}", IpAddr::from(*addr), info.link),
            Self::RemoveEndpoint { addr } => write!(f, "endpoint {} removed", IpAddr::from(*addr)),
            Self::EndFlows { addresses } => {
                write!(f, "flows of {} ended", joined(addresses.iter().map(|a| IpAddr::from(*a))))
            }
            Self::MakeBridge(bridge) => write!(f, "bridge {} made, MTU {}", bridge.name, bridge.mtu),
            Self::DeleteBridge { name } => write!(f, "bridge {name} deleted"),
            Self::MakeDeviceIf(own) => write!(f, "{} made, the device's interface on {}", own.name, own.parent_name),
            Self::DeleteDeviceIf { name } => write!(f, "{name} deleted"),
            Self::AddRoute { link, route } => write!(f, "{link} {route} added"),
            Self::RemoveRoute { link, route } => write!(f, "{link} {route} removed"),
            Self::SetMac { link, mac, .. } => write!(f, "{link} MAC {mac}"),
            Self::SetMtu { link, mtu, .. } => write!(f, "{link} MTU {mtu}"),
            Self::SetAlias { link, alias, .. } => write!(f, "{link} marked {alias:?}"),
            Self::AddAddress { link, address, .. } => write!(f, "{link} address {address} added"),
            Self::RemoveAddress { link, address, .. } => write!(f, "{link} address {address} removed"),
            Self::SetSysctl { sysctl, value } => {
                write!(f, "net.{}.conf.{}.{} = {value}", sysctl.family, sysctl.link, sysctl.key)
            }
            Self::Hook { at, link, .. } => write!(f, "{at} {link}"),
            Self::Unhook { at, link, .. } => write!(f, "{at} {link} removed"),
            Self::Set(entry) => write!(f, "{entry} set"),
            Self::Remove(entry) => write!(f, "{entry} removed"),
            Self::SetNatRange { first } => write!(f, "masquerade's ports from {first}"),
            Self::ReservePorts { list } if list.is_empty() => {
                write!(f, "no ports kept from the device's own connections")
            }
            Self::ReservePorts { list } => write!(f, "ports {list} kept from the device's own connections"),
            Self::EndUplinkFlows { uplinks, addresses } => {
                let links = uplinks.iter().map(|index| format!("uplink {index}"));
                let all = joined(links.chain(addresses.iter().map(|a| IpAddr::from(*a).to_string())));
                write!(f, "flows by {all} ended")
            }
            Self::EndPortFlows { ports } => {
                let all = joined(ports.iter().map(|(prefix, target)| Entry::Port { prefix: *prefix, target: *target }));
                write!(f, "flows of {all} ended")
            }
            Self::RenewRoutes => write!(f, "flows look up their way out again"),
        }
    }
}
