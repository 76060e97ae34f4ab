//! What the daemon borrows from the kernel for an attach, and gives back.

use anyhow::{Result, ensure};
use harness::{Device, SOON, configs, eventually};
use nix::sys::signal::Signal;
use std::fs;

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
