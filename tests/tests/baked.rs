//! Addresses that LXC configurations of declared containers have in them are given to nobody else.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, configs};
use serde_json::json;
use std::fs;

const BAKED: &str = "lxc.net.0.type = veth\nlxc.net.0.ipv4.address = 10.0.3.2/24 10.0.3.255\n\
                     lxc.net.0.ipv6.address = fd00:5056:0:3::2/64\n";

/// A device with the declared container `old`, which LXC has in its own configuration.
fn device(config: &str) -> Result<Device> {
    let device = Device::new(&configs::two_pools())?;
    let run = json!({"#spec": "service-manifest-run@1", "name": "old", "type": "lxc", "network": {"mode": "none"}});
    for (dir, file, text) in [("containers", "run.json", run.to_string().as_str()), ("lxc", "config", config)] {
        let dir = device.file(dir).join("old");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(file), text)?;
    }
    Ok(device)
}

fn conditions(device: &Device) -> Result<String> {
    Ok(device.json(&["status"])?["conditions"].to_string())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_in_a_configuration_of_lxc_is_nobody_elses() -> Result<()> {
    let mut device = device(BAKED)?;
    device.start()?;
    // Without `old` it would have the first address of both families.
    let first = device.attach("first", "internal")?;
    ensure!(first.v4.octets()[3] == 3 && first.v6.segments()[7] == 3, "{}", first.view);
    let ns = Namespace::new("second")?;
    for (key, address) in [("--ipv4-address", "10.0.3.2"), ("--ipv6-address", "fd00:5056:0:3::2")] {
        let wanted = device.cli(&["attach", "first", "--interface", "eth1", "--pool", "internal", key, address]);
        let said = format!("{address}: taken by old@eth0");
        ensure!(wanted.code == Some(1) && wanted.stderr.contains(&said), "{wanted:?}");
    }
    // Another daemon reads it again, and a reload what has changed.
    device.stop(nix::sys::signal::Signal::SIGKILL)?;
    device.start()?;
    let words = ["attach", "first", "--interface", "eth1", "--pool", "internal", "--ipv4-address", "10.0.3.2"];
    ensure!(device.cli(&words).code == Some(1), "given after a restart");
    fs::write(device.file("lxc/old/config"), "lxc.net.0.type = veth\n")?;
    device.cli(&["reload"]).ok()?;
    let path = ns.path().display().to_string();
    device.cli(&["attach", "second", "--netns", &path, "--pool", "internal"]).ok()?;
    device
        .cli(&["attach", "second", "--interface", "eth1", "--pool", "internal", "--ipv4-address", "10.0.3.2"])
        .ok()?;
    // Somebody has it when it comes back: it is said.
    fs::write(device.file("lxc/old/config"), BAKED)?;
    device.cli(&["reload"]).ok()?;
    let said = conditions(&device)?;
    ensure!(said.contains("lxc/old/config: 10.0.3.2 is taken by second@eth1"), "{said}");
    Ok(())
}

/// A configuration that cannot be read is a condition, and concerns nobody else; one that is not there is none.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_configuration_of_lxc_that_cannot_be_read_is_said() -> Result<()> {
    let mut device = device("")?;
    let file = device.file("lxc/old/config");
    fs::remove_file(&file)?;
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).context("a pipe, whose reader would wait")?;
    device.start()?;
    let said = conditions(&device)?;
    ensure!(said.contains("lxc/old/config: is no regular file"), "{said}");
    let first = device.attach("first", "internal")?;
    ensure!(first.v4.octets()[3] == 2, "{}", first.view);
    fs::remove_file(&file)?;
    device.cli(&["reload"]).ok()?;
    let said = conditions(&device)?;
    ensure!(!said.contains("lxc"), "{said}");
    Ok(())
}
