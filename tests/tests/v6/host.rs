//! A device, and a host on a port of its pool's bridge that is none of pv-net's.

use anyhow::{Context, Result, bail, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Device, Namespace, SOON, eventually};
use serde_json::{Value, json};
use std::net::Ipv6Addr;

/// The pool's network and its gateway.
pub const PREFIX: &str = "fd00:5056:0:3:";
pub const GATEWAY: &str = "fd00:5056:0:3::1";

/// A device with an uplink, whose pool `internal` advertises.
pub struct Lab {
    pub device: Device,
    _outside: Namespace,
}

/// The configuration of [`Lab`], with these advertisements.
pub fn config(ra: Value) -> Value {
    let mut config = configs::masqueraded();
    config["network"]["pools"]["internal"]["ra"] = ra;
    config
}

impl Lab {
    pub fn new(config: &Value) -> Result<Self> {
        let mut device = Device::new(config)?;
        let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
        device.start()?;
        Ok(Self { device, _outside: outside })
    }

    /// Writes the configuration anew, and has it followed.
    pub fn reload(&self, config: &Value) -> Result<()> {
        self.device.configure(config)?;
        self.device.cli(&["reload"]).ok().map(drop)
    }

    /// A host with `eth0` on `pvbr3`, that listens to routers as `accept_ra` says.
    pub fn host(&self, name: &str, accept_ra: &str) -> Result<Namespace> {
        let host = Namespace::new(name)?;
        let sysctl = |key: &str, value: &str| {
            host.run(|| Ok(std::fs::write(format!("/proc/sys/net/ipv6/conf/{key}"), value)?)).context(key.to_owned())
        };
        sysctl("default/accept_ra", accept_ra)?;
        sysctl("default/router_solicitation_delay", "0")?;
        // Nobody waits for its word that an address is free.
        sysctl("default/accept_dad", "0")?;
        let link = format!("l-{name}");
        self.device.ns.ip(&format!("link add {link} type veth peer name eth0 netns {}", host.name()))?;
        // The bridge has it before anything is sent.
        self.device.ns.ip(&format!("link set {link} master pvbr3 up"))?;
        host.ip("link set eth0 up")?;
        Ok(host)
    }

    /// The bridge's link-local address.
    pub fn router(&self) -> Result<Ipv6Addr> {
        eventually(SOON, || {
            let said = self.device.ns.ip("-6 -o addr show dev pvbr3 scope link -tentative")?;
            let found = said.split_whitespace().nth(3).and_then(|a| a.split('/').next());
            Ok(found.context("no link-local address")?.parse()?)
        })
    }

    pub fn metric(&self, line: &str) -> Result<u64> {
        let said = self.metrics()?;
        let found = said.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        Ok(found.unwrap_or_default())
    }

    pub fn metrics(&self) -> Result<String> {
        let socket = self.device.file("run").join("api.sock");
        let answer = harness::unix_http::ask(&socket, "GET", "/metrics", "")?;
        Ok(answer)
    }
}

/// Waits until the host has an address in the pool's network, and gives it.
pub fn address(host: &Namespace) -> Result<Ipv6Addr> {
    eventually(SOON, || {
        let said = host.ip("-6 -o addr show dev eth0 scope global -tentative")?;
        let found = said.split_whitespace().find(|word| word.starts_with(PREFIX));
        Ok(found.and_then(|a| a.split('/').next()).with_context(|| format!("no address in {said:?}"))?.parse()?)
    })
}

/// Waits until the host's way out is `router`, or none.
pub fn way_out(host: &Namespace, router: Option<Ipv6Addr>) -> Result<()> {
    eventually(SOON, || {
        let said = host.ip("-6 route show default")?;
        match router {
            Some(router) => ensure!(said.contains(&format!("via {router}")), "{said:?}"),
            None if said.is_empty() => {}
            None => bail!("{said:?}"),
        }
        Ok(())
    })
}

/// What `rdisc6` says of the first advertisement that it hears.
pub fn rdisc6(host: &Namespace) -> Result<String> {
    host.settle()?;
    harness::output(host.command("rdisc6").args(["-1", "-w", "5000", "eth0"]))
}

/// `ra` of the configuration, by mode.
pub fn mode(mode: &str) -> Value {
    json!({"mode": mode})
}
