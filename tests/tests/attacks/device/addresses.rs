//! A device with many addresses: on a Docker host every veth has a link-local address.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::{Device, SOON, echo, eventually};
use serde_json::json;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses of each family, and as many link-local ones.
const MANY: u16 = 600;

/// The `n`th address of each family.
fn nth(n: u16) -> [IpAddr; 2] {
    let [high, low] = n.to_be_bytes();
    [Ipv4Addr::new(198, 18, high, low).into(), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, n).into()]
}

/// Gives link `many0` the addresses of `numbers`.
fn add(device: &Device, numbers: impl Iterator<Item = u16>) -> Result<()> {
    let mut batch = String::new();
    for n in numbers {
        let [v4, v6] = nth(n);
        writeln!(batch, "addr add {v4}/32 dev many0")?;
        writeln!(batch, "addr add {v6}/128 dev many0 nodad")?;
        writeln!(batch, "addr add fe80::5056:{n:x}/64 dev many0 nodad")?;
    }
    let file = device.file("batch");
    std::fs::write(&file, batch)?;
    device.ns.ip(&format!("-batch {}", file.display())).map(drop)
}

/// A published port is reached at every one of 1,800 addresses, both those from before the daemon's start and later
/// ones. The daemon does not start before it has read all of them, and follows changes afterwards.
#[test]
fn a_device_with_many_addresses_has_all_of_them() -> Result<()> {
    let mut device = Device::new(&configs::masqueraded())?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.ns.ip("link add many0 type bridge")?;
    device.ns.ip("link set many0 up")?;
    add(&device, 1..=MANY)?;
    device.start()?;
    let a = device.attach_run(&json!({"name": "a", "network": {"pool": "internal", "ports": ["8080:80"]}}))?;
    let b = device.attach("b", "internal")?;
    echo::serve(&a.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
    out.ip("route add 198.18.0.0/16 via 192.0.2.1")?;
    out.ip("route add 2001:db8:2::/64 via 2001:db8:1::1")?;
    let reached = |n: u16| {
        for addr in nth(n) {
            for from in [&out, &b.ns] {
                echo::tcp(from, SocketAddr::new(addr, 8080), b"which one").with_context(|| format!("address {n}"))?;
            }
        }
        Ok(())
    };
    reached(1)?;
    reached(MANY)?;
    add(&device, MANY + 1..=MANY + 100)?;
    eventually(SOON, || reached(MANY + 100))?;
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}
