//! Containers with several interfaces: routes, replies, the guard of each, changes while they run, and errors.

mod errors;
mod guard;
mod life;
mod own;
mod routes;

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::{Container, Device, Namespace, echo};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

/// Ports of the device that lead to `eth0` and to `eth1`.
const PORTS: [u16; 2] = [8080, 8081];
/// The port on which the container listens.
const INNER: u16 = 80;
/// The device's addresses, as [`DEVICE`] has them.
const AT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// The test's container: `eth0` in `internal` with the default routes, `eth1` in `management`.
fn run() -> Value {
    json!({"name": "web", "network": {
        "interfaces": [{"name": "eth0", "pool": "internal"}, {"name": "eth1", "pool": "management"}],
        "ports": ["8080:80/tcp", "8080:80/udp", "8081:80/tcp@eth1", "8081:80/udp@eth1"],
    }})
}

/// Attaches the container once more, to the same namespace with the same `run.json`.
fn again(lab: &Lab) -> Result<()> {
    let (path, file) = (lab.web.ns.path().display().to_string(), lab.device.file("run-web.json").display().to_string());
    lab.device.cli(&["attach", "web", "--netns", &path, "--run", &file]).ok().map(drop)
}

/// A device with an uplink, and both pools.
struct Lab {
    device: Device,
    outside: Namespace,
    web: Container,
}

fn lab_of(mut config: Value, run: &Value) -> Result<Lab> {
    config["network"]["uplinks"] = json!([UPLINK]);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    let mut device = Device::new(&config)?;
    let outside = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(run)?;
    Ok(Lab { device, outside, web })
}

fn lab() -> Result<Lab> {
    lab_of(configs::two_pools(), &run())
}

/// The container as `pv-net containers NAME` shows it.
fn view(device: &Device, name: &str) -> Result<Value> {
    device.json(&["containers", name])
}

/// Both addresses of a container's interface.
fn addresses(device: &Device, name: &str, interface: &str) -> Result<[IpAddr; 2]> {
    let view = view(device, name)?;
    let all = view["interfaces"].as_array().context("interfaces")?;
    let found = all.iter().find(|i| i["name"] == interface).with_context(|| format!("{interface} in {view}"))?;
    let text = |key: &str| found[key].as_str().with_context(|| format!("{key} in {found}"));
    Ok([text("ipv4_address")?.parse()?, text("ipv6_address")?.parse()?])
}

/// Echo servers at each of a container's addresses.
fn serve(device: &Device, container: &Container, interfaces: &[&str]) -> Result<()> {
    for interface in interfaces {
        for at in addresses(device, "web", interface)? {
            echo::serve(&container.ns, at, INNER).with_context(|| format!("{at} of {interface}"))?;
        }
    }
    Ok(())
}

/// Fails unless `from` reaches the echo server at `at` over TCP and UDP, and the server sees `as_seen`.
fn reaches(from: &Namespace, at: SocketAddr, as_seen: IpAddr) -> Result<()> {
    let blob: Vec<u8> = (0..50_000u32).map(|i| (i * 7) as u8).collect();
    // The first packets take the slow path, further ones the fast path.
    for _ in 0..2 {
        let seen = echo::tcp(from, at, &blob).with_context(|| format!("TCP to {at}"))?;
        ensure!(seen.ip() == as_seen, "TCP to {at}: the server saw {seen}, not {as_seen}");
        let seen = echo::udp(from, at, &blob[..1200]).with_context(|| format!("UDP to {at}"))?;
        ensure!(seen.ip() == as_seen, "UDP to {at}: the server saw {seen}, not {as_seen}");
    }
    Ok(())
}

/// The rules and routes that pv-net made in a namespace.
fn arranged(ns: &Namespace) -> Result<String> {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        all.push_str(&ns.ip(&format!("{family} rule show"))?);
        let routes = ns.ip(&format!("{family} route show table all"))?;
        all.extend(routes.lines().filter(|l| l.contains(" table 2")).map(|l| format!("{l}\n")));
    }
    let usual = |l: &&str| !l.starts_with("0:") && !l.starts_with("32766:") && !l.starts_with("32767:");
    Ok(all.lines().filter(usual).map(|l| format!("{l}\n")).collect())
}

/// The links by which default routes go, one a family.
fn default_links(ns: &Namespace) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        for line in ns.ip(&format!("{family} route show default"))?.lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "dev");
            found.push(words.nth(1).with_context(|| line.to_owned())?.to_owned());
        }
    }
    Ok(found)
}
