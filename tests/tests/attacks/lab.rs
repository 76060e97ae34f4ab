//! The lab of most attacks: a device with an uplink and a host behind it, two containers in one pool and one in another.

use anyhow::Result;
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::{Container, Device, Namespace};
use serde_json::Value;

/// The namespaces and who is in them.
pub struct Lab {
    /// 192.0.2.1 and 2001:db8:1::1 on `up0`; pools `internal` (pvbr3) and `management` (pvbr4).
    pub device: Device,
    /// 192.0.2.9 and 2001:db8:1::9 on `eth0`.
    pub out: Namespace,
    /// In `internal`.
    pub a: Container,
    /// In `internal`.
    pub b: Container,
    /// In `management`.
    pub c: Container,
}

/// A lab whose `internal` pool is masqueraded, changed by `change` before the daemon starts.
pub fn lab(change: impl FnOnce(&mut Value)) -> Result<Lab> {
    let mut config = configs::masqueraded();
    change(&mut config);
    let mut device = Device::new(&config)?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    Ok(Lab { device, out, a, b, c })
}

impl Lab {
    /// The device's MAC on its uplink.
    pub fn uplink_mac(&self) -> Result<[u8; 6]> {
        self.device.ns.mac(UPLINK)
    }

    /// The outside host's MAC.
    pub fn out_mac(&self) -> Result<[u8; 6]> {
        self.out.mac("eth0")
    }

    /// The MAC of the bridge of `internal`.
    pub fn gateway_mac(&self) -> Result<[u8; 6]> {
        self.device.ns.mac("pvbr3")
    }
}
