//! The filter of the uplinks: which real packets XDP drops, and which it leaves alone.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE};
use harness::raw::RawSocket;
use harness::{Device, Namespace, Process, SOON, Snapshot, echo, eventually, frame};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

const PORT: u16 = 7000;
/// The host's addresses; the second one of each family is denied.
const HOST: [&str; 4] = ["192.0.2.9/24", "192.0.2.66/24", "2001:db8:1::9/64", "2001:db8:1::66/64"];
const FAMILIES: [(&str, &str, &str); 2] =
    [("192.0.2.9", "192.0.2.66", "192.0.2.1"), ("2001:db8:1::9", "2001:db8:1::66", "2001:db8:1::1")];
const REASONS: [&str; 3] = ["deny-listed", "spoofed-pool", "rate-limited"];

fn config(filter: &Value) -> Value {
    let mut config = configs::masqueraded();
    config["network"]["uplink_filter"] = filter.clone();
    config
}

fn deny() -> Value {
    json!({"deny": ["192.0.2.64/28", "2001:db8:1::60/124", "203.0.113.7"]})
}

struct Lab {
    device: Device,
    outside: Namespace,
}

fn lab(config: &Value) -> Result<Lab> {
    let mut device = Device::new(config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    // IPv6 addresses are not used before duplicate address detection has finished.
    device.ns.settle()?;
    outside.settle()?;
    device.start()?;
    Ok(Lab { device, outside })
}

impl Lab {
    fn xdp(&self) -> Result<String> {
        let status = self.device.json(&["status"])?;
        let uplink = status["uplinks"].as_array().and_then(|all| all.iter().find(|u| u["name"] == "up0"));
        let uplink = uplink.with_context(|| format!("up0 in {status}"))?;
        Ok(uplink["xdp"].as_str().unwrap_or_default().to_owned())
    }

    fn reload(&self, config: &Value) -> Result<()> {
        self.device.configure(config)?;
        self.device.cli(&["reload"]).ok().map(drop)
    }

    /// Whether the device answers a ping from `src`.
    fn answers(&self, src: &str, device: &str) -> Result<bool> {
        let said = self.outside.command("ping").args(["-n", "-c2", "-i0.05", "-W1", "-I", src, device]).output()?;
        Ok(said.status.success())
    }

    /// Sends frames from outside to the device.
    fn send(&self, frames: impl IntoIterator<Item = (u16, Vec<u8>)>) -> Result<()> {
        let socket = RawSocket::open(&self.outside, "eth0")?;
        let (here, there) = (self.outside.mac("eth0")?, self.device.ns.mac("up0")?);
        for (kind, packet) in frames {
            socket.send(&frame::ethernet(here, there, kind, &packet))?;
        }
        Ok(())
    }
}

fn datagram(src: &str, sport: u16, dst: &str, dport: u16) -> Result<(u16, Vec<u8>)> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse()?, dst.parse()?);
    let kind = if src.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
    Ok((kind, frame::udp((src, sport), (dst, dport), b"pv")))
}

/// Fails unless the counters of the filter grew by these, in the order of [`REASONS`].
fn filtered(grown: &BTreeMap<String, u64>, want: [u64; 3]) -> Result<()> {
    let got = REASONS.map(|r| grown.get(r).copied().unwrap_or_default());
    ensure!(got == want, "{REASONS:?}: {got:?}, not {want:?}");
    Ok(())
}

#[test]
fn denied_sources_are_dropped_and_nobody_else() -> Result<()> {
    let lab = lab(&config(&deny()))?;
    echo::serve(&lab.outside, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    for mode in ["native", "generic"] {
        ensure!(lab.xdp()? == mode, "not {mode}: {}", lab.xdp()?);
        for (good, bad, device) in FAMILIES {
            let grown = lab.device.counted(|| {
                ensure!(lab.answers(good, device)?, "{mode}: {good} is not answered");
                Ok(())
            })?;
            filtered(&grown, [0, 0, 0])?;
            let grown = lab.device.counted(|| {
                ensure!(!lab.answers(bad, device)?, "{mode}: {bad} is answered");
                Ok(())
            })?;
            // IPv6 may add neighbour solicitations of the denied address.
            let dropped = grown["deny-listed"];
            ensure!(dropped >= 2 && (dropped == 2 || device.contains(':')), "{mode}: {bad}: {dropped} dropped");
        }
        // Large segments pass the filter complete.
        let blob: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 11) >> 3) as u8).collect();
        for (good, _, _) in FAMILIES {
            echo::tcp(&lab.device.ns, SocketAddr::new(good.parse()?, PORT), &blob)?;
        }
        let mut generic = deny();
        generic["xdp"] = json!("generic");
        lab.reload(&config(&generic))?;
    }
    Ok(())
}

