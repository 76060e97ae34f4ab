//! Which links become uplinks, and which cannot.

use anyhow::{Context, Result, ensure};
use harness::{Beyond, Container, Device, Kind, Namespace, Snapshot, configs, echo, eventually, occupied, skip};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;
/// A published port, and the container's port.
const PUBLISHED: (u16, u16) = (8080, 80);

/// A link of the device and the host behind it: addresses of both, in both families.
#[derive(Clone, Copy)]
struct Side {
    link: &'static str,
    device: [&'static str; 2],
    host: [&'static str; 2],
}

const WAN: Side = Side { link: "eth0", device: ["192.0.2.1", "2001:db8:1::1"], host: ["192.0.2.9", "2001:db8:1::9"] };
const VLAN: Side = Side { link: "eth0.100", ..WAN };

const LAN: Side =
    Side { link: "eth1", device: ["198.51.100.1", "2001:db8:2::1"], host: ["198.51.100.9", "2001:db8:2::9"] };
const LATE: Side =
    Side { link: "eth2", device: ["203.0.113.1", "2001:db8:3::1"], host: ["203.0.113.9", "2001:db8:3::9"] };
const DOCKER: Side =
    Side { link: "docker0", device: ["172.17.0.1", "2001:db8:4::1"], host: ["172.17.0.9", "2001:db8:4::9"] };

impl Side {
    /// Makes the host, and connects it with the device by a link of this name.
    fn connect(self, device: &Device) -> Result<Namespace> {
        let (own, host) = (with_prefix(self.device), with_prefix(self.host));
        device.outside(self.link, &own.each_ref().map(String::as_str), &host.each_ref().map(String::as_str))
    }

    /// Addresses of the device and of the host, a pair for each family.
    fn pairs(self) -> Result<Vec<(IpAddr, IpAddr)>> {
        self.device.iter().zip(self.host).map(|(device, host)| Ok((device.parse()?, host.parse()?))).collect()
    }
}

fn with_prefix(addresses: [&str; 2]) -> [String; 2] {
    addresses.map(|a| format!("{a}/{}", if a.contains(':') { 64 } else { 24 }))
}

fn config(uplinks: &[&str]) -> Value {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(uplinks);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    config
}

/// A container with a published port, and a server behind it.
fn web(device: &Device) -> Result<Container> {
    let ports = ["8080:80/tcp", "8080:80/udp"];
    let web = device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ports}}))?;
    echo::serve(&web.ns, "::".parse()?, PUBLISHED.1)?;
    Ok(web)
}

/// Fails unless the host sees the device's address on that link for masqueraded flows, and reaches the published port
/// with its own address.
fn both_ways(web: &Namespace, side: Side, host: &Namespace) -> Result<()> {
    for (own, there) in side.pairs()? {
        masqueraded(web, there, own).with_context(|| format!("{}: to {there}", side.link))?;
        published(host, own, there).with_context(|| format!("{}: from {there} to {own}", side.link))?;
    }
    Ok(())
}

fn masqueraded(from: &Namespace, host: IpAddr, as_who: IpAddr) -> Result<()> {
    let server = SocketAddr::new(host, PORT);
    for seen in [echo::tcp(from, server, &[7; 50_000])?, echo::udp(from, server, &[7; 1200])?] {
        ensure!(seen.ip() == as_who, "seen as {seen}");
    }
    Ok(())
}

fn published(from: &Namespace, device: IpAddr, as_who: IpAddr) -> Result<()> {
    let server = SocketAddr::new(device, PUBLISHED.0);
    for seen in [echo::tcp(from, server, &[8; 50_000])?, echo::udp(from, server, &[8; 1200])?] {
        ensure!(seen.ip() == as_who, "seen as {seen}");
    }
    Ok(())
}

fn serve(host: &Namespace, side: Side) -> Result<()> {
    side.pairs()?.into_iter().try_for_each(|(_, there)| echo::serve(host, there, PORT))
}

fn conditions(device: &Device) -> Result<String> {
    Ok(device.json(&["status"])?["conditions"].to_string())
}

