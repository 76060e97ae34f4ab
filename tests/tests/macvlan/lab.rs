//! A device with a macvlan pool on the link to a LAN, a host on that LAN, and containers.

use anyhow::Result;
use harness::{Container, Device, Namespace};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The LAN's router.
pub const LAN4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const LAN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
/// The device's own address there.
pub const OWN4: &str = "10.77.0.250/24";
const OWN6: &str = "fd00:77::250/64";

/// Both addresses of the host on the LAN.
pub fn lan() -> [IpAddr; 2] {
    [LAN4.into(), LAN6.into()]
}

/// A pool on `parent`.
pub fn pool(parent: &str, mode: &str) -> Value {
    json!({
        "type": "macvlan", "parent": parent, "mode": mode,
        "subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "subnet6": "fd00:77::/64", "gateway6": "fd00:77::1",
    })
}

pub fn config(mode: &str, policies: Value) -> Value {
    json!({"network": {"pools": {"lan": pool("wan0", mode)}, "policies": policies}})
}

/// A device whose link `wan0` leads to the host `lan`.
pub struct Lab {
    pub device: Device,
    pub lan: Namespace,
}

impl Lab {
    pub fn new(mode: &str, policies: Value) -> Result<Self> {
        Self::with(&config(mode, policies))
    }

    pub fn with(config: &Value) -> Result<Self> {
        let mut device = Device::new(config)?;
        let lan = Namespace::new("lan")?;
        let (lan4, lan6) = (format!("{LAN4}/24"), format!("{LAN6}/64"));
        device.ns.connect(("wan0", &[OWN4, OWN6]), &lan, ("eth0", &[&lan4, &lan6]))?;
        device.start()?;
        Ok(Self { device, lan })
    }

    pub fn attach(&self, name: &str, ports: &[&str]) -> Result<Container> {
        self.device.attach_run(&json!({"name": name, "network": {"pool": "lan", "ports": ports}}))
    }
}