#[test]
fn a_reload_changes_the_filter_at_once() -> Result<()> {
    let mut none = config(&json!({}));
    none["network"].as_object_mut().context("an object")?.remove("uplink_filter");
    let lab = lab(&none)?;
    let (good, bad, device) = FAMILIES[0];
    ensure!(lab.xdp()? == "off", "on without being asked for");
    ensure!(lab.answers(bad, device)?, "no filter, and dropped");
    let at_work = || lab.device.ns.sh("bpftool net show dev up0").map(|said| xdp_part(&said).contains("up0"));
    ensure!(!at_work()?, "a program without being asked for");
    lab.reload(&config(&deny()))?;
    ensure!(lab.xdp()? == "native" && at_work()?, "not on");
    ensure!(!lab.answers(bad, device)? && lab.answers(good, device)?, "the list is not in force");
    lab.reload(&config(&json!({"deny": ["192.0.2.9"]})))?;
    ensure!(lab.answers(bad, device)? && !lab.answers(good, device)?, "the new list is not in force");
    // A prefix of IPv6 that contains every address contains no IPv4 address.
    lab.reload(&config(&json!({"deny": ["::/0"]})))?;
    ensure!(lab.answers(good, device)?, "::/0 holds 192.0.2.9");
    ensure!(!lab.answers(FAMILIES[1].0, FAMILIES[1].2)?, "::/0 does not hold {}", FAMILIES[1].0);
    lab.reload(&config(&json!({"deny": ["192.0.2.9"], "xdp": "off"})))?;
    ensure!(lab.xdp()? == "off" && lab.answers(good, device)?, "not off");
    eventually(SOON, || {
        ensure!(!at_work()?, "the program stays");
        Ok(())
    })
}

/// The part of `bpftool net`'s output about XDP.
fn xdp_part(said: &str) -> &str {
    said.split("tc:").next().unwrap_or_default()
}

#[test]
fn sources_of_pools_do_not_come_from_outside() -> Result<()> {
    let lab = lab(&config(&json!({})))?;
    let a = lab.device.attach("a", "internal")?;
    let pools = ["10.0.3.77", "10.0.4.200", "fd00:5056:0:3::77", "fd00:5056:0:4::9"];
    for src in pools {
        let device = if src.contains(':') { FAMILIES[1].2 } else { FAMILIES[0].2 };
        let frames = (0..7).map(|n| datagram(src, 4000 + n, device, 9)).collect::<Result<Vec<_>>>()?;
        let grown = lab.device.counted(|| lab.send(frames))?;
        filtered(&grown, [0, 7, 0])?;
    }
    // The same addresses work inside their pools, and answers from outside come in.
    for (host, _, _) in FAMILIES {
        let grown = lab.device.counted(|| a.ns.ping(host, 5))?;
        filtered(&grown, [0, 0, 0])?;
    }
    // An address next to a pool's network may be a source.
    let grown = lab.device.counted(|| lab.send([datagram("10.0.5.1", 1, FAMILIES[0].2, 9)?]))?;
    filtered(&grown, [0, 0, 0])
}

#[test]
fn a_source_above_its_rate_is_cut_and_the_others_are_not() -> Result<()> {
    // With shorter prefixes both IPv6 sources would share a bucket.
    let filter = json!({"rate_limit": {"packets_per_second": 2, "burst": 20, "ipv6_prefix": 128}});
    let lab = lab(&config(&filter))?;
    for (n, (host, other, device)) in FAMILIES.into_iter().enumerate() {
        let port = 7100 + u16::try_from(n)?;
        let at = SocketAddr::new(device.parse()?, port);
        let socket = lab.device.ns.run(|| Ok(UdpSocket::bind(at)?))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let flood = (0..200).map(|_| datagram(host, 5000, device, port)).collect::<Result<Vec<_>>>()?;
        let calm = (0..15).map(|_| datagram(other, 5001, device, port)).collect::<Result<Vec<_>>>()?;
        let grown = lab.device.counted(|| {
            lab.send(flood)?;
            lab.send(calm)
        })?;
        let mut got: BTreeMap<u16, u64> = BTreeMap::new();
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            *got.entry(from.port()).or_default() += 1;
        }
        let (flood, calm) = (got.get(&5000).copied().unwrap_or(0), got.get(&5001).copied().unwrap_or(0));
        ensure!(calm == 15, "{other}: {calm} of 15 came");
        // On a slow machine a few more tokens are added meanwhile; and two CPUs may each take the same one.
        ensure!((15..=40).contains(&flood), "{host}: {flood} of 200 came with a burst of 20");
        filtered(&grown, [0, 0, 200 - flood])?;
        // The bucket fills again with time.
        eventually(SOON, || {
            lab.send([datagram(host, 5000, device, port)?])?;
            Ok(socket.recv_from(&mut [0; 16])?)
        })
        .with_context(|| format!("{host} stays cut"))?;
    }
    // The new rate holds at once, also for the source that was limited.
    lab.reload(&config(&json!({"rate_limit": {"packets_per_second": 1_000_000, "burst": 1000}})))?;
    ensure!(lab.answers(FAMILIES[0].0, FAMILIES[0].2)?, "still cut");
    Ok(())
}

