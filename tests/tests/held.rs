//! Containers whose pool is missing or different after a restart: their traffic is stopped, and their guard stays.

use anyhow::{Context, Result, ensure};
use harness::forger::{Forger, Victims};
use harness::{Container, Device, SOON, configs, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

/// How long to listen for packets that must not come.
const WHILE: Duration = Duration::from_millis(400);

struct Lab {
    device: Device,
    a: Container,
    b: Container,
    c: Container,
}

/// `a` and `b` in `internal`, `c` in `management`; the daemon is then restarted with another configuration.
fn restarted(config: &Value, meanwhile: impl FnOnce(&Device) -> Result<()>) -> Result<Lab> {
    let mut device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    for to in b.addresses() {
        a.ns.ping(to, 1)?;
    }
    device.stop(Signal::SIGTERM)?;
    device.configure(config)?;
    meanwhile(&device)?;
    device.start()?;
    Ok(Lab { device, a, b, c })
}

fn without_internal() -> Result<Value> {
    let mut config = configs::two_pools();
    config["network"]["pools"].as_object_mut().context("pools")?.remove("internal");
    Ok(config)
}

fn conditions(device: &Device) -> Result<String> {
    Ok(device.json(&["status"])?["conditions"].to_string())
}

impl Lab {
    /// Fails when somebody hears a packet of `a`, forged or honest.
    fn nothing_of_a_is_heard(&self, links: &[&str]) -> Result<()> {
        let victims = Victims::listen(&self.device, links, &[&self.b.ns, &self.c.ns])?;
        let (echo, from_a) = (harness::Ear::link(&self.b.ns, "eth0")?, self.a.mac()?);
        let forger = Forger::start(vec![self.a.ns.path()], self.b.mac()?)?;
        for to in self.b.addresses() {
            let mut ping = self.a.ns.command("ping");
            let done = ping.args(["-n", "-q", "-c", "1", "-W", "1", &to.to_string()]).output()?;
            ensure!(!done.status.success(), "{to} answers");
        }
        std::thread::sleep(WHILE);
        drop(forger);
        victims.heard_nothing()?;
        let heard: Vec<_> = echo.heard()?.into_iter().filter(|f| f.get(6..12) == Some(&from_a[..])).collect();
        ensure!(heard.is_empty(), "b heard {heard:02x?}");
        Ok(())
    }

    fn all_is_well_again(&self) -> Result<()> {
        eventually(SOON, || {
            let said = conditions(&self.device)?;
            ensure!(!said.contains("traffic is stopped"), "{said}");
            for to in self.b.addresses() {
                self.a.ns.ping(to, 1)?;
            }
            self.a.ns.ping("10.0.3.1", 1)?;
            self.a.ns.ping("fd00:5056:0:3::1", 1)
        })
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_a_pool_that_is_not_in_the_file() -> Result<()> {
    let lab = restarted(&without_internal()?, |_| Ok(()))?;
    for name in ["a", "b"] {
        let said = conditions(&lab.device)?;
        let want = format!("container {name}: interface eth0: its traffic is stopped: pool internal is not available");
        ensure!(said.contains(&want), "no {want} in {said}");
        let view = lab.device.json(&["containers"])?.to_string();
        ensure!(view.contains("its traffic is stopped: pool internal"), "{view}");
    }
    lab.nothing_of_a_is_heard(&["pvbr3"])?;
    lab.c.ns.ping("10.0.4.1", 1)?;
    lab.c.ns.ping("fd00:5056:0:4::1", 1)?;
    // The link stays closed even if somebody sets it up.
    let link = lab.a.host_if().to_owned();
    let victims = Victims::listen(&lab.device, &["pvbr3"], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    for _ in 0..3 {
        lab.device.ns.ip(&format!("link set {link} up"))?;
        eventually(SOON, || {
            let shown = lab.device.ns.ip(&format!("link show {link}"))?;
            ensure!(!shown.contains(",UP"), "{shown}");
            Ok(())
        })?;
    }
    drop(forger);
    victims.heard_nothing()?;
    lab.device.configure(&configs::two_pools())?;
    lab.device.cli(&["reload"]).ok()?;
    lab.all_is_well_again()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_a_pool_whose_bridge_cannot_be_made() -> Result<()> {
    let lab = restarted(&configs::two_pools(), |device| {
        device.ns.ip("link del pvbr3")?;
        device.ns.ip("link add pvbr3 type veth peer name other3").map(drop)
    })?;
    let said = conditions(&lab.device)?;
    ensure!(
        said.contains("container a: interface eth0: its traffic is stopped: pool internal is not available"),
        "{said}"
    );
    ensure!(said.contains("pvbr3: exists already"), "{said}");
    lab.nothing_of_a_is_heard(&["pvbr4"])?;
    lab.c.ns.ping("10.0.4.1", 1)?;
    // When the obstacle is gone, the daemon notices by itself.
    lab.device.ns.ip("link del pvbr3")?;
    lab.all_is_well_again()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn of_a_pool_that_has_other_networks_now() -> Result<()> {
    let mut config = configs::two_pools();
    config["network"]["pools"]["internal"] = configs::pool(9);
    config["network"]["pools"]["internal"]["bridge"] = "pvbr3".into();
    let lab = restarted(&config, |_| Ok(()))?;
    let said = conditions(&lab.device)?;
    ensure!(said.contains("its traffic is stopped: pool internal has other networks than"), "{said}");
    lab.nothing_of_a_is_heard(&["pvbr3"])?;
    let ns = lab.a.ns.path().display().to_string();
    let attach = ["attach", "a", "--netns", &ns, "--pool", "internal"];
    // The container's address is not in the pool's new network.
    let refused = lab.device.cli(&attach);
    ensure!(refused.code != Some(0) && refused.stderr.contains("has other networks than"), "{refused:?}");
    lab.nothing_of_a_is_heard(&["pvbr3"])?;
    lab.device.cli(&["detach", "a"]).ok()?;
    let again = lab.device.json(&attach)?;
    ensure!(again["ipv4_address"].as_str().is_some_and(|a| a.starts_with("10.0.9.")), "{again}");
    lab.a.ns.ping("10.0.9.1", 1)?;
    lab.a.ns.ping("fd00:5056:0:9::1", 1)
}

/// A bridge, a link, its programs and its map entries are removed; the daemon restores each.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_is_taken_away_is_put_right() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let well = || -> Result<()> {
        for to in b.addresses() {
            a.ns.ping(to, 1)?;
        }
        a.ns.ping("10.0.3.1", 1)?;
        a.ns.ping("fd00:5056:0:3::1", 1)
    };
    for damage in [
        "ip addr del 10.0.3.1/24 dev pvbr3",
        "ip addr del fd00:5056:0:3::1/64 dev pvbr3",
        "ip link set pvbr3 down",
        "sysctl -qw net.ipv6.conf.pvbr3.forwarding=0",
    ] {
        device.ns.sh(damage)?;
        eventually(SOON, well).context(damage)?;
    }
    let index: u32 =
        device.ns.ip(&format!("-o link show {}", a.host_if()))?.split(':').next().context("a number")?.parse()?;
    let key: Vec<String> = index.to_ne_bytes().iter().map(|b| b.to_string()).collect();
    let map = device.pins().join("maps").join(pv_net_common::names::MAP_INTERFACES);
    device.ns.sh(&format!("bpftool map delete pinned {} key {}", map.display(), key.join(" ")))?;
    eventually(SOON, well).context("an entry of a map")?;
    let pin = device.pin_of(pv_net_common::names::PROG_FROM_CONTAINER, a.host_if())?;
    std::fs::remove_file(&pin)?;
    eventually(SOON, || {
        ensure!(pin.exists(), "the programs are not back");
        well()
    })
    .context("a pin")
}

/// A container that cannot be guarded cannot send: neither when somebody sets its link up nor after a reload.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_link_that_cannot_be_guarded_stays_closed() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let link = a.host_if().to_owned();
    let pin = device.pin_of(pv_net_common::names::PROG_FROM_CONTAINER, &link)?;
    std::fs::remove_file(&pin)?;
    // The directory makes it impossible to pin a link here.
    std::fs::create_dir(&pin)?;
    let refused = device.cli(&["reload"]);
    ensure!(refused.code != Some(0) && refused.stderr.contains("its traffic is stopped"), "{refused:?}");
    let is_closed = || -> Result<()> {
        let shown = device.ns.ip(&format!("link show {link}"))?;
        ensure!(!shown.contains(",UP"), "{shown}");
        Ok(())
    };
    let victims = Victims::listen(&device, &["pvbr3"], &[&b.ns])?;
    let forger = Forger::start(vec![a.ns.path()], b.mac()?)?;
    // The reload succeeds, since the fault is older than it.
    device.cli(&["reload"]).ok()?;
    for _ in 0..20 {
        is_closed()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(conditions(&device)?.contains("its traffic is stopped"), "no condition");
    drop(forger);
    victims.heard_nothing()?;
    device.ns.ip(&format!("link set {link} up"))?;
    eventually(SOON, is_closed)?;
    b.ns.ping("10.0.3.1", 1)?;
    b.ns.ping("fd00:5056:0:3::1", 1)?;
    std::fs::remove_dir(&pin)?;
    device.cli(&["reload"]).ok()?;
    for to in b.addresses() {
        eventually(SOON, || a.ns.ping(to, 1))?;
    }
    Ok(())
}

/// A reload that cannot be carried out changes nothing: pools, rules, and who may reach whom.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_reload_that_cannot_be_carried_out_changes_nothing() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, c) = (device.attach("a", "internal")?, device.attach("c", "management")?);
    device.ns.ip("link add pvbr5 type veth peer name other5")?;
    let (pools, before) = (device.json(&["pools"])?, harness::Snapshot::of(&device)?);
    let mut config = configs::open_pools();
    config["network"]["pools"]["third"] = configs::pool(5);
    config["network"]["pools"]["fourth"] = configs::pool(6);
    device.configure(&config)?;
    let reply = device.cli(&["reload"]);
    ensure!(reply.code == Some(1) && reply.stderr.contains("pool third: link pvbr5: exists already"), "{reply:?}");
    ensure!(!reply.stderr.contains("not put back"), "{reply:?}");
    ensure!(device.json(&["pools"])? == pools, "the pools changed");
    eventually(SOON, || {
        let changed = before.diff(&harness::Snapshot::of(&device)?);
        ensure!(changed.is_empty(), "{changed}");
        Ok(())
    })?;
    for to in c.addresses() {
        let mut ping = a.ns.command("ping");
        let done = ping.args(["-n", "-q", "-c", "1", "-W", "1", &to.to_string()]).output()?;
        ensure!(!done.status.success(), "{to} answers: the pools are open");
    }
    device.ns.ip("link del pvbr5")?;
    device.cli(&["reload"]).ok()?;
    for to in c.addresses() {
        a.ns.ping(to, 1)?;
    }
    Ok(())
}