/// Tests everything on an uplink named `eth0.100`, behind which `host` is, with the filter in mode `xdp`.
fn a_name_with_a_dot(device: &mut Device, host: &Namespace, xdp: &str) -> Result<()> {
    serve(host, VLAN)?;
    let before = Snapshot::of(device)?;
    device.start()?;
    let web = web(device)?;
    both_ways(&web.ns, VLAN, host)?;
    let mut open = echo::connect(host, SocketAddr::new(VLAN.device[0].parse()?, PUBLISHED.0))?;
    device.stop(Signal::SIGKILL)?;
    device.start()?;
    let said = conditions(device)?;
    ensure!(!said.contains("pin removed"), "not adopted: {said}");
    ensure!(device.json(&["status"])?["uplinks"] == json!([{"name": "eth0.100", "xdp": xdp}]), "{said}");
    still_there(&mut open)?;
    both_ways(&web.ns, VLAN, host)?;
    device.down()?;
    eventually(PATIENCE, || {
        let changed = before.diff(&Snapshot::of(device)?);
        ensure!(changed.is_empty(), "after `down`:\n{changed}");
        Ok(())
    })
}

fn still_there(stream: &mut std::net::TcpStream) -> Result<()> {
    use std::io::{Read, Write};
    stream.write_all(b"still here")?;
    let mut got = Vec::new();
    let mut buffer = [0; 200];
    while !got.ends_with(b"still here") {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "the connection ended");
        got.extend_from_slice(&buffer[..n]);
    }
    Ok(())
}

fn vlan_config(xdp: &str) -> Value {
    let mut config = config(&[VLAN.link]);
    config["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"], "xdp": xdp});
    config
}

#[test]
fn an_uplink_may_have_a_dot_in_its_name() -> Result<()> {
    let mut device = Device::new(&vlan_config("auto"))?;
    let host = VLAN.connect(&device)?;
    a_name_with_a_dot(&mut device, &host, "native")
}

/// From kernel 6.9 on, generic XDP on a VLAN link leaves frames without their Ethernet header.
#[test]
fn an_uplink_may_have_generic_xdp() -> Result<()> {
    let mut device = Device::new(&vlan_config("generic"))?;
    let host = VLAN.connect(&device)?;
    a_name_with_a_dot(&mut device, &host, "generic")
}

#[test]
fn an_uplink_that_cannot_be_hooked_is_a_condition() -> Result<()> {
    if !has_tcx()? {
        skip("an_uplink_that_cannot_be_hooked_is_a_condition", "before kernel 6.6 a link takes any number of filters");
        return Ok(());
    }
    let mut device = Device::new(&config(&[WAN.link, LAN.link, LATE.link]))?;
    let (wan, lan) = (WAN.connect(&device)?, LAN.connect(&device)?);
    let full = occupied::fill(&device.ns, LAN.link)?;
    serve(&wan, WAN)?;
    serve(&lan, LAN)?;
    device.start()?;
    let said = conditions(&device)?;
    ensure!(said.contains("uplink eth1: not used: ") && !said.contains("uplink eth0"), "{said}");
    ensure!(device.json(&["status"])?["uplinks"] == json!([{"name": "eth0", "xdp": "off"}]), "eth1 is used");
    let web = web(&device)?;
    both_ways(&web.ns, WAN, &wan)?;
    // Links that appear later become uplinks nevertheless.
    let late = LATE.connect(&device)?;
    serve(&late, LATE)?;
    eventually(PATIENCE, || both_ways(&web.ns, LATE, &late))?;
    ensure!(conditions(&device)?.contains("uplink eth1: not used: "), "{}", conditions(&device)?);
    drop(full);
    device.ns.ip("link set eth1 mtu 1400")?;
    eventually(PATIENCE, || {
        let said = conditions(&device)?;
        ensure!(!said.contains("eth1"), "{said}");
        Ok(())
    })?;
    both_ways(&web.ns, LAN, &lan)
}

