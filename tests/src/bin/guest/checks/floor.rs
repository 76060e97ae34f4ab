//! A device with little memory.

use super::forwarding::talks;
use super::outside;
use crate::lab::{self, HOSTS, Lab, UPLINK};
use crate::{console, icmp, memory};
use anyhow::{Context, Result, ensure};
use harness::frame;
use harness::raw::RawSocket;
use serde_json::json;
use std::net::UdpSocket;

/// Bytes that programs can use before the daemon starts.
const LEFT: u64 = 64 * 1024 * 1024;
/// Entries of the flow table by default; each flow takes two.
const ENTRIES: u16 = 16_384;
/// More flows than the table has room for.
const FLOWS: u16 = ENTRIES / 2 + 1000;
const FIRST_PORT: u16 = 10_000;
const SERVER_PORT: u16 = 9;

/// Takes all memory but [`LEFT`].
pub fn prepare() -> Result<()> {
    memory::leave(LEFT)?;
    console::fact(&format!("{} KiB available before the daemon starts", memory::available()? / 1024));
    Ok(())
}

/// Puts rules and a filter before the stack in force, in addition to what is configured; they stay for the next checks.
pub fn all_on(lab: &mut Lab) -> Result<()> {
    let mut config = lab::config();
    let rule = |n: u32| {
        json!({"from": {"container": "a"}, "to": {"cidr": format!("198.51.100.{n}/32")}, "ports": [format!("tcp/{n}")],
            "action": "deny"})
    };
    config["network"]["policies"] = (1..=100).map(rule).collect();
    config["network"]["uplink_filter"] = json!({
        "deny": ["203.0.113.0/24", "2001:db8:bad::/48"], "xdp": "generic",
        "rate_limit": {"packets_per_second": 100_000, "burst": 100_000},
    });
    lab.reload(&config)?;
    let uplinks = &lab.get("/status")?["uplinks"];
    ensure!(*uplinks == json!([{"name": UPLINK, "xdp": "generic"}]), "{uplinks}");
    let asked = lab.get("/policy/verdict?from=a&to=198.51.100.7&proto=tcp&port=7")?;
    ensure!(asked["verdict"] == "deny", "{asked}");
    console::fact(&format!("with rules and a filter: {} KiB available", memory::available()? / 1024));
    let grown = lab.counted(|| outside::hidden_from(&lab.outside, HOSTS, &lab.a, 7440))?;
    ensure!(grown["fast-path"] > 20, "{grown:?}");
    Ok(())
}

/// Fills the flow table completely by flows with a packet in each direction. The overflow is counted, the daemon goes
/// on, and new flows still pass.
pub fn full_table(lab: &mut Lab) -> Result<()> {
    let (out, back) = (RawSocket::open(&lab.a.ns, "eth0")?, RawSocket::open(&lab.b.ns, "eth0")?);
    let (a, b) = ((lab.a.v4, lab.a.mac()?), (lab.b.v4, lab.b.mac()?));
    // A socket that receives the datagrams: without it the kernel would answer them by ICMP errors.
    let _server = lab.b.ns.run(|| Ok(UdpSocket::bind((lab.b.v4, SERVER_PORT))?))?;
    let grown = lab.counted(|| {
        for port in FIRST_PORT..FIRST_PORT + FLOWS {
            let (client, server) = ((a.0.into(), port), (b.0.into(), SERVER_PORT));
            out.send(&frame::ethernet(a.1, b.1, frame::IPV4, &frame::udp(client, server, b"there")))?;
            back.send(&frame::ethernet(b.1, a.1, frame::IPV4, &frame::udp(server, client, b"back")))?;
        }
        Ok(())
    })?;
    ensure!(grown["flow-table-full"] > 0, "it was not filled: {grown:?}");
    ensure!(grown["flows-created"] + 100 > u64::from(ENTRIES) / 2, "too few flows fit: {grown:?}");
    console::fact(&format!("{} flows entered, {} KiB available", grown["flows-created"], memory::available()? / 1024));

    talks(&lab.a, &lab.b, 7300)?;
    talks(&lab.d, &lab.e, 7300)?;
    icmp::ping(&lab.a.ns, "10.0.3.1".parse()?, 3)?;
    let listed = lab.count("/flows", "\"sport\":")?;
    ensure!(listed + 200 > usize::from(ENTRIES), "only {listed} entries are listed");
    let daemon = lab.device.daemon()?.pid();
    ensure!(lab.get("/status")?["pid"] == daemon, "the daemon was ended");
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status"))?;
    let largest = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("VmHWM of the daemon")?;
    console::fact(&format!("daemon at its largest: {}, {} KiB available", largest.trim(), memory::available()? / 1024));
    Ok(())
}
