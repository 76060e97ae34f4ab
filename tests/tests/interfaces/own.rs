//! What a container does to its interfaces by itself.

use super::*;
use harness::{SOON, eventually};
use nix::sys::signal::Signal;

const REMOVE: [&str; 4] = ["detach", "web", "--interface", "eth1"];

#[test]
fn a_container_that_deletes_or_renames_its_interface() -> Result<()> {
    let lab = lab()?;
    let peer = lab.device.attach("b", "management")?;
    let before = life::interfaces(&view(&lab.device, "web")?);
    let [v4, v6] = addresses(&lab.device, "web", "eth1")?;

    lab.web.ns.ip("link del eth1")?;
    eventually(SOON, || {
        let shown = view(&lab.device, "web")?;
        let conditions = shown["conditions"].as_array().context("conditions")?;
        let [condition] = conditions.as_slice() else { anyhow::bail!("not one condition: {shown}") };
        let text = condition.as_str().unwrap_or_default();
        ensure!(text.contains("eth1: its link is gone") && text.contains("detach web --interface eth1"), "{text}");
        Ok(())
    })?;
    lab.web.ns.ping("10.0.3.1", 1)?;
    again(&lab)?;
    let shown = view(&lab.device, "web")?;
    ensure!(shown["conditions"] == json!([]) && names(&shown) == ["eth0", "eth1"], "{shown}");
    peer.ns.ping(v4, 1)?;

    lab.web.ns.ip("link set eth1 name other")?;
    peer.ns.ping(v6, 1)?;
    // Another interface can be added and removed meanwhile; the renamed one keeps its rules.
    lab.device.cli(&["attach", "web", "--interface", "eth2", "--pool", "internal"]).ok()?;
    lab.device.cli(&["detach", "web", "--interface", "eth2"]).ok()?;
    peer.ns.ping(v6, 1)?;
    let renamed = lab.web.ns.ip("-br addr show other")?;
    again(&lab)?;
    // The name is the container's choice, and the link is the same.
    ensure!(lab.web.ns.ip("-br addr show other")? == renamed, "{renamed}: {}", lab.web.ns.ip("-br addr")?);
    peer.ns.ping(v4, 1)?;
    let now = life::interfaces(&view(&lab.device, "web")?);
    ensure!(now == before, "{before:?} became {now:?}");

    lab.web.ns.ip("link del other")?;
    eventually(SOON, || {
        ensure!(view(&lab.device, "web")?["conditions"] != json!([]), "no condition");
        Ok(())
    })?;
    lab.device.cli(&REMOVE).ok()?;
    let shown = view(&lab.device, "web")?;
    ensure!(about_links(&shown) == 0 && shown["state"] == "attached" && names(&shown) == ["eth0"], "{shown}");
    ensure!(arranged(&lab.web.ns)?.is_empty(), "left: {}", arranged(&lab.web.ns)?);
    Ok(())
}

/// How many conditions are about links that are gone.
fn about_links(view: &Value) -> usize {
    view["conditions"].as_array().into_iter().flatten().filter(|c| c.to_string().contains("its link is gone")).count()
}

fn names(view: &Value) -> Vec<&str> {
    view["interfaces"].as_array().into_iter().flatten().filter_map(|i| i["name"].as_str()).collect()
}

/// The interfaces that the container has.
fn inside(lab: &Lab) -> Result<Vec<String>> {
    let shown = lab.web.ns.ip("-br link")?;
    let names = shown.lines().filter_map(|l| l.split(['@', ' ']).next()).filter(|name| name.starts_with("eth"));
    Ok(names.map(str::to_owned).collect())
}

/// It deletes the interface with the default route: the next one gets it.
#[test]
fn the_default_route_leaves_an_interface_that_is_gone() -> Result<()> {
    let mut lab = lab()?;
    let has = |lab: &Lab, name: &str| {
        eventually(SOON, || {
            ensure!(default_links(&lab.web.ns)? == [name, name], "{:?}", default_links(&lab.web.ns)?);
            Ok(())
        })?;
        let shown = view(&lab.device, "web")?;
        for interface in shown["interfaces"].as_array().context("interfaces")? {
            ensure!(interface["default_route"] == (interface["name"] == name), "{name}: {shown}");
        }
        anyhow::Ok(())
    };
    lab.web.ns.ip("link del eth0")?;
    has(&lab, "eth1")?;
    again(&lab)?;
    has(&lab, "eth0")?;
    // The same when no daemon sees it.
    lab.device.stop(Signal::SIGTERM)?;
    lab.web.ns.ip("link del eth0")?;
    lab.device.start()?;
    has(&lab, "eth1")
}

/// It has deleted an interface: a start of the daemon is no reason to make it again, and nor is another interface.
#[test]
fn an_interface_that_was_deleted_stays_so() -> Result<()> {
    let mut lab = lab()?;
    lab.web.ns.ip("link del eth1")?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lab.device.stop(signal)?;
        lab.device.start()?;
        ensure!(inside(&lab)? == ["eth0"], "{signal}: {:?}", inside(&lab)?);
        ensure!(about_links(&view(&lab.device, "web")?) == 1, "{}", view(&lab.device, "web")?);
    }
    let third = ["attach", "web", "--interface", "eth2", "--pool", "management"];
    for _ in 0..2 {
        lab.device.cli(&third).ok()?;
        ensure!(inside(&lab)? == ["eth0", "eth2"], "{:?}", inside(&lab)?);
    }
    again(&lab)?;
    let mut all = inside(&lab)?;
    all.sort();
    ensure!(all == ["eth0", "eth1", "eth2"], "{all:?}");
    Ok(())
}

/// It has set an interface down, or given it to another namespace: the others can be changed all the same.
#[test]
fn an_interface_that_cannot_be_used_stops_no_other() -> Result<()> {
    let lab = lab()?;
    let other = Namespace::new("other")?;
    for spoil in ["link set eth1 down".to_owned(), format!("link set eth1 netns {}", other.name())] {
        lab.web.ns.ip(&spoil)?;
        lab.device
            .cli(&["attach", "web", "--interface", "eth2", "--pool", "management"])
            .ok()
            .context(spoil.clone())?;
        lab.web.ns.ip("-6 route get fd00:5056:0:3::77")?;
        ensure!(default_links(&lab.web.ns)? == ["eth0", "eth0"], "{:?}", default_links(&lab.web.ns)?);
        lab.web.ns.ping("10.0.3.1", 1)?;
        lab.device.cli(&["detach", "web", "--interface", "eth2"]).ok().context(spoil)?;
    }
    Ok(())
}
