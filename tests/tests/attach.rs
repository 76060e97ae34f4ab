//! The moments around an attach: the first packet, and what the daemon borrows from the kernel for it.

use anyhow::{Result, ensure};
use harness::{Device, SOON, configs, eventually};
use nix::sys::signal::Signal;
use std::fs;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// A queue that a worker of the kernel opens some time after "up" drops what the container sends first: an ARP request
/// that is repeated only after a second.
#[test]
fn the_containers_queue_is_open_when_it_is_attached() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    // Each time into an empty pool: its bridge begins to carry with this port.
    for round in 0..15 {
        let container = device.attach("a", "internal")?;
        let said = container.ns.ip("-o link show dev eth0")?;
        ensure!(said.contains("qdisc noqueue"), "round {round}: {said}");
        container.ns.ping("10.0.3.1", 1)?;
        device.cli(&["detach", "a"]).ok()?;
    }
    Ok(())
}

/// Other daemons may be switching it at the same time: it is off in between.
fn switch_is_off() -> Result<()> {
    eventually(SOON, || {
        ensure!(fs::read_to_string(SWITCH)?.trim() == "0", "{SWITCH} is on");
        Ok(())
    })
}

#[test]
fn grace_periods_are_normal_again() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let marker = device.file("run").join("rcu-expedited");
    device.attach("a", "internal")?;
    ensure!(!marker.exists(), "left after an attach");
    switch_is_off()?;
    // What a kill in the middle of an attach leaves.
    device.stop(Signal::SIGKILL)?;
    fs::write(&marker, [])?;
    fs::write(SWITCH, "1")?;
    device.start()?;
    ensure!(!marker.exists(), "left after a start");
    switch_is_off()
}