/// A bridge of another program, with a namespace behind it.
fn bridged(device: &Device) -> Result<Namespace> {
    device.ns.ip("link add docker0 type bridge")?;
    let host = Namespace::new("docked")?;
    let addresses = with_prefix(DOCKER.host);
    device.ns.connect(("port0", &[]), &host, ("eth0", &addresses.each_ref().map(String::as_str)))?;
    device.ns.ip("link set port0 master docker0")?;
    for address in with_prefix(DOCKER.device) {
        device.ns.ip(&format!("addr add {address} dev docker0 nodad"))?;
    }
    device.ns.ip("link set docker0 up")?;
    Ok(host)
}

/// Adds default routes: the device's over the host on `eth0`, those of the other hosts over the device.
fn default_routes(device: &Device, hosts: &[(Side, &Namespace)]) -> Result<()> {
    for (i, family) in ["-4", "-6"].iter().enumerate() {
        device.ns.ip(&format!("{family} route add default via {} dev eth0", WAN.host[i]))?;
        for (side, host) in hosts {
            host.ip(&format!("{family} route add default via {}", side.device[i]))?;
        }
    }
    Ok(())
}

fn names(status: &Value) -> Vec<String> {
    let all = status["uplinks"].as_array().cloned().unwrap_or_default();
    all.iter().map(|u| format!("{} {}", u["name"].as_str().unwrap_or(""), u["xdp"].as_str().unwrap_or(""))).collect()
}

#[test]
fn without_a_list_every_link_that_leads_out_is_an_uplink() -> Result<()> {
    let mut config = config(&[]);
    config["network"]["uplink_filter"] = json!({"deny": ["192.0.2.66"]});
    let mut device = Device::new(&config)?;
    let (wan, lan) = (WAN.connect(&device)?, LAN.connect(&device)?);
    let docked = bridged(&device)?;
    let hosts = [(WAN, &wan), (LAN, &lan), (DOCKER, &docked)];
    default_routes(&device, &hosts)?;
    hosts.iter().try_for_each(|(side, host)| serve(host, *side))?;
    let before = programs(&device)?;
    device.start()?;
    let web = web(&device)?;
    let status = device.json(&["status"])?;
    // The filter runs on the uplink with the default route; behind the others are neighbours.
    ensure!(names(&status) == ["docker0 off", "eth0 native", "eth1 off"], "{status}");
    ensure!(status["conditions"] == json!([]), "{status}");
    for (side, host) in hosts {
        eventually(PATIENCE, || both_ways(&web.ns, side, host))?;
        for (device, own) in [0, 1].map(|i| (WAN.device[i], side.host[i])) {
            published(host, device.parse()?, own.parse()?).with_context(|| format!("{}: to {device}", side.link))?;
        }
    }
    // A new link with an address becomes an uplink, and a link whose address is removed stops being one.
    let late = LATE.connect(&device)?;
    serve(&late, LATE)?;
    eventually(PATIENCE, || both_ways(&web.ns, LATE, &late))?;
    for address in with_prefix(LAN.device) {
        device.ns.ip(&format!("addr del {address} dev eth1"))?;
    }
    device.ns.ip("link set docker0 down")?;
    eventually(PATIENCE, || {
        let status = device.json(&["status"])?;
        // A link that was down is an uplink again when it is up.
        ensure!(names(&status) == ["docker0 off", "eth0 native", "eth2 off"], "{status}");
        Ok(())
    })?;
    both_ways(&web.ns, WAN, &wan)?;
    device.ns.ip("link del eth2")?;
    device.ns.ip("link set docker0 up")?;
    // The IPv6 addresses were removed when the link was set down.
    device.ns.ip(&format!("addr replace {} dev docker0 nodad", with_prefix(DOCKER.device)[1]))?;
    for address in with_prefix(LAN.device) {
        device.ns.ip(&format!("addr add {address} dev eth1 nodad"))?;
    }
    eventually(PATIENCE, || both_ways(&web.ns, DOCKER, &docked))?;
    eventually(PATIENCE, || both_ways(&web.ns, LAN, &lan))?;
    ensure!(programs(&device)? != before, "nothing is attached");
    device.down()?;
    ensure!(programs(&device)? == before, "after `down`: {}", programs(&device)?);
    Ok(())
}