#[test]
fn a_drop_is_an_event() -> Result<()> {
    let lab = lab(&config(&deny()))?;
    let mut command = lab.device.command();
    command.args(["--json", "monitor"]).stdout(Stdio::piped());
    let mut monitor = command.spawn()?;
    let mut lines = BufReader::new(monitor.stdout.take().context("its output")?).lines();
    // The monitor may not have subscribed yet, so the packets are repeated.
    let (_, bad, device) = FAMILIES[1];
    let sender = Process::start(lab.outside.command("ping").args(["-n", "-q", "-i", "0.05", "-I", bad, device]))?;
    let event = lines.next().context("no event")??;
    monitor.kill()?;
    monitor.wait()?;
    drop(sender);
    let event: Value = serde_json::from_str(&event)?;
    ensure!(event["reason"] == "deny-listed" && event["src"] == bad && event["interface"] == "up0", "{event}");
    Ok(())
}

#[test]
fn what_is_no_ip_or_too_short_passes() -> Result<()> {
    // The list has every source of the frames below. It has none that the host's own stack may use meanwhile, such as
    // the link-local address of router solicitations and multicast reports.
    let lab = lab(&config(&json!({"deny": ["0.0.0.0/0", "6060::/16"]})))?;
    // An IPv4 and an IPv6 header that end too early, a VLAN tag before a denied packet, and ARP.
    let (_, whole) = datagram(FAMILIES[0].0, 1, FAMILIES[0].2, 9)?;
    let tagged = [&[0, 5][..], &frame::IPV4.to_be_bytes(), &whole].concat();
    let (here, there) = (lab.outside.mac("eth0")?, lab.device.ns.mac("up0")?);
    let arp = frame::arp(1, (here, [192, 0, 2, 9].into()), ([0; 6], [192, 0, 2, 1].into()));
    let answers = RawSocket::open(&lab.outside, "eth0")?;
    let grown = lab.device.counted(|| {
        lab.send([
            (frame::IPV4, whole[..19].to_vec()),
            (frame::IPV6, vec![0x60; 39]),
            (frame::IPV4, Vec::new()),
            (0x8100, tagged),
            (frame::ARP, arp),
        ])
    })?;
    filtered(&grown, [0, 0, 0])?;
    let is_answer = |f: &[u8]| f.len() >= 42 && f[12..14] == [8, 6] && f[20..22] == [0, 2] && f[6..12] == there;
    ensure!(answers.receive(SOON, is_answer)?.is_some(), "ARP is not answered");
    // A fragment has a source like any other packet.
    let mut fragment = whole;
    fragment[6] = 0x20;
    let grown = lab.device.counted(|| lab.send([(frame::IPV4, fragment)]))?;
    filtered(&grown, [1, 0, 0])
}

#[test]
fn the_filter_outlives_the_daemon() -> Result<()> {
    let mut lab = lab(&config(&deny()))?;
    let (good, bad, device) = FAMILIES[0];
    let start = |src: &str| {
        let args = ["-n", "-q", "-i", "0.01", "-I", src, device];
        Process::start(lab.outside.command("ping").args(args).stdout(Stdio::piped()))
    };
    let (denied, allowed) = (start(bad)?, start(good)?);
    for _ in 0..4 {
        lab.device.stop(Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_millis(100));
        lab.device.start()?;
        ensure!(lab.xdp()? == "native", "not adopted");
    }
    // A ping without an answer ends with an error.
    let denied = finish(denied).err().context("a denied ping is answered")?.to_string();
    ensure!(denied.contains(" 100% packet loss"), "{denied}");
    let allowed = finish(allowed)?;
    ensure!(allowed.contains(" 0% packet loss"), "{allowed}");
    // A list that was changed while no daemon ran is in force as soon as the next one answers.
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.configure(&config(&json!({"deny": [good]})))?;
    lab.device.start()?;
    ensure!(lab.answers(bad, device)? && !lab.answers(good, device)?, "the old list is in force");
    Ok(())
}

