//! Pools with netkit links, on the kernel of this machine: containers have them where it has netkit, and are refused
//! with the reason where it does not. `cargo xtask vm` makes all checks of containers on netkit links.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Snapshot, configs, echo};
use pv_net::kernel::link::knows_netkit;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

const NONE: &str = "this kernel has no netkit links";

fn config(link: &str) -> Value {
    let mut config = configs::two_pools();
    config["network"]["pools"]["internal"]["link"] = json!(link);
    config
}

fn is_known(device: &Device) -> Result<bool> {
    device.ns.run(|| Ok(knows_netkit()?))
}

/// The kind of the link of a container's first interface.
fn kind(device: &Device, container: &str) -> Result<String> {
    let view = device.json(&["containers", container])?;
    let kind = view["interfaces"][0]["link"].as_str().with_context(|| view.to_string())?;
    Ok(kind.to_owned())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_pool_has_netkit_links_or_says_why_not() -> Result<()> {
    let device = Device::started(&config("netkit"))?;
    let said = device.json(&["status"])?["conditions"].to_string();
    let ns = Namespace::new("web")?;
    let words = ["attach", "web", "--netns", &ns.path().display().to_string(), "--pool", "internal"];
    if is_known(&device)? {
        ensure!(!said.contains("netkit"), "{said}");
        device.cli(&words).ok()?;
        return ensure_kind(&device, "web", "netkit");
    }
    ensure!(said.contains(&format!("pool internal: link: {NONE}")), "{said}");
    // The other pool is not concerned.
    let _other = device.attach("other", "management")?;
    ensure_kind(&device, "other", "veth")?;
    let before = (Snapshot::of(&device)?, device.json(&["leases"])?, written(&device)?);
    let refused = device.cli(&words);
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(refused.stderr.starts_with("error: container web: ") && refused.stderr.contains(NONE), "{refused:?}");
    ensure!(refused.stderr.contains("help: set \"link\" of the pool to \"auto\""), "{refused:?}");
    let (left, leases) = (before.0.diff(&Snapshot::of(&device)?), device.json(&["leases"])?);
    ensure!(left.is_empty() && leases == before.1, "left of a refused attach: {left}, {leases}");
    let more = device.cli(&["attach", "other", "--interface", "eth1", "--pool", "internal"]);
    ensure!(more.code == Some(1) && more.stderr.contains(NONE), "{more:?}");
    ensure!(written(&device)? == before.2, "files were written for a refused attach");
    // What the help says helps.
    device.configure(&config("auto"))?;
    device.cli(&["reload"]).ok()?;
    let said = device.json(&["status"])?["conditions"].to_string();
    ensure!(!said.contains("netkit"), "{said}");
    device.cli(&words).ok()?;
    ensure_kind(&device, "web", "veth")
}

/// When each of the state's files was written.
fn written(device: &Device) -> Result<BTreeMap<PathBuf, SystemTime>> {
    let files = fs::read_dir(device.file("state"))?;
    files
        .map(|file| file.and_then(|file| Ok((file.path(), file.metadata()?.modified()?))).map_err(Into::into))
        .collect()
}

fn ensure_kind(device: &Device, container: &str, wanted: &str) -> Result<()> {
    let said = kind(device, container)?;
    ensure!(said == wanted, "{container}: {said} instead of {wanted}");
    let table = device.cli(&["containers"]).stdout;
    ensure!(table.lines().any(|line| line.starts_with(container) && line.contains(wanted)), "{table}");
    Ok(())
}

/// A container that runs keeps its link when its pool is to have another kind, over a restart of the daemon too.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_runs_keeps_its_link() -> Result<()> {
    let mut device = Device::started(&config("veth"))?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    device.configure(&config("netkit"))?;
    device.cli(&["reload"]).ok()?;
    let pools = device.json(&["pools"])?;
    let pool = pools.as_array().and_then(|all| all.iter().find(|pool| pool["name"] == "internal"));
    ensure!(pool.is_some_and(|pool| pool["link"] == "netkit"), "{pools}");
    device.stop(nix::sys::signal::Signal::SIGKILL)?;
    device.start()?;
    for address in b.addresses() {
        echo::serve(&b.ns, address, 7000)?;
        echo::tcp(&a.ns, SocketAddr::new(address, 7000), b"still here")?;
    }
    ensure_kind(&device, "a", "veth")?;
    // The same attach again is no next start.
    let words = ["attach", "a", "--netns", &a.ns.path().display().to_string(), "--pool", "internal"];
    device.cli(&words).ok()?;
    ensure_kind(&device, "a", "veth")
}

/// `check` has a note about a kernel without netkit, and `doctor` says whether it has it.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn check_and_doctor_say_what_the_kernel_has() -> Result<()> {
    let device = Device::new(&config("netkit"))?;
    let known = is_known(&device)?;
    let checked = device.cli(&["check", &device.config().display().to_string()]);
    ensure!(checked.code == Some(0), "{checked:?}");
    let note = format!("network.pools.internal.link: {NONE}");
    ensure!(checked.stdout.contains(&note) != known, "{known}: {checked:?}");
    let doctor = device.cli(&["doctor"]).stdout;
    let line = if known { "ok      netkit links" } else { "missing netkit links" };
    ensure!(doctor.lines().any(|l| l == line), "{known}: {doctor}");
    Ok(())
}
