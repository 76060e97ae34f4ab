//! Traffic that does not concern pv-net: the device's own services, and links, bridges and rules of others.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, HOST};
use harness::{Container, Device, Namespace, Process, SOON, echo};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

const DEVICE: [&str; 3] = ["192.0.2.1/24", "192.0.2.2/24", "2001:db8:1::1/64"];

struct Lab {
    device: Device,
    outside: Namespace,
}

fn lab() -> Result<Lab> {
    let config = configs::masqueraded();
    let device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    Ok(Lab { device, outside })
}

fn web(device: &Device) -> Result<Container> {
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    echo::serve(&web.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
    Ok(web)
}

#[test]
fn the_devices_own_services_are_left_alone() -> Result<()> {
    let mut lab = lab()?;
    // A long connection from before pv-net's start, as of ssh.
    echo::serve(&lab.device.ns, Ipv6Addr::UNSPECIFIED.into(), 2222)?;
    let mut long = echo::connect(&lab.outside, "192.0.2.1:2222".parse()?)?;
    let mut first = [0; 200];
    ensure!(long.read(&mut first)? > 0, "no greeting");
    lab.device.start()?;
    let _web = web(&lab.device)?;
    let mut still = || -> Result<()> {
        let mut back = [0; 4];
        long.write_all(b"here")?;
        long.read_exact(&mut back).context("the long connection is gone")?;
        ensure!(&back == b"here", "{back:?}");
        Ok(())
    };
    still()?;
    for at in ["192.0.2.1", "192.0.2.2", "2001:db8:1::1"] {
        let at: IpAddr = at.parse()?;
        echo::tcp(&lab.outside, SocketAddr::new(at, 2222), &[5; 300_000])?;
        // A socket on all addresses answers datagrams from the first one.
        if at != IpAddr::from([192, 0, 2, 2]) {
            echo::udp(&lab.outside, SocketAddr::new(at, 2222), &[5; 5000])?;
        }
        lab.outside.ping(at, 3)?;
        // The port is published on every address.
        echo::tcp(&lab.outside, SocketAddr::new(at, 8080), &[5; 1000])?;
    }
    // The device is the client.
    echo::serve(&lab.outside, Ipv6Addr::UNSPECIFIED.into(), 7000)?;
    for host in ["192.0.2.9:7000", "[2001:db8:1::9]:7000"] {
        echo::tcp(&lab.device.ns, host.parse()?, &[5; 300_000])?;
        echo::udp(&lab.device.ns, host.parse()?, &[5; 5000])?;
    }
    lab.device.stop(Signal::SIGKILL)?;
    still()?;
    lab.device.start()?;
    still()?;
    lab.device.down()?;
    still()
}

#[test]
fn other_links_bridges_and_rules_are_left_alone() -> Result<()> {
    let mut lab = lab()?;
    let dev = &lab.device.ns;
    // Two links between which the device routes, and a bridge with another program's containers.
    let (left, right, docker) = (Namespace::new("left")?, Namespace::new("right")?, Namespace::new("docker")?);
    dev.connect(("l0", &["198.51.100.1/24"]), &left, ("eth0", &["198.51.100.9/24"]))?;
    dev.connect(("r0", &["203.0.113.1/24"]), &right, ("eth0", &["203.0.113.9/24"]))?;
    dev.connect(("dk0", &[]), &docker, ("eth0", &["172.17.0.2/16"]))?;
    for line in ["link add docker0 type bridge", "link set dk0 master docker0", "addr add 172.17.0.1/16 dev docker0"] {
        dev.ip(line)?;
    }
    dev.ip("link set docker0 up")?;
    dev.sh("sysctl -qw net.ipv4.ip_forward=1")?;
    for (ns, via) in [(&left, "198.51.100.1"), (&right, "203.0.113.1"), (&docker, "172.17.0.1")] {
        ns.ip(&format!("route add default via {via}"))?;
        echo::serve(ns, [0; 4].into(), 7000)?;
    }
    let rules = lab.device.file("others.nft");
    std::fs::write(
        &rules,
        "table inet others {\nchain forward {\ntype filter hook forward priority 0; policy accept;\n\
         tcp dport 9999 drop\n}\n}\ntable ip masq {\nchain post {\ntype nat hook postrouting priority 100;\n\
         oifname \"r0\" ip saddr 172.17.0.0/16 masquerade\n}\n}\n",
    )?;
    dev.sh(&format!("nft -f {}", rules.display()))?;
    let before = dev.sh("nft list ruleset")?;
    lab.device.start()?;
    let web = web(&lab.device)?;
    let seen = echo::tcp(&left, "203.0.113.9:7000".parse()?, &[9; 300_000])?;
    ensure!(seen.ip() == IpAddr::from([198, 51, 100, 9]), "the router's traffic was changed: {seen}");
    let seen = echo::udp(&right, "198.51.100.9:7000".parse()?, &[9; 5000])?;
    ensure!(seen.ip() == IpAddr::from([203, 0, 113, 9]), "the router's traffic was changed: {seen}");
    let seen = echo::tcp(&docker, "203.0.113.9:7000".parse()?, &[9; 300_000])?;
    ensure!(seen.ip() == IpAddr::from([203, 0, 113, 1]), "their masquerade does not work: {seen}");
    // Containers reach hosts behind a bridge that is no uplink, by the device's stack.
    let seen = echo::tcp(&web.ns, "172.17.0.2:7000".parse()?, &[9; 300_000]).context("to docker0")?;
    ensure!(seen.ip() == IpAddr::from(web.v4), "{seen}");
    echo::udp(&web.ns, "172.17.0.2:7000".parse()?, &[9; 5000]).context("to docker0")?;
    web.ns.ping("172.17.0.2", 3).context("to docker0")?;
    ensure!(dev_rules(&lab)? == before, "rules changed while running");
    lab.device.down()?;
    ensure!(dev_rules(&lab)? == before, "rules changed by the end");
    Ok(())
}

fn dev_rules(lab: &Lab) -> Result<String> {
    lab.device.ns.sh("nft list ruleset")
}

#[test]
fn five_crashes_under_load_lose_nothing() -> Result<()> {
    let mut lab = lab()?;
    lab.device.start()?;
    let web = web(&lab.device)?;
    let peer = lab.device.attach("peer", "internal")?;
    let serve = |ns: &Namespace| {
        Process::start(ns.command("iperf3").args(["-s", "-p", "5201"]).stdout(Stdio::null()).stderr(Stdio::null()))
    };
    let _server = serve(&lab.outside)?;
    let measured = lab.device.attach_run(&json!({"name": "iperf", "network":
        {"pool": "internal", "ports": ["5201:5201/tcp"]}}))?;
    let _published = serve(&measured.ns)?;
    lab.outside.listens(5201)?;
    measured.ns.listens(5201)?;
    let load = |ns: &Namespace, to: &str| {
        Process::start(ns.command("iperf3").args(["-c", to, "-p", "5201", "-t", "8", "-J"]).stdout(Stdio::piped()))
    };
    let ping = |ns: &Namespace, to: &str| {
        Process::start(ns.command("ping").args(["-n", "-q", "-i", "0.005", "-W", "5", to]).stdout(Stdio::piped()))
    };
    let loads = [load(&peer.ns, "192.0.2.9")?, load(&lab.outside, "192.0.2.1")?];
    let pings = [ping(&web.ns, "192.0.2.9")?, ping(&peer.ns, "2001:db8:1::9")?];
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(200));
        lab.device.stop(Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_millis(200));
        lab.device.start()?;
    }
    for ping in pings {
        ping.signal(Signal::SIGINT)?;
        let said = ping.finish(SOON)?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    for load in loads {
        let said: serde_json::Value = serde_json::from_str(&load.finish(SOON)?)?;
        ensure!(said["error"].is_null(), "{said}");
        for interval in said["intervals"].as_array().context("intervals")? {
            let bytes = interval["sum"]["bytes"].as_f64().unwrap_or_default();
            ensure!(bytes > 0.0, "a second without a byte: {interval}");
        }
    }
    Ok(())
}
