//! Links that somebody changes: a container's link is set down, an uplink's MTU changes.

use crate::lab::lab;
use anyhow::{Context, Result, ensure};
use harness::configs::{HOSTS, UPLINK};
use harness::{Namespace, SOON, eventually};
use serde_json::json;

/// The MTU of a link.
fn mtu(ns: &Namespace, link: &str) -> Result<u32> {
    let said = ns.ip(&format!("link show {link}"))?;
    let after = said.split(" mtu ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(after.with_context(|| said.clone())?.parse()?)
}

/// The device's end of a container's link is set down, which would cut the container off until its next start. The
/// daemon sets it up again, and logs the name.
#[test]
fn a_link_that_is_set_down_comes_up_again() -> Result<()> {
    let lab = lab(|_| ())?;
    let link = lab.a.host_if();
    lab.device.ns.ip(&format!("link set {link} down"))?;
    eventually(SOON, || {
        let line = lab.device.log().lines().any(|l| l.contains(&format!("{link}: down")));
        ensure!(line, "the log does not name {link}");
        Ok(())
    })?;
    for (host, _) in HOSTS {
        eventually(SOON, || lab.a.ns.ping(host, 1)).with_context(|| format!("{host} from a container set up again"))?;
    }
    Ok(())
}

/// Pools without a configured MTU follow the uplinks in use, whether configured or found: the bridge, both ends of
/// existing links, and new links. A pool with a configured MTU keeps it.
#[test]
fn pools_follow_the_mtu_of_the_uplinks_in_use() -> Result<()> {
    for automatic in [false, true] {
        let lab = lab(|config| {
            if automatic {
                config["network"]["uplinks"] = json!([]);
            }
            config["network"]["pools"]["management"]["mtu"] = json!(1500);
        })?;
        let (a, device) = (&lab.a, &lab.device.ns);
        for wanted in [1400u32, 1492, 1500] {
            device.ip(&format!("link set {UPLINK} mtu {wanted}"))?;
            let what = format!("uplink of {wanted}, automatic: {automatic}");
            eventually(SOON, || {
                let found = [mtu(device, "pvbr3")?, mtu(device, a.host_if())?, mtu(&a.ns, "eth0")?];
                ensure!(found == [wanted; 3], "bridge, link, inside: {found:?}");
                Ok(())
            })
            .with_context(|| what.clone())?;
            let kept = [mtu(device, "pvbr4")?, mtu(device, lab.c.host_if())?, mtu(&lab.c.ns, "eth0")?];
            ensure!(kept == [1500; 3], "{what}: the other pool has {kept:?}");
            let next = lab.device.attach(&format!("next{wanted}"), "internal")?;
            ensure!(mtu(&next.ns, "eth0")? == wanted, "{what}: a new container has another MTU");
            for (host, _) in HOSTS {
                eventually(SOON, || a.ns.ping(host, 1)).with_context(|| what.clone())?;
            }
        }
    }
    Ok(())
}

/// A change of an uplink's MTU while no daemon runs is found at the next start.
#[test]
fn an_mtu_that_changed_meanwhile_is_found() -> Result<()> {
    let mut lab = lab(|config| config["network"]["uplinks"] = json!([]))?;
    lab.device.stop(nix::sys::signal::Signal::SIGTERM)?;
    lab.device.ns.ip(&format!("link set {UPLINK} mtu 1300"))?;
    lab.device.start()?;
    let found = [mtu(&lab.device.ns, "pvbr3")?, mtu(&lab.device.ns, lab.a.host_if())?, mtu(&lab.a.ns, "eth0")?];
    ensure!(found == [1300; 3], "bridge, link, inside: {found:?}");
    Ok(())
}
