//! Ipvlan pools where they cannot be, and what is refused on every kernel. Containers in such pools are checked in emulated
//! machines (`cargo xtask vm`), whose kernels have ipvlan.

use anyhow::{Result, ensure};
use harness::{Device, Namespace, configs, skip};
use serde_json::{Value, json};

fn config(mode: &str) -> Value {
    let mut config = configs::two_pools();
    config["network"]["pools"]["lan"] = json!({
        "type": "ipvlan", "parent": "wan0", "mode": mode, "subnet": "10.79.0.0/24", "gateway": "10.79.0.1",
    });
    config
}

/// A device whose link `wan0` is the parent of such a pool.
fn started(mode: &str) -> Result<(Device, Namespace)> {
    let mut device = Device::new(&config(mode))?;
    let lan = device.outside("wan0", &["10.79.0.250/24"], &["10.79.0.1/24"])?;
    device.start()?;
    Ok((device, lan))
}

/// The pool says why it is not available, and other pools work.
fn is_refused(device: &Device, why: &str) -> Result<()> {
    let status = device.json(&["status"])?;
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    ensure!(conditions.len() == 1 && conditions[0].as_str().is_some_and(|c| c.contains(why)), "{conditions:?}");
    let ns = Namespace::new("web")?;
    let reply = device.cli(&["attach", "web", "--netns", &ns.path().to_string_lossy(), "--pool", "lan"]);
    ensure!(reply.stderr.contains(why), "{}", reply.stderr);
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    a.ns.ping(b.v4, 1)?;
    device.cli(&["detach", "a"]).ok()?;
    device.cli(&["detach", "b"]).ok()?;
    ensure!(device.json(&["containers"])? == json!([]), "something is left of it");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_kernel_without_ipvlan_is_a_condition_of_the_pool_alone() -> Result<()> {
    const NAME: &str = "a_kernel_without_ipvlan_is_a_condition_of_the_pool_alone";
    let (device, _lan) = started("l2")?;
    if device.ns.ip("link add link wan0 name probe type ipvlan mode l2").is_ok() {
        skip(NAME, "the kernel has ipvlan");
        return Ok(());
    }
    is_refused(&device, "this kernel has no ipvlan")?;
    // A configuration with such a pool is refused by a reload, and the former one stays.
    device.configure(&configs::two_pools())?;
    device.cli(&["reload"]).ok()?;
    device.configure(&config("l2"))?;
    let reply = device.cli(&["reload"]);
    ensure!(reply.stderr.contains("this kernel has no ipvlan"), "{}", reply.stderr);
    ensure!(device.json(&["status"])?["conditions"] == json!([]), "the reload is not taken back");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn other_modes_are_refused() -> Result<()> {
    for (mode, why) in [("l3", "mode l3 is not supported"), ("l3s", "mode l3s is not supported")] {
        let (device, _lan) = started(mode)?;
        is_refused(&device, why)?;
    }
    Ok(())
}
