//! The checks, in the order in which they run. To add one, write a function and add a line to its list.

mod attacker;
mod cards;
mod floor;
mod forwarding;
mod guard;
mod ipvlan;
mod isolation;
mod kinds;
mod lan;
mod life;
mod netkit;
mod outside;
mod policy;
mod uplinks;

use crate::console;
use crate::lab::Lab;
use anyhow::{Result, anyhow};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A check: its name, and the function that runs it.
type Check = (&'static str, fn(&mut Lab) -> Result<()>);

/// The error of a check whose subject the running kernel lacks.
#[derive(Debug)]
struct Absent;

impl std::error::Error for Absent {}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("not in this kernel")
    }
}

/// The checks of the data plane on a machine with enough memory. The last one takes everything down.
const SUITE: &[Check] = &[
    ("programs are loaded", life::programs),
    ("hook of this kernel", life::hook),
    ("gateways answer", forwarding::gateways),
    ("one pool", forwarding::same_pool),
    ("open pools, routed", forwarding::between_pools),
    ("routed bytes are as sent", forwarding::bytes),
    ("hop limit", forwarding::hop_limit),
    ("fragments", forwarding::fragments),
    ("closed pools answer", isolation::answers),
    ("forged frames", guard::forged),
    ("honest frames", guard::honest),
    ("masquerade", outside::masquerade),
    ("closed port outside", outside::closed_port),
    ("published port", outside::published),
    ("published port, from the device", outside::published_here),
    ("policy denies", policy::denies),
    ("uplinks come and go", uplinks::come_and_go),
    ("uplink: vlan", kinds::vlan),
    ("uplink: macvlan", kinds::macvlan),
    ("uplink: ipvlan l2", kinds::ipvlan_l2),
    ("uplink: ipvlan l3", kinds::ipvlan_l3),
    ("uplink: ipvlan l3s is refused", kinds::ipvlan_l3s),
    ("uplink: netkit l2", kinds::netkit_l2),
    ("uplink: netkit l3", kinds::netkit_l3),
    ("containers' links: netkit", netkit::chosen),
    ("containers on a LAN: macvlan", lan::macvlan),
    ("containers on a LAN: ipvlan", ipvlan::pool),
    ("containers on a LAN: ipvlan, attacker", ipvlan::attacker),
    ("uplink: in a VRF", kinds::vrf_port),
    ("uplink: in a VRF with a pool", kinds::vrf_pool),
    ("uplink: a VRF is refused", kinds::vrf),
    ("uplink: virtio", cards::virtio),
    ("uplink: virtio, path MTU", cards::virtio_path_mtu),
    ("uplink: virtio, filter", cards::virtio_filter),
    ("uplink: e1000e", cards::e1000e),
    ("uplink: e1000e, path MTU", cards::e1000e_path_mtu),
    ("uplink: e1000e, filter", cards::e1000e_filter),
    ("masquerade without a daemon", outside::masquerade_survives),
    ("killed daemon", life::killed),
    ("stopped daemon", life::stopped),
    ("replaced daemon", life::replaced),
    ("daemon of another layout", life::other_layout),
    ("random attacker", attacker::nobody_gets_round_it),
    ("detach and attach", life::detach),
    ("down leaves nothing", life::down),
];

