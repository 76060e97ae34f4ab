//! Multipath TCP: a program of the device that asks for it reaches published ports as with TCP.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Device, Namespace, echo};
use nix::sys::signal::Signal;
use serde_json::json;
use std::net::{IpAddr, Ipv6Addr};

/// Connects over Multipath TCP, prints what the server sends first, and checks the echo of many bytes.
const CLIENT: &str = r#"
import os, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM, 262)
s.settimeout(5)
s.connect((sys.argv[1], int(sys.argv[2])))
f = s.makefile("rwb")
first = f.readline().decode().strip()
data = os.urandom(100000)
f.write(data); f.flush()
assert f.read(len(data)) == data, "other bytes came back"
print(first)
"#;

/// The client's address as the server sees it.
fn mptcp(ns: &Namespace, at: IpAddr, port: u16) -> Result<String> {
    let args = ["-c", CLIENT, &at.to_string(), &port.to_string()];
    harness::output(ns.command("python3").args(args)).with_context(|| format!("MPTCP to {at} port {port}"))
}

#[test]
fn mptcp_of_the_device_reaches_published_ports() -> Result<()> {
    // Multipath TCP came with Linux 5.6, and a kernel may be built without it.
    if !std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        harness::skip("mptcp_of_the_device_reaches_published_ports", "a kernel without CONFIG_MPTCP");
        return Ok(());
    }
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["up0"]);
    let mut device = Device::new(&config)?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(
        &json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80/tcp", "9001-9010:901-910/tcp"]}}),
    )?;
    for port in [80, 905] {
        echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
    }
    for own in ["127.0.0.1", "192.0.2.1", "::1", "2001:db8:1::1"] {
        for port in [8080, 9005] {
            let seen = mptcp(&device.ns, own.parse()?, port)?;
            // The source is the pool's gateway: there is no translation, and so no port of the device in between.
            let gateway = if own.contains(':') { "[fd00:5056:0:3::1]:" } else { "10.0.3.1:" };
            ensure!(seen.starts_with(gateway) || seen.starts_with(own), "{own} port {port}: seen as {seen}");
        }
    }
    // From outside to published ports, and from the device to the container's own addresses.
    for (at, port) in [("192.0.2.1", 8080), ("2001:db8:1::1", 9005)] {
        mptcp(&outside, at.parse()?, port)?;
    }
    for at in web.addresses() {
        mptcp(&device.ns, at, 80)?;
    }
    device.stop(Signal::SIGTERM)
}