/// As in a system container: the only link lies on a link of the machine. `cargo xtask vm` tests the kinds that this
/// kernel may not have.
#[test]
fn a_macvlan_is_an_uplink() -> Result<()> {
    let mut device = Device::new(&config(&[]))?;
    let beyond = Beyond::of(Kind::Macvlan, &device, LAN.link)?.context("a kernel without macvlan")?;
    serve(&beyond.host, LAN)?;
    device.start()?;
    let web = web(&device)?;
    let status = device.json(&["status"])?;
    ensure!(names(&status) == ["eth1 off"] && status["conditions"] == json!([]), "{status}");
    let grown = device.counted(|| both_ways(&web.ns, LAN, &beyond.host))?;
    ensure!(grown["fast-path"] > 20, "{grown:?}");
    Ok(())
}

/// The parent link is an uplink too, and sees all frames before.
#[test]
fn a_macvlan_may_be_on_another_uplink() -> Result<()> {
    let mut device = Device::new(&config(&[]))?;
    let host = WAN.connect(&device)?;
    device.ns.ip("link add eth1 link eth0 type macvlan mode bridge")?;
    for (ns, addresses, link) in [(&device.ns, LAN.device, "eth1"), (&host, LAN.host, "eth0")] {
        for address in with_prefix(addresses) {
            ns.ip(&format!("addr add {address} dev {link} nodad"))?;
        }
    }
    device.ns.ip("link set eth1 up")?;
    [WAN, LAN].into_iter().try_for_each(|side| serve(&host, side))?;
    device.start()?;
    let web = web(&device)?;
    let status = device.json(&["status"])?;
    ensure!(names(&status) == ["eth0 off", "eth1 off"], "{status}");
    for side in [WAN, LAN] {
        let grown = device.counted(|| eventually(PATIENCE, || both_ways(&web.ns, side, &host)))?;
        ensure!(grown["fast-path"] > 20, "{}: {grown:?}", side.link);
    }
    Ok(())
}

/// The programs on the links, and the pins.
fn programs(device: &Device) -> Result<String> {
    Ok([device.ns.sh("bpftool net show")?, device.ns.sh("tc qdisc show")?, device.pinned()?].concat())
}

#[test]
fn a_list_of_uplinks_is_exactly_that() -> Result<()> {
    let mut device = Device::new(&config(&[LAN.link]))?;
    let (wan, lan) = (WAN.connect(&device)?, LAN.connect(&device)?);
    default_routes(&device, &[(WAN, &wan), (LAN, &lan)])?;
    serve(&lan, LAN)?;
    device.start()?;
    let web = web(&device)?;
    both_ways(&web.ns, LAN, &lan)?;
    let status = device.json(&["status"])?;
    ensure!(names(&status) == ["eth1 off"], "{status}");
    for (own, there) in WAN.pairs()? {
        let said = published(&wan, own, there);
        ensure!(said.is_err(), "reached by a link that is no uplink");
    }
    Ok(())
}

/// A network that an uplink has got since the file was read is a condition, as it was when it came: a start without the
/// daemon's containers would be worse than the overlap. A reload, which somebody waits for, is refused.
#[test]
fn an_uplinks_new_network_does_not_keep_the_daemon_from_starting() -> Result<()> {
    let mut device = Device::new(&config(&["eth0"]))?;
    let _host = WAN.connect(&device)?;
    device.start()?;
    let web = web(&device)?;
    device.ns.ip("addr add 10.0.3.129/25 dev eth0")?;
    let says = |device: &Device| {
        eventually(PATIENCE, || {
            let said = conditions(device)?;
            ensure!(said.contains("pool internal: 10.0.3.0/24 overlaps 10.0.3.128/25 of link eth0"), "{said}");
            Ok(())
        })
    };
    says(&device)?;
    device.stop(Signal::SIGTERM)?;
    device.start()?;
    says(&device)?;
    web.ns.ping("10.0.3.1", 3)?;
    let refused = device.cli(&["reload"]);
    ensure!(refused.code == Some(2) && refused.stderr.contains("of uplink eth0"), "{refused:?}");
    says(&device)
}

