//! The steps that lead from the observed to the desired state of containers' links. Pure: the same input gives the same
//! plan.

use super::{Desired, Endpoint, Link, Observed, Op};
use crate::model::Mac;
use pv_net_common::Ip;
use std::collections::{BTreeMap, BTreeSet};

/// The steps that bring up `endpoint` on `link`. The programs are attached before the link is set up, and the link is
/// up before other containers are directed to it. A link that is up without its programs is set down first.
#[must_use]
pub fn endpoint_ops(endpoint: &Endpoint, link: &Link, observed: &Observed) -> Vec<Op> {
    let (host_if, index) = (&endpoint.host_if, link.index);
    let name = || host_if.to_string();
    let is_open = link.up && observed.hooks.is_some() && !observed.is_guarded(index);
    let mut ops = Vec::new();
    if is_open {
        ops.push(Op::SetDown { link: name(), index });
    }
    if observed.interfaces.get(&index) != Some(&endpoint.info) {
        ops.push(Op::SetInterface { host_if: name(), index, info: Box::new(endpoint.info) });
    }
    if !observed.is_guarded(index) {
        ops.push(Op::AttachPrograms { host_if: host_if.clone(), index });
    }
    if link.controller != Some(endpoint.bridge) {
        ops.push(Op::Enslave { host_if: host_if.clone(), index, bridge: endpoint.bridge, mac: Mac(endpoint.info.mac) });
    }
    if !link.up || is_open {
        ops.push(Op::SetUp { link: name(), index });
    }
    let info = endpoint.at(index);
    let missing = endpoint.addresses.iter().filter(|addr| observed.endpoints.get(addr) != Some(&info));
    ops.extend(missing.map(|addr| Op::SetEndpoint { addr: *addr, info }));
    ops
}

/// The steps that stop the traffic of a container's link and keep its programs. The link is set down, and its entry in
/// `interfaces` is removed, so the programs drop every packet that still comes.
fn hold(link: &Link, observed: &Observed) -> Vec<Op> {
    let index = link.index;
    let mut ops = Vec::new();
    if link.up {
        ops.push(Op::SetDown { link: link.name.clone(), index });
    }
    if observed.interfaces.contains_key(&index) {
        ops.push(Op::RemoveInterface { index });
    }
    if !observed.is_guarded(index)
        && let Ok(host_if) = link.name.parse()
    {
        ops.push(Op::AttachPrograms { host_if, index });
    }
    ops
}

/// An address of the `endpoints` map as it is in packets: the pool's number is removed from a link-local one.
const fn as_sent(addr: Ip) -> Ip {
    if addr.is_link_local() { addr.of_pool(0) } else { addr }
}

/// The steps after a container's link is gone: they remove its entries in the maps, its pins, and the flows of its
/// addresses.
#[must_use]
pub fn forget(index: u32, addresses: &[Ip]) -> Vec<Op> {
    let mut ops: Vec<Op> = addresses.iter().map(|addr| Op::RemoveEndpoint { addr: *addr }).collect();
    ops.push(Op::RemoveInterface { index });
    ops.push(Op::DetachPrograms { index });
    ops.push(Op::EndFlows { addresses: addresses.iter().map(|addr| as_sent(*addr)).collect() });
    ops
}

/// The steps from `observed` to `desired`. A container's link that is neither desired nor held is held and keeps its
/// programs. Additions come before removals. For a desired endpoint without a link there is no step, since only an
/// attach of its container can make the link.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let is_wanted = |link: &Link| desired.endpoints.keys().any(|name| name.as_str() == link.name);
    let is_held = |link: &&Link| !is_wanted(link) && link.is_containers();
    for link in observed.links.values().filter(is_held) {
        ops.extend(hold(link, observed));
    }
    let mut addresses = BTreeSet::new();
    let mut indices = BTreeSet::new();
    for endpoint in desired.endpoints.values() {
        let Some(link) = observed.host_side(endpoint.host_if.as_str()) else { continue };
        indices.insert(link.index);
        addresses.extend(endpoint.addresses.iter().copied());
        ops.extend(endpoint_ops(endpoint, link, observed));
    }
    let stale: Vec<_> = observed.endpoints.keys().filter(|a| !addresses.contains(a)).copied().collect();
    // Flows are ended with the address, since packets of known flows pass without a look at `interfaces` or
    // `endpoints`.
    let with_flows: Vec<_> = stale.iter().map(|a| as_sent(*a)).collect();
    ops.extend(stale.into_iter().map(|addr| Op::RemoveEndpoint { addr }));
    // The device's own interfaces have plans of their own.
    let held = |index: &u32| observed.link(*index).is_some_and(|l| is_held(&l) || l.is_device_if());
    let stale = observed.interfaces.keys().filter(|i| !indices.contains(i) && !held(i));
    ops.extend(stale.map(|index| Op::RemoveInterface { index: *index }));
    let there: BTreeSet<u32> = observed.links.values().map(|link| link.index).collect();
    let stale = observed.hooks.iter().flat_map(BTreeMap::keys).filter(|index| !there.contains(index));
    ops.extend(stale.map(|index| Op::DetachPrograms { index: *index }));
    if !with_flows.is_empty() {
        ops.push(Op::EndFlows { addresses: with_flows });
    }
    ops
}
