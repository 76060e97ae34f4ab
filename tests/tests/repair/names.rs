//! A link that is renamed, or whose name another link gets, keeps its guard, and is given its name back.

use anyhow::{Result, ensure};
use harness::forger::{Forger, Victims};
use harness::{Container, Device, SOON, configs, eventually, output};
use nix::sys::signal::Signal;
use pv_net_common::names;
use std::path::PathBuf;

struct Lab {
    device: Device,
    a: Container,
    b: Container,
    pins: Vec<PathBuf>,
}

fn lab(clsact: bool) -> Result<Lab> {
    let mut device = Device::new(&configs::two_pools())?;
    device.clsact = clsact;
    device.start()?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let programs = [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER];
    let pins = programs.map(|program| device.pin_of(program, a.host_if()));
    let pins = pins.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(Lab { device, a, b, pins })
}

impl Lab {
    /// Renames the link of `a`; before kernel 6.2 a link must be down for that.
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.shell(&format!(
            "ip link set {from} name {to} || \
             {{ ip link set {from} down; ip link set {from} name {to}; ip link set {to} up; }}"
        ))
    }

    fn shell(&self, script: &str) -> Result<()> {
        output(self.device.ns.command("sh").args(["-ec", script])).map(drop)
    }

    fn has_its_name_and_guard(&self) -> Result<()> {
        eventually(SOON, || {
            let shown = self.device.ns.ip(&format!("link show {}", self.a.host_if()))?;
            ensure!(shown.contains("pv-net:") && shown.contains(",UP"), "{shown}");
            if !self.device.clsact {
                ensure!(self.pins.iter().all(|pin| pin.exists()), "a pin of {:?} is gone", self.pins);
            }
            for to in self.b.addresses() {
                self.a.ns.ping(to, 1)?;
            }
            let conditions = self.device.json(&["status"])?["conditions"].to_string();
            ensure!(conditions == "[]", "{conditions}");
            Ok(())
        })
    }

    fn is_held(&self) -> Result<()> {
        eventually(SOON, || {
            let conditions = self.device.json(&["status"])?["conditions"].to_string();
            ensure!(conditions.contains("that another link has: its traffic is stopped"), "{conditions}");
            Ok(())
        })
    }
}

fn while_the_daemon_runs(clsact: bool) -> Result<()> {
    let lab = lab(clsact)?;
    let own = lab.a.host_if().to_owned();
    let victims = Victims::listen(&lab.device, &["pvbr3"], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    for _ in 0..3 {
        lab.rename(&own, "other")?;
        lab.has_its_name_and_guard()?;
    }
    // Another link gets the name at once. It belongs to no container, and gets neither programs nor packets.
    lab.shell(&format!(
        "ip link add stranger type veth peer name stranger1
         ip link set {own} name other && ip link set stranger name {own}
         ip link set {own} up; ip link set stranger1 up"
    ))?;
    lab.is_held()?;
    lab.device.cli(&["reload"]).ok()?;
    let shown = lab.device.ns.ip(&format!("link show {own}"))?;
    ensure!(!shown.contains("master"), "{shown}");
    let other = lab.device.ns.ip("link show other")?;
    ensure!(!other.contains(",UP"), "{other}");
    lab.device.ns.ip("link set other up")?;
    eventually(SOON, || {
        let other = lab.device.ns.ip("link show other")?;
        ensure!(!other.contains(",UP"), "{other}");
        Ok(())
    })?;
    lab.device.ns.ip(&format!("link del {own}"))?;
    lab.has_its_name_and_guard()?;
    forger.has_sent(100)?;
    drop(forger);
    victims.heard_nothing()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rename_while_the_daemon_runs() -> Result<()> {
    while_the_daemon_runs(false)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rename_while_the_daemon_runs_without_tcx() -> Result<()> {
    while_the_daemon_runs(true)
}

fn while_it_is_down(clsact: bool) -> Result<()> {
    let mut lab = lab(clsact)?;
    let own = lab.a.host_if().to_owned();
    let victims = Victims::listen(&lab.device, &["pvbr3"], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    lab.device.stop(Signal::SIGKILL)?;
    lab.rename(&own, "other")?;
    lab.rename("pvbr3", "bridge")?;
    lab.device.start()?;
    lab.has_its_name_and_guard()?;
    lab.device.stop(Signal::SIGKILL)?;
    lab.rename(&own, "other")?;
    lab.device.ns.ip(&format!("link add {own} type veth peer name stranger1"))?;
    lab.device.start()?;
    lab.is_held()?;
    lab.device.ns.ip(&format!("link del {own}"))?;
    lab.has_its_name_and_guard()?;
    forger.has_sent(100)?;
    drop(forger);
    victims.heard_nothing()?;
    lab.device.down()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rename_while_it_is_down() -> Result<()> {
    while_it_is_down(false)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_rename_while_it_is_down_without_tcx() -> Result<()> {
    while_it_is_down(true)
}

/// The `ifalias` tells whose a link is. Whoever changes it stops nothing, and it is put back.
fn another_alias(clsact: bool) -> Result<()> {
    let mut lab = lab(clsact)?;
    let own = lab.a.host_if().to_owned();
    let victims = Victims::listen(&lab.device, &["pvbr3"], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    for (link, alias) in [(own.as_str(), "'my link'"), (&own, "''"), ("pvbr3", "'my bridge'"), (&own, "again")] {
        lab.shell(&format!("ip link set {link} alias {alias}"))?;
        eventually(SOON, || {
            let shown = lab.device.ns.ip(&format!("link show {link}"))?;
            ensure!(shown.contains("alias pv-net:"), "{shown}");
            Ok(())
        })?;
        lab.has_its_name_and_guard()?;
    }
    lab.device.stop(Signal::SIGKILL)?;
    lab.shell(&format!("ip link set {own} alias 'while it is down'"))?;
    lab.device.start()?;
    lab.has_its_name_and_guard()?;
    forger.has_sent(100)?;
    drop(forger);
    victims.heard_nothing()?;
    lab.device.down()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_alias_is_put_right() -> Result<()> {
    another_alias(false)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn another_alias_is_put_right_without_tcx() -> Result<()> {
    another_alias(true)
}

/// Earlier builds pinned programs under the name of the link.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pins_by_name_are_taken_over() -> Result<()> {
    let mut lab = lab(false)?;
    let victims = Victims::listen(&lab.device, &["pvbr3"], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    lab.device.stop(Signal::SIGKILL)?;
    for pin in &lab.pins {
        std::fs::rename(pin, pin.with_file_name(lab.a.host_if()))?;
    }
    lab.device.start()?;
    ensure!(lab.device.json(&["status"])?["adopted"]["links"] == 2, "not taken over");
    for pin in &lab.pins {
        ensure!(pin.exists() && !pin.with_file_name(lab.a.host_if()).exists(), "{} is not there", pin.display());
    }
    lab.has_its_name_and_guard()?;
    drop(forger);
    victims.heard_nothing()
}
