//! Containers on the network of one of the device's links: macvlan pools.

use super::forwarding::talks;
use crate::lab::{self, Lab, attach};
use crate::{icmp, programs};
use anyhow::{Result, bail, ensure};
use harness::Namespace;
use serde_json::{Value, json};
use std::net::IpAddr;

const PARENT: &str = "lan0";
const DEVICE: [&str; 2] = ["10.78.0.250/24", "fd00:78::250/64"];
const HOST: [&str; 2] = ["10.78.0.1/24", "fd00:78::1/64"];

fn config() -> Value {
    let mut config = lab::config();
    config["network"]["pools"]["lan"] = json!({
        "type": "macvlan", "parent": PARENT, "mode": "bridge",
        "subnet": "10.78.0.0/24", "gateway": "10.78.0.1", "subnet6": "fd00:78::/64", "gateway6": "fd00:78::1",
    });
    config
}

/// Containers of such a pool reach each other, the device and the link's other hosts. A kernel without tcx has no such
/// pool: a configuration with one is refused, with the reason.
pub fn macvlan(lab: &mut Lab) -> Result<()> {
    let host = Namespace::new("lan")?;
    lab.device.ns.connect((PARENT, &DEVICE), &host, ("eth0", &HOST))?;
    let loaded = lab.reload(&config());
    let done = if lab::kernel()? >= (6, 6) { loaded.and_then(|()| works(lab, &host)) } else { refused(loaded) };
    lab.reload(&lab::config())?;
    lab::delete_link(&lab.device.ns, PARENT)?;
    done
}

fn works(lab: &Lab, host: &Namespace) -> Result<()> {
    let (x, y) = (attach(&lab.device, "x", "lan")?, attach(&lab.device, "y", "lan")?);
    programs::tell()?;
    talks(&x, &y, 7660)?;
    for (own, others) in
        [(IpAddr::from(x.v4), ["10.78.0.1", "10.78.0.250"]), (x.v6.into(), ["fd00:78::1", "fd00:78::250"])]
    {
        for other in others {
            icmp::ping(&x.ns, other.parse()?, 2)?;
        }
        icmp::ping(&lab.device.ns, own, 2)?;
        // Nothing is published, so a host of the link reaches nothing.
        icmp::silent(host, own)?;
    }
    programs::tell()?;
    for name in ["x", "y"] {
        lab.device.cli(&["detach", name]).ok()?;
    }
    let status = lab.get("/status")?;
    ensure!(status["conditions"] == json!([]), "{status}");
    Ok(())
}

fn refused(loaded: Result<()>) -> Result<()> {
    let Err(why) = loaded else { bail!("a pool without tcx") };
    let why = format!("{why:#}");
    ensure!(why.contains("macvlan pools need kernel 6.6"), "{why}");
    Ok(())
}
