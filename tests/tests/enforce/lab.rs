//! Two pools, the device, and a host beyond an uplink, all with servers.

use anyhow::{Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::{Container, Device, Namespace, echo};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv6Addr};

/// A port on which everybody has a server.
pub const PORT: u16 = 7000;
/// Another such port; that of `a` is published.
pub const WEB: u16 = 80;
/// The port of the device at which `a`'s [`WEB`] is published.
pub const PUBLISHED: u16 = 8080;

/// The device and its neighbours. `a` and `b` are in the masqueraded pool `internal`, `c` in the routed `management`.
pub struct Lab {
    pub device: Device,
    pub outside: Namespace,
    pub a: Container,
    pub b: Container,
    pub c: Container,
}

/// The configuration with `rules`; `internal` masquerades, `management` is routed.
pub fn config(rules: Value) -> Value {
    let mut config = configs::masqueraded();
    config["network"]["pools"]["management"]["nat"] = json!(false);
    config["network"]["policies"] = rules;
    config
}

/// The same without DNS in the pools: the lab has its own servers on port 53.
fn without_dns(config: &Value) -> Value {
    let mut config = config.clone();
    for pool in config["network"]["pools"].as_object_mut().into_iter().flatten() {
        pool.1["dns"] = json!(false);
    }
    config
}

/// One address of each family, IPv4 first.
pub fn both(v4: &str, v6: &str) -> [IpAddr; 2] {
    [v4.parse().expect("an IPv4 address"), v6.parse().expect("an IPv6 address")]
}

/// The device's addresses in the pool `internal`.
pub fn gateway() -> [IpAddr; 2] {
    both("10.0.3.1", "fd00:5056:0:3::1")
}

/// The device's addresses in the pool `management`.
pub fn other_gateway() -> [IpAddr; 2] {
    both("10.0.4.1", "fd00:5056:0:4::1")
}

/// The device's addresses on its uplink.
pub fn uplink() -> [IpAddr; 2] {
    HOSTS.map(|(_, device)| device)
}

/// The addresses of the host beyond the uplink.
pub fn beyond() -> [IpAddr; 2] {
    HOSTS.map(|(host, _)| host)
}

impl Lab {
    /// The lab without servers.
    pub fn quiet(config: &Value) -> Result<Self> {
        let mut device = Device::new(&without_dns(config))?;
        let outside = device.outside("up0", &DEVICE, &HOST)?;
        for n in [3, 4] {
            outside.ip(&format!("route add 10.0.{n}.0/24 via 192.0.2.1"))?;
            outside.ip(&format!("-6 route add fd00:5056:0:{n}::/64 via 2001:db8:1::1"))?;
        }
        device.start()?;
        let publish = ["tcp", "udp"].map(|proto| format!("{PUBLISHED}:{WEB}/{proto}"));
        let a = device.attach_run(&json!({"name": "a", "network": {"pool": "internal", "ports": publish}}))?;
        let (b, c) = (device.attach("b", "internal")?, device.attach("c", "management")?);
        Ok(Self { device, outside, a, b, c })
    }

    /// The lab with servers on [`PORT`] and [`WEB`] everywhere.
    pub fn new(config: &Value) -> Result<Self> {
        let lab = Self::quiet(config)?;
        for ns in [&lab.a.ns, &lab.b.ns, &lab.c.ns, &lab.outside] {
            for port in [PORT, WEB] {
                // One socket on `::` serves both families.
                echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
            }
        }
        // A socket for each address: a datagram is answered from the address to which it was sent.
        for addr in [gateway(), other_gateway(), uplink()].concat() {
            for port in [PORT, WEB, 53] {
                echo::serve(&lab.device.ns, addr, port)?;
            }
        }
        Ok(lab)
    }

    /// Puts `rules` in force.
    pub fn set_rules(&self, rules: Value) -> Result<()> {
        self.reload(&config(rules))
    }

    /// Puts `config` in force.
    pub fn reload(&self, config: &Value) -> Result<()> {
        self.device.configure(&without_dns(config))?;
        self.device.cli(&["reload"]).ok().map(drop)
    }

    /// Whether `policy explain` says that this traffic is allowed.
    pub fn explains(&self, from: IpAddr, to: IpAddr, traffic: &str) -> Result<bool> {
        let said = self.device.json(&["policy", "explain", &from.to_string(), &to.to_string(), traffic])?;
        ensure!(said["verdict"] == "allow" || said["verdict"] == "deny", "{said}");
        Ok(said["verdict"] == "allow")
    }
}
