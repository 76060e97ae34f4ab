//! Kernel settings that an attach changes for a moment and restores; addresses that are usable soon after it; and a
//! container that starts again.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, SOON, configs, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The switch is off after an attach. Daemons of other tests may have it on at the moment, so the test waits for "off".
fn switch_is_off() -> Result<()> {
    eventually(SOON, || {
        ensure!(fs::read_to_string(SWITCH)?.trim() == "0", "{SWITCH} is on");
        Ok(())
    })
}

#[test]
fn grace_periods_are_normal_again() -> Result<()> {
    // The switch is the whole machine's, and a run of tests that was killed leaves it on. No daemon touches it then.
    fs::write(SWITCH, "0")?;
    let mut device = Device::started(&configs::two_pools())?;
    let marker = device.file("run").join("rcu-expedited");
    device.attach("a", "internal")?;
    ensure!(!marker.exists(), "left after an attach");
    switch_is_off()?;
    // The state after a kill in the middle of an attach.
    device.stop(Signal::SIGKILL)?;
    fs::write(&marker, [])?;
    fs::write(SWITCH, "1")?;
    device.start()?;
    ensure!(!marker.exists(), "left after a start");
    switch_is_off()
}

/// The kernel alone would keep the address tentative for a random time of up to a second.
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

/// A namespace outlives its name for some time, or for as long as a process is in it.
#[test]
fn a_container_that_starts_again_needs_no_detach() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let other = device.attach("other", "internal")?;
    let mut web = device.attach("web", "internal")?;
    for round in 0..3 {
        let addresses = web.addresses();
        let stays = Process::start(web.ns.command("sleep").arg("60"))?;
        drop(web);
        web = device.attach("web", "internal").with_context(|| format!("start {round}"))?;
        ensure!(web.addresses() == addresses, "start {round}: {:?} after {addresses:?}", web.addresses());
        for to in other.addresses() {
            web.ns.ping(to, 2).with_context(|| format!("start {round}"))?;
        }
        drop(stays);
    }
    Ok(())
}

#[test]
fn nobody_is_given_an_address_of_the_device() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let a = device.attach("a", "internal")?;
    // The addresses that come next, on any link.
    let next = |address: IpAddr| match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) + 1).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) + 1).into()),
    };
    let own = a.addresses().map(next);
    for address in own {
        device.ns.ip(&format!("addr add {address} dev lo"))?;
    }
    eventually(SOON, || {
        let b = device.attach("b", "internal")?;
        let got = b.addresses();
        device.cli(&["detach", "b"]).ok()?;
        ensure!(own.iter().all(|own| !got.contains(own)), "{got:?}");
        Ok(())
    })?;
    for (key, address) in ["ipv4_address", "ipv6_address"].into_iter().zip(own) {
        let interface = json!({"pool": "internal", key: address.to_string()});
        let run = json!({"name": "c", "network": {"interfaces": [interface]}});
        let refused = device.attach_run(&run).err().context("attached")?;
        ensure!(format!("{refused:#}").contains(&format!("{address}: taken by this device")), "{refused:#}");
    }
    // And one that comes later is said.
    let said = |part: &str| -> Result<bool> {
        Ok(device.json(&["containers", "a"])?["conditions"].to_string().contains(part))
    };
    for address in a.addresses() {
        let part = format!("{address}: the device has this address too");
        device.ns.ip(&format!("addr add {address} dev lo"))?;
        eventually(SOON, || {
            ensure!(said(&part)?, "nobody says that the device has {address}");
            Ok(())
        })?;
        device.ns.ip(&format!("addr del {address} dev lo"))?;
        eventually(SOON, || {
            ensure!(!said(&part)?, "the device is said to have {address} still");
            Ok(())
        })?;
    }
    a.ns.ping("10.0.3.1", 1)
}

