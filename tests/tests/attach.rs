//! What the daemon borrows from the kernel for an attach, and gives back; and the addresses after it.

use anyhow::{Result, ensure};
use harness::{Device, SOON, configs, eventually};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

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

/// Left to the kernel it would be tentative for up to a second, at random.
#[test]
fn a_link_local_address_can_be_used_soon() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    for number in 0..5 {
        let container = device.attach(&format!("a{number}"), "internal")?;
        std::thread::sleep(Duration::from_millis(100));
        let addresses = container.ns.ip("-6 addr show dev eth0")?;
        ensure!(addresses.contains("inet6 fe80::") && !addresses.contains("tentative"), "{addresses}");
    }
    Ok(())
}
