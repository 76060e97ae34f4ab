//! How the steps follow from what is desired and what is observed. Pure: the same input gives the same plan.

use super::{Desired, Endpoint, Link, Observed, Op};
use crate::model::Mac;
use pv_net_common::Ip;
use std::collections::BTreeSet;

/// The steps that bring up `endpoint` behind `link`. The guard is there before the link is up, and the link is up before
/// others are sent to it. A link that is up without its programs is set down first.
#[must_use]
pub fn endpoint_ops(endpoint: &Endpoint, link: &Link, observed: &Observed) -> Vec<Op> {
    let (host_if, index) = (&endpoint.host_if, link.index);
    let name = || host_if.to_string();
    let is_open = link.up && observed.hooks.is_some() && !observed.is_guarded(host_if.as_str());
    let mut ops = Vec::new();
    if is_open {
        ops.push(Op::SetDown { link: name(), index });
    }
    if observed.interfaces.get(&index) != Some(&endpoint.info) {
        ops.push(Op::SetInterface { host_if: name(), index, info: Box::new(endpoint.info) });
    }
    if !observed.is_guarded(host_if.as_str()) {
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

/// The steps that stop the traffic of a container's link and keep its programs: it is down, and what comes from it or
/// goes to it all the same is dropped, as the programs know no such interface.
fn hold(link: &Link, observed: &Observed) -> Vec<Op> {
    let index = link.index;
    let mut ops = Vec::new();
    if link.up {
        ops.push(Op::SetDown { link: link.name.clone(), index });
    }
    if observed.interfaces.contains_key(&index) {
        ops.push(Op::RemoveInterface { index });
    }
    if !observed.is_guarded(&link.name)
        && let Ok(host_if) = link.name.parse()
    {
        ops.push(Op::AttachPrograms { host_if, index });
    }
    ops
}

/// An address of the `endpoints` map as packets have it: link-local ones are there with their pool's number.
const fn as_sent(addr: Ip) -> Ip {
    if addr.is_link_local() { addr.of_pool(0) } else { addr }
}

/// The steps after a container's link is gone: what the maps and pins hold for it, and the flows of its addresses.
#[must_use]
pub fn forget(host_if: &str, index: u32, addresses: &[Ip]) -> Vec<Op> {
    let mut ops: Vec<Op> = addresses.iter().map(|addr| Op::RemoveEndpoint { addr: *addr }).collect();
    ops.push(Op::RemoveInterface { index });
    ops.push(Op::DetachPrograms { host_if: host_if.to_owned() });
    ops.push(Op::EndFlows { addresses: addresses.iter().map(|addr| as_sent(*addr)).collect() });
    ops
}

/// The steps from `observed` to `desired`. A container's link that nothing is known of is held, and never loses its
/// guard. What is missing is added before what is too much is removed. A desired endpoint whose link is gone is no step:
/// only its container can bring the link back.
#[must_use]
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let is_wanted = |link: &Link| desired.endpoints.keys().any(|name| name.as_str() == link.name);
    let is_held = |link: &&Link| {
        !is_wanted(link) && (link.is_containers() || desired.held.keys().any(|name| name.as_str() == link.name))
    };
    for link in observed.links.values().filter(is_held) {
        ops.extend(hold(link, observed));
    }
    let mut addresses = BTreeSet::new();
    let mut indices = BTreeSet::new();
    for endpoint in desired.endpoints.values() {
        let Some(link) = observed.links.get(endpoint.host_if.as_str()) else { continue };
        indices.insert(link.index);
        addresses.extend(endpoint.addresses.iter().copied());
        ops.extend(endpoint_ops(endpoint, link, observed));
    }
    let stale: Vec<_> = observed.endpoints.keys().filter(|a| !addresses.contains(a)).copied().collect();
    // A flow that is known passes without a look at the interface or the address.
    let with_flows: Vec<_> = stale.iter().map(|a| as_sent(*a)).collect();
    ops.extend(stale.into_iter().map(|addr| Op::RemoveEndpoint { addr }));
    let held = |index: &u32| observed.link(*index).is_some_and(|l| is_held(&l));
    let stale = observed.interfaces.keys().filter(|i| !indices.contains(i) && !held(i));
    ops.extend(stale.map(|index| Op::RemoveInterface { index: *index }));
    let gone = |name: &&String| !observed.links.contains_key(*name);
    let stale = observed.hooks.iter().flatten().filter(gone);
    ops.extend(stale.map(|host_if| Op::DetachPrograms { host_if: host_if.clone() }));
    if !with_flows.is_empty() {
        ops.push(Op::EndFlows { addresses: with_flows });
    }
    ops
}