/// A runtime may give the namespace of each start the same name.
#[test]
fn a_namespace_of_the_same_name_is_another_one() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let web = device.attach("web", "internal")?;
    let path = web.ns.path().display().to_string();
    let next = Namespace::new("next")?;
    let words = ["attach", "web", "--netns", &path, "--pool", "internal"];
    let before = web.ns.ip("-o link show dev eth0")?;
    device.json(&words)?;
    ensure!(web.ns.ip("-o link show dev eth0")? == before, "the same again changed something");

    let over = Command::new("mount").args(["--bind", &next.path().display().to_string(), &path]).status()?;
    ensure!(over.success(), "mount: {over}");
    let again = device.json(&words);
    let seen = next.ip("-o link show dev eth0");
    let off = Command::new("umount").arg(&path).status()?;
    ensure!(off.success(), "umount: {off}");
    again?;
    seen.context("in the namespace that has the name now")?;
    next.ping("10.0.3.1", 2)?;
    ensure!(web.ns.ip("-o link show dev eth0").is_err(), "the one before has it too");
    Ok(())
}

/// Its last process ends, or its name goes, before, while or after it is attached: one clear error at most, and nothing is
/// left.
#[test]
fn a_namespace_that_goes_while_it_is_attached() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let other = device.attach("other", "internal")?;
    let before = (device.json(&["leases"])?, device.json(&["status"])?["conditions"].clone());
    let attach = |place: [&str; 2]| -> Result<Process> {
        let mut command = device.command();
        command.args(["attach", "web", "--pool", "internal", "--auto-detach"]).args(place);
        let log = fs::File::create(device.file("said"))?;
        Process::start(command.stderr(log).stdout(std::process::Stdio::null()))
    };
    let (mut refused, mut attached) = (0, 0);
    // Later each time, until it is attached before it goes.
    for step in 0..200 {
        if step >= 10 && attached >= 2 {
            break;
        }
        let ns = Namespace::new("web")?;
        // Half of them are a process's alone.
        let process = Process::start(ns.command("sleep").arg("60"))?;
        let (pid, path) = (process.pid().to_string(), ns.path().display().to_string());
        let (mut attach, kept) = if step % 2 == 0 {
            drop(ns);
            (attach(["--pid", &pid])?, None)
        } else {
            (attach(["--netns", &path])?, Some(ns))
        };
        std::thread::sleep(Duration::from_millis(1) * step);
        drop(process);
        drop(kept);
        let status = eventually(SOON, || attach.ended()?.context("it goes on"))?;
        let said = fs::read_to_string(device.file("said"))?;
        if status.success() {
            attached += 1;
        } else {
            refused += 1;
            let is_clear = said.starts_with("error: ") && said.matches("error: ").count() == 1;
            ensure!(is_clear, "step {step}: {said}");
        }
        eventually(SOON, || {
            let links = device.ns.ip("-o link show type veth")?;
            ensure!(links.lines().count() == 1, "step {step}: {said}{links}");
            let containers = device.json(&["containers"])?;
            ensure!(!containers.to_string().contains("web"), "step {step}: {said}{containers}");
            let now = (device.json(&["leases"])?, device.json(&["status"])?["conditions"].clone());
            ensure!(now == before, "step {step}: {said}{before:?} became {now:?}");
            Ok(())
        })?;
    }
    ensure!(attached > 0 && refused > 0, "they were too early or too late: {attached} attached, {refused} refused");
    other.ns.ping("10.0.3.1", 1)
}

/// A container that deletes its only interface cannot be told from one that has ended, unless a runner knows that it runs.
#[test]
fn a_container_that_deletes_its_only_interface() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let web = device.attach("web", "internal")?;
    web.ns.ip("link del eth0")?;
    eventually(SOON, || {
        let view = device.json(&["containers", "web"])?;
        ensure!(view["state"] == "detached", "{view}");
        Ok(())
    })?;
    let path = web.ns.path().display().to_string();
    device.cli(&["attach", "web", "--pool", "internal", "--netns", &path]).ok()?;
    web.ns.ping("10.0.3.1", 1)
}
