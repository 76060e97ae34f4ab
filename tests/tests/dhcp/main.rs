//! Clients of DHCP on a pool's bridge: the programs that devices really run, and such as mean no good.

mod clients;
mod conflict;
mod networkd;
mod raw;
mod refused;

use anyhow::{Context, Result, ensure};
use harness::configs::pool;
use harness::{Device, Namespace, SOON, eventually};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// The pool's gateway, which is the server.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
/// First and last address for clients.
const RANGE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 3, 100), Ipv4Addr::new(10, 0, 3, 119)];

/// One pool, `internal`, with these settings of DHCP beside the range.
fn config(settings: Value) -> Value {
    let mut dhcp = json!({"range": RANGE, "leases_per_port": 16});
    for (key, value) in settings.as_object().into_iter().flatten() {
        dhcp[key] = value.clone();
    }
    let mut internal = pool(3);
    internal["dhcp"] = dhcp;
    json!({"network": {"pools": {"internal": internal}}})
}

/// Somebody on the pool's bridge whom pv-net did not attach: a machine behind a port of it.
struct Stranger {
    ns: Namespace,
    /// The link inside; no two have one of the same name, as programs keep files by it.
    link: String,
    mac: [u8; 6],
}

impl Stranger {
    fn new(device: &Device, name: &str) -> Result<Self> {
        let (ns, port) = (Namespace::new(name)?, format!("p-{name}"));
        let link = format!("d{}-{name}", std::process::id() % 100_000);
        device.ns.connect((&port, &[]), &ns, (&link, &[]))?;
        device.ns.ip(&format!("link set {port} master pvbr3"))?;
        let mac = ns.mac(&link)?;
        Ok(Self { ns, link, mac })
    }

    fn mac_text(&self) -> String {
        self.mac.map(|octet| format!("{octet:02x}")).join(":")
    }
}

/// What `pv-net leases` has of a client with this MAC.
fn lease_of(device: &Device, mac: &str) -> Result<Value> {
    let leases = device.json(&["leases"])?;
    let mut found = leases.as_array().into_iter().flatten().filter(|lease| lease["mac_address"] == *mac);
    let lease = found.next().with_context(|| format!("no lease of {mac} in {leases}"))?;
    ensure!(found.next().is_none(), "two leases of {mac} in {leases}");
    Ok(lease.clone())
}

/// A number of `pv-net`'s metrics.
fn metric(device: &Device, line: &str) -> Result<u64> {
    let text = harness::unix_http::ask(&device.file("run").join("api.sock"), "GET", "/metrics", "")?;
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.with_context(|| format!("no {line} in {text}"))?.trim().parse().context("a number")
}

fn is_in_range(address: Ipv4Addr) -> bool {
    (RANGE[0]..=RANGE[1]).contains(&address)
}

/// The clients' leases in `pv-net leases`.
fn leases_of_clients(device: &Device) -> Result<Vec<Value>> {
    let leases = device.json(&["leases"])?;
    Ok(leases.as_array().context("a list")?.iter().filter(|lease| lease["container"].is_null()).cloned().collect())
}

/// Waits until `status` has, or has no more, a condition with this text.
fn condition(device: &Device, text: &str, wanted: bool) -> Result<()> {
    eventually(SOON, || {
        let status = device.json(&["status"])?;
        ensure!(status["conditions"].to_string().contains(text) == wanted, "{text:?}: {}", status["conditions"]);
        Ok(())
    })
}