/// Without a configured list nobody has said which networks are taken, and a network may be added at any time.
#[test]
fn a_pool_that_overlaps_a_network_of_the_device_says_so() -> Result<()> {
    let mut device = Device::new(&config(&[]))?;
    let _host = WAN.connect(&device)?;
    device.ns.ip("link add docker0 type bridge")?;
    device.ns.ip("link set docker0 up")?;
    device.ns.ip("addr add 10.0.3.129/25 dev docker0")?;
    device.start()?;
    let own = "pool internal: 10.0.3.0/24 overlaps 10.0.3.128/25 of link docker0: choose another subnet";
    ensure!(conditions(&device)?.contains(own), "{}", conditions(&device)?);
    let of_pool = |name: &str| {
        let pools = device.json(&["pools"])?;
        let found = pools.as_array().context("a list")?.iter().find(|p| p["name"] == name).context("pool")?;
        anyhow::Ok(found["conditions"].to_string())
    };
    ensure!(of_pool("internal")?.contains("docker0"), "{}", of_pool("internal")?);
    ensure!(of_pool("management")? == "[]", "{}", of_pool("management")?);
    // The pool works nevertheless.
    let web = web(&device)?;
    web.ns.ping("10.0.3.1", 3)?;
    device.ns.ip("addr add fd00:5056:0:4::99/64 dev docker0 nodad")?;
    device.ns.ip("addr del 10.0.3.129/25 dev docker0")?;
    eventually(PATIENCE, || {
        let said = conditions(&device)?;
        let six = "pool management: fd00:5056:0:4::/64 overlaps fd00:5056:0:4::/64 of link docker0";
        ensure!(said.contains(six) && !said.contains("pool internal"), "{said}");
        Ok(())
    })?;
    device.ns.ip("link del docker0")?;
    eventually(PATIENCE, || {
        ensure!(!conditions(&device)?.contains("overlaps"), "{}", conditions(&device)?);
        Ok(())
    })
}

#[test]
fn a_link_without_ethernet_headers_is_a_condition() -> Result<()> {
    let said_of_tun0 = "uplink tun0: is not an Ethernet link: not used";
    let mut device = Device::new(&config(&["tun0", WAN.link]))?;
    let host = WAN.connect(&device)?;
    serve(&host, WAN)?;
    if let Err(why) = device.ns.ip("tuntap add dev tun0 mode tun") {
        skip("a_link_without_ethernet_headers_is_a_condition", &format!("no tun device: {why:#}"));
        return Ok(());
    }
    for address in ["198.51.100.1/24", "2001:db8:2::1/64"] {
        device.ns.ip(&format!("addr add {address} dev tun0"))?;
    }
    device.ns.ip("link set tun0 up")?;
    device.start()?;
    let web = web(&device)?;
    ensure!(conditions(&device)?.contains(said_of_tun0), "{}", conditions(&device)?);
    ensure!(names(&device.json(&["status"])?) == ["eth0 off"], "tun0 is used");
    both_ways(&web.ns, WAN, &host)?;
    // With automatic uplinks there is a condition only when a default route leads over the link.
    device.configure(&config(&[]))?;
    device.cli(&["reload"]).ok()?;
    ensure!(!conditions(&device)?.contains("tun0"), "{}", conditions(&device)?);
    ensure!(names(&device.json(&["status"])?) == ["eth0 off"], "eth0 is used no more");
    device.ns.ip("route add default dev tun0")?;
    eventually(PATIENCE, || {
        let said = conditions(&device)?;
        ensure!(said.contains(said_of_tun0), "{said}");
        Ok(())
    })?;
    both_ways(&web.ns, WAN, &host)
}

fn has_tcx() -> Result<bool> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let numbers: Vec<u32> = kernel.split(['.', '-']).map_while(|word| word.trim().parse().ok()).take(2).collect();
    Ok(numbers >= vec![6, 6])
}