fn finish(ping: Process) -> Result<String> {
    ping.signal(Signal::SIGINT)?;
    ping.finish(SOON)
}

#[test]
fn an_uplink_without_native_xdp_says_so() -> Result<()> {
    let mut config = config(&deny());
    config["network"]["uplinks"] = json!(["up0", "plain0"]);
    let mut device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    // A bridge is a driver without native XDP.
    device.ns.ip("link add plain0 type bridge")?;
    device.ns.ip("link set plain0 up")?;
    device.start()?;
    let mode = |status: &Value, name: &str| {
        let all = status["uplinks"].as_array().cloned().unwrap_or_default();
        all.iter().find(|u| u["name"] == name).map(|u| u["xdp"].clone())
    };
    let status = device.json(&["status"])?;
    ensure!(mode(&status, "up0") == Some(json!("native")), "{status}");
    ensure!(mode(&status, "plain0") == Some(json!("off")), "{status}");
    let said = status["conditions"].to_string();
    ensure!(said.contains("uplink plain0") && said.contains("generic"), "{said}");
    let text = device.cli(&["status"]).ok()?;
    ensure!(text.contains("plain0, XDP off; up0, XDP native"), "{text}");
    config["network"]["uplink_filter"]["xdp"] = json!("generic");
    device.configure(&config)?;
    device.cli(&["reload"]).ok()?;
    let status = device.json(&["status"])?;
    ensure!(mode(&status, "plain0") == Some(json!("generic")), "{status}");
    ensure!(!status["conditions"].to_string().contains("plain0"), "{status}");
    // The program is detached from an uplink that is removed from the configuration.
    config["network"]["uplinks"] = json!(["plain0"]);
    device.configure(&config)?;
    device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        let said = device.ns.sh("bpftool net show dev up0")?;
        ensure!(!xdp_part(&said).contains("up0"), "{said}");
        Ok(())
    })?;
    drop(outside);
    Ok(())
}

#[test]
fn a_reload_that_changes_nothing_leaves_the_program() -> Result<()> {
    let lab = lab(&config(&deny()))?;
    let before = lab.device.ns.sh("bpftool net show dev up0")?;
    ensure!(xdp_part(&before).contains("up0"), "{before}");
    lab.reload(&config(&deny()))?;
    let after = lab.device.ns.sh("bpftool net show dev up0")?;
    ensure!(xdp_part(&before) == xdp_part(&after), "attached anew by a reload: {before}{after}");
    Ok(())
}

#[test]
fn a_device_without_pools_can_have_a_filter() -> Result<()> {
    let mut config = config(&deny());
    config["network"]["pools"] = json!({});
    let lab = lab(&config)?;
    let (good, bad, device) = FAMILIES[0];
    ensure!(lab.xdp()? == "native", "not on");
    ensure!(lab.answers(good, device)? && !lab.answers(bad, device)?, "the list is not in force");
    Ok(())
}

#[test]
fn down_takes_the_filter_along() -> Result<()> {
    let mut device = Device::new(&config(&deny()))?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    let before = eventually(SOON, || {
        let tentative = device.ns.ip("-6 addr show tentative")?;
        ensure!(tentative.is_empty(), "{tentative}");
        let (first, second) = (Snapshot::of(&device)?, Snapshot::of(&device)?);
        ensure!(first == second, "{}", first.diff(&second));
        Ok(second)
    })?;
    device.start()?;
    let during = Snapshot::of(&device)?.diff(&before);
    ensure!(during.contains("xdp"), "no program was seen: {during}");
    device.down()?;
    eventually(SOON, || {
        let changed = before.diff(&Snapshot::of(&device)?);
        ensure!(changed.is_empty(), "{changed}");
        Ok(())
    })?;
    echo::serve(&device.ns, FAMILIES[0].2.parse()?, PORT)?;
    let server = SocketAddr::new(FAMILIES[0].2.parse()?, PORT);
    echo::tcp(&outside, server, b"after").map(drop)
}