/// The checks of containers, which are made once more with netkit links, in a second lab, on kernels that have these.
/// Uplinks are the same for both kinds.
const NETKIT: &[Check] = &[
    ("netkit: links", netkit::links),
    ("netkit: hook of this kernel", life::hook),
    ("netkit: gateways answer", forwarding::gateways),
    ("netkit: one pool", forwarding::same_pool),
    ("netkit: open pools, routed", forwarding::between_pools),
    ("netkit: routed bytes are as sent", forwarding::bytes),
    ("netkit: hop limit", forwarding::hop_limit),
    ("netkit: fragments", forwarding::fragments),
    ("netkit: closed pools answer", isolation::answers),
    ("netkit: forged frames", guard::forged),
    ("netkit: honest frames", guard::honest),
    ("netkit: the container's end", netkit::own_end),
    ("netkit: masquerade", outside::masquerade),
    ("netkit: closed port outside", outside::closed_port),
    ("netkit: published port", outside::published),
    ("netkit: published port, from the device", outside::published_here),
    ("netkit: policy denies", policy::denies),
    ("netkit: masquerade without a daemon", outside::masquerade_survives),
    ("netkit: killed daemon", life::killed),
    ("netkit: stopped daemon", life::stopped),
    ("netkit: daemon of another layout", life::other_layout),
    ("netkit: killed in an attach", netkit::killed_in_an_attach),
    ("netkit: random attacker", attacker::nobody_gets_round_it),
    ("netkit: detach and attach", life::detach),
    ("netkit: links to the end", netkit::links),
    ("netkit: down leaves nothing", life::down),
];

/// Those of them that take a minute or more. CI leaves them out (`brief`).
const LONG: &[&str] = &["netkit: daemon of another layout", "netkit: killed in an attach", "netkit: random attacker"];

/// The checks on a machine with 64 MiB. The rules here need one more program, the policy probe.
const FLOOR: &[Check] = &[
    ("forwards", forwarding::same_pool),
    ("masquerade", outside::masquerade),
    ("published port", outside::published),
    ("policy denies", policy::denies),
    ("rules and a filter", floor::all_on),
    ("full flow table", floor::full_table),
    ("masquerade without a daemon", outside::masquerade_survives),
    ("killed daemon", life::killed),
    ("replaced daemon", life::replaced),
    ("daemon of another layout", life::other_layout),
    ("down leaves nothing", life::down),
];

/// Runs the list that `PV_NET_GUEST` names, and gives the number of failed checks.
pub fn run() -> usize {
    let list = std::env::var("PV_NET_GUEST").unwrap_or_default();
    let (checks, prepared) = match list.as_str() {
        "memory-floor" => (FLOOR, floor::prepare()),
        _ => (SUITE, Ok(())),
    };
    let failed = match prepared {
        Ok(()) => in_a_lab("start", checks),
        Err(why) => {
            console::failed("start", &why);
            return 1;
        }
    };
    if std::ptr::eq(checks, SUITE) && kinds::has("netkit").unwrap_or_default() {
        harness::configs::use_netkit();
        let is_left_out = |name: &str| list == "brief" && LONG.contains(&name);
        let checks: Vec<Check> = NETKIT.iter().copied().filter(|(name, _)| !is_left_out(name)).collect();
        return failed + in_a_lab("netkit: start", &checks);
    }
    failed
}

/// Makes the checks in a lab of their own, and gives the number of those that failed.
fn in_a_lab(name: &str, checks: &[Check]) -> usize {
    let start = Instant::now();
    let mut lab = match guarded(Lab::start) {
        Ok(lab) => lab,
        Err(why) => {
            console::failed(name, &why);
            return 1;
        }
    };
    console::passed(name, start.elapsed());
    let failed = checks.iter().filter(|(name, check)| !one(name, *check, &mut lab)).count();
    if failed > 0 {
        for line in lab.device.log().lines().rev().take(20).collect::<Vec<_>>().into_iter().rev() {
            console::fact(&format!("daemon: {line}"));
        }
    }
    failed
}

fn one(name: &str, check: fn(&mut Lab) -> Result<()>, lab: &mut Lab) -> bool {
    let start = Instant::now();
    match guarded(|| check(lab)) {
        Ok(()) => {
            console::passed(name, start.elapsed());
            true
        }
        Err(why) if why.is::<Absent>() => {
            console::absent(name);
            true
        }
        Err(why) => {
            console::failed(name, &why);
            false
        }
    }
}

/// Runs `work` and turns a panic into an error: the machine must print a verdict in any case.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(anyhow!("it panicked")))
}
