//! Router advertisements to the device: forwarding for pools must not remove its default route. The kernel does that
//! when forwarding is switched on: `addrconf_fixup_forwarding` (net/ipv6/addrconf.c) calls `rt6_purge_dflt_routers`,
//! which removes the advertised routes of all links.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, HOST, UPLINK};
use harness::{Device, Namespace, Process, SOON, eventually, frame, raw::RawSocket};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::File;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

/// Sends a router advertisement (RFC 4861 section 4.2) of `prefix`, from which hosts form addresses.
fn advertise(ns: &Namespace, link: &str, prefix: Ipv6Addr) -> Result<()> {
    let mac = ns.mac(link)?;
    let router: Ipv6Addr = "fe80::5056:1".parse()?;
    let all: Ipv6Addr = "ff02::1".parse()?;
    let lifetime = 1800u16.to_be_bytes();
    let head = [134, 0, 0, 0, 64, 0, lifetime[0], lifetime[1], 0, 0, 0, 0, 0, 0, 0, 0];
    let link_layer = [&[1, 1][..], &mac].concat();
    // The prefix is on-link and autonomous; both of its lifetimes are one hour.
    let hour = 3600u32.to_be_bytes();
    let option = [&[3, 4, 64, 0xc0][..], &hour, &hour, &[0; 4], &prefix.octets()].concat();
    let mut packet = frame::icmp(router.into(), all.into(), &[&head[..], &link_layer, &option].concat());
    // Hop limit 255, as a neighbour's packet has it (RFC 4861 section 6.1.2).
    packet[7] = 255;
    RawSocket::open(ns, link)?.send(&frame::ethernet(mac, [0x33, 0x33, 0, 0, 0, 1], frame::IPV6, &packet))
}

/// Sends advertisements until the device has a default route by `link`, and an address from the prefix.
fn advertised(device: &Device, from: &Namespace, far: &str, link: &str, prefix: Ipv6Addr) -> Result<()> {
    eventually(SOON, || {
        advertise(from, far, prefix)?;
        let routes = device.ns.ip(&format!("-6 route show default proto ra dev {link}"))?;
        ensure!(routes.contains("default"), "no default route by {link}");
        let addresses = device.ns.ip(&format!("-6 addr show dev {link} dynamic"))?;
        let start = prefix.to_string();
        ensure!(addresses.contains(start.trim_end_matches(':')), "no address of {prefix} on {link}: {addresses}");
        Ok(())
    })
}

/// The output of a running `ip monitor` about routes.
struct Watch {
    said: PathBuf,
    _ip: Process,
    marks: u16,
}

impl Watch {
    fn start(device: &Device) -> Result<Self> {
        let said = device.file("routes");
        let ip = Process::start(device.ns.command("ip").args(["-6", "monitor", "route"]).stdout(File::create(&said)?))?;
        let mut watch = Self { said, _ip: ip, marks: 0 };
        // The monitor may not listen yet when the first marks come.
        eventually(SOON, || watch.until_seen(device, Duration::from_millis(200)))?;
        Ok(watch)
    }

    /// The output so far. It ends with a route that this test itself adds as a mark.
    fn until_seen(&mut self, device: &Device, patience: Duration) -> Result<String> {
        self.marks += 1;
        let route = format!("2001:db8:ffff::{:x}", self.marks);
        device.ns.ip(&format!("-6 route add blackhole {route}"))?;
        eventually(patience, || {
            let said = std::fs::read_to_string(&self.said)?;
            ensure!(said.contains(&format!("{route} ")), "{route} not seen yet: {said}");
            Ok(said)
        })
    }

    /// Fails when a default route was removed, even for a short time.
    fn kept(&mut self, device: &Device, when: &str) -> Result<()> {
        let said = self.until_seen(device, SOON)?;
        let lost: Vec<&str> = said.lines().filter(|l| l.starts_with("Deleted") && l.contains("default")).collect();
        ensure!(lost.is_empty(), "{when}: {lost:?}");
        Ok(())
    }
}

fn sysctl(device: &Device, link: &str, key: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/{key}");
    device.ns.run(|| Ok(std::fs::read_to_string(&path).context(path.clone())?.trim().to_owned()))
}

/// An uplink and a borrowed bridge have advertised default routes. These stay through the start, a reload that makes
/// another bridge, and `down`. The bridge still accepts advertisements, and gets its setting back in the end.
#[test]
fn advertised_routes_survive_forwarding() -> Result<()> {
    let mut config = configs::masqueraded();
    config["network"]["pools"]["management"]["bridge"] = json!("br-own");
    let mut device = Device::new(&config)?;
    let out = device.outside(UPLINK, &["192.0.2.1/24"], &HOST)?;
    let lan = Namespace::new("lan")?;
    device.ns.connect(("lan0", &[]), &lan, ("eth0", &[]))?;
    for line in ["link add br-own type bridge", "link set lan0 master br-own", "link set br-own up"] {
        device.ns.ip(line)?;
    }
    let prefix = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 0x10, n, 0, 0, 0, 0);
    advertised(&device, &out, "eth0", UPLINK, prefix(1))?;
    advertised(&device, &lan, "eth0", "br-own", prefix(2))?;
    let mut watch = Watch::start(&device)?;
    device.start()?;
    watch.kept(&device, "start")?;
    // A link that forwards accepts advertisements only when `accept_ra` is 2.
    advertised(&device, &lan, "eth0", "br-own", prefix(3))?;
    config["network"]["pools"]["third"] = configs::pool(5);
    device.configure(&config)?;
    device.cli(&["reload"]).ok()?;
    watch.kept(&device, "reload")?;
    ensure!(sysctl(&device, UPLINK, "accept_ra")? == "1", "the uplink's accept_ra was changed");
    device.stop(Signal::SIGTERM)?;
    device.start()?;
    device.down()?;
    watch.kept(&device, "down")?;
    for (key, value) in [("accept_ra", "1"), ("forwarding", "0")] {
        let now = sysctl(&device, "br-own", key)?;
        ensure!(now == value, "{key} of the bridge is {now} after `down`");
    }
    advertised(&device, &lan, "eth0", "br-own", prefix(4))?;
    advertised(&device, &out, "eth0", UPLINK, prefix(5))
}
