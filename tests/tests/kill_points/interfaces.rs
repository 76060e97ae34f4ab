//! The daemon is killed while it adds an interface to a container that runs, and while it removes one.

use super::*;

const ADD: [&str; 6] = ["attach", "web", "--interface", "eth2", "--pool", "management"];
const REMOVE: [&str; 4] = ["detach", "web", "--interface", "eth2"];

/// Whether `web` has the third interface, completely; fails when it has a part of it. The others are whole in any case.
fn has_third(lab: &Lab) -> Result<bool> {
    ensure!(lab.is_attached()?, "web is not attached: {}", lab.device.log());
    let view = lab.device.json(&["containers", "web"])?;
    let has = view["interfaces"].as_array().context("interfaces")?.iter().any(|i| i["name"] == "eth2");
    ensure!(view["conditions"] == json!([]), "{view}");
    let inside = lab.ns.ip("-br link")?;
    ensure!(inside.contains("eth2") == has, "{view}, and inside {inside}");
    for family in ["-4", "-6"] {
        let rules = lab.ns.ip(&format!("{family} rule show"))?;
        let count = rules.lines().filter(|l| l.contains("proto 112")).count();
        // For each interface: to both pools' networks, to networks of the container's own routes, and to all else.
        ensure!(count == 4 * if has { 3 } else { 2 }, "{family}: {rules}");
    }
    Ok(has)
}

fn leases(lab: &Lab) -> Result<usize> {
    Ok(lab.device.json(&["leases"])?.as_array().context("leases")?.len())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_an_attach_of_an_interface() -> Result<()> {
    let mut lab = lab(&configs::two_pools())?;
    lab.attach().ok()?;
    let before = leases(&lab)?;
    // The new interface forges from its first moment on.
    let forger = Forger::start_on("eth2", vec![lab.ns.path()], lab.victim.mac()?)?;
    let add = |lab: &Lab| drop(lab.device.cli(&ADD));
    lab.walk("attach_interface", add, |lab| {
        has_third(lab)?;
        lab.device.cli(&ADD).ok()?;
        ensure!(has_third(lab)?, "not there after a second attach");
        lab.device.cli(&REMOVE).ok()?;
        ensure!(!has_third(lab)? && leases(lab)? == before, "left: {}", lab.device.json(&["leases"])?);
        Ok(())
    })?;
    forger.has_sent(100)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn in_a_detach_of_an_interface() -> Result<()> {
    let mut lab = lab(&configs::two_pools())?;
    lab.attach().ok()?;
    lab.device.cli(&ADD).ok()?;
    let before = leases(&lab)?;
    let remove = |lab: &Lab| drop(lab.device.cli(&REMOVE));
    lab.walk("detach_interface", remove, |lab| {
        has_third(lab)?;
        lab.device.cli(&ADD).ok()?;
        ensure!(has_third(lab)? && leases(lab)? == before, "not whole after the next attach");
        Ok(())
    })
}
