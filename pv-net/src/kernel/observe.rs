//! Reads the state of the kernel for the plan.

use super::apply::Host;
use super::bpf::Hook;
use super::bpf::children::is_number;
use super::netlink::clsact::OwnFilters;
use super::{KernelError, sysctl};
use crate::model::IfName;
use crate::plan::{LinkSysctl, Observed, device_if_settings};
use std::collections::{BTreeMap, BTreeSet};

/// Reads the state of the device itself; each list of the kernel once.
pub(super) async fn device(host: &mut Host<'_>) -> Result<Observed, KernelError> {
    let links = host.net.links().await?;
    let mut observed = Observed {
        links: links.into_iter().map(|l| (l.name.clone(), l)).collect(),
        addresses: host.net.address_infos().await?,
        default_routes: host.net.default_route_links().await?,
        reserved_ports: sysctl::read(sysctl::RESERVED_PORTS)?,
        ..Observed::default()
    };
    let bridges = observed.links.values().filter(|l| l.kind.as_deref() == Some("bridge"));
    observed.sysctls = bridges.filter_map(|bridge| bridge.name.parse().ok()).flat_map(|link| settings(&link)).collect();
    let own: BTreeSet<u32> = observed.links.values().filter(|l| l.is_device_if()).map(|l| l.index).collect();
    if !own.is_empty() {
        observed.host_routes = host.net.host_routes(&own).await?;
        let names = observed.links.values().filter(|l| own.contains(&l.index)).filter_map(|l| l.name.parse().ok());
        let settings: Vec<_> = names.flat_map(|link| device_if_settings(&link)).collect();
        observed.sysctls.extend(settings.into_iter().filter_map(read));
    }
    if let Some(plane) = host.plane.as_deref_mut() {
        observed.hooked = plane.hooked_beside()?;
        if plane.hook() == Hook::Clsact {
            for link in observed.links.values().filter(|link| !link.is_containers() && !link.loopback) {
                let filters = host.net.own_filters(&link.name, link.index).await?;
                let found = plane.hook_of(filters, link.kind.as_deref() == Some("bridge"))?;
                observed.hooked.extend(found.map(|(at, state)| ((at, link.index), state)));
            }
        }
        observed.tables = plane.tables()?;
        observed.nat_first_port = plane.nat_first_port()?;
    }
    Ok(observed)
}

/// Reads the state of containers, except their links.
pub(super) async fn containers(host: &mut Host<'_>, observed: &mut Observed) -> Result<(), KernelError> {
    let Some(plane) = host.plane.as_deref_mut() else { return Ok(()) };
    observed.interfaces = plane.interfaces().into_iter().map(|(link, info)| (link.number(), info)).collect();
    for link in observed.links.values_mut().filter(|link| is_number(link.index)) {
        link.up = observed.interfaces.contains_key(&link.index);
    }
    observed.endpoints = plane.endpoints().into_iter().collect();
    observed.hooks = match plane.hook() {
        Hook::Tcx => Some(plane.guards()?),
        // Before the take-over the filters are an earlier daemon's and guard their links. Attaching again notes them
        // for the take-over.
        Hook::Clsact if plane.is_waiting() => None,
        Hook::Clsact => {
            let mut guards = BTreeMap::new();
            for link in observed.links.values().filter(|link| link.is_containers()) {
                let filters = host.net.own_filters(&link.name, link.index).await?;
                if filters != OwnFilters::default() {
                    guards.insert(link.index, plane.guard_of(filters)?);
                }
            }
            Some(guards)
        }
    };
    Ok(())
}

/// The settings of a bridge.
fn settings(link: &IfName) -> Vec<(LinkSysctl, String)> {
    let keys = [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "accept_ra"), ("ipv6", "disable_ipv6")];
    keys.into_iter().filter_map(|(family, key)| read(LinkSysctl { family, link: link.clone(), key })).collect()
}

fn read(setting: LinkSysctl) -> Option<(LinkSysctl, String)> {
    let value = sysctl::get(setting.family, &setting.link, setting.key)?;
    Some((setting, value))
}
