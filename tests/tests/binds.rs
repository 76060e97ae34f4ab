//! Programs of the device that bind a port which a container publishes.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST};
use harness::{Container, Device, Namespace};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A published port.
const SINGLE: u16 = 8080;
/// One in the middle of a published range.
const RANGED: u16 = 9005;

fn config() -> Value {
    let mut config = configs::two_pools();
    config["network"]["uplinks"] = json!(["up0"]);
    config
}

struct Lab {
    device: Device,
    outside: Namespace,
    web: Container,
}

fn lab(ports: &Value) -> Result<Lab> {
    let mut device = Device::new(&config())?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ports}}))?;
    Ok(Lab { device, outside, web })
}

fn everywhere() -> Value {
    json!(["8080:80/tcp", "8080:80/udp", "9001-9010:901-910/tcp", "9001-9010:901-910/udp"])
}

#[test]
fn a_program_of_the_device_cannot_bind_a_published_port() -> Result<()> {
    let lab = lab(&everywhere())?;
    let want = refusal()?;
    let (tcp, udp) = (bind_tcp, bind_udp);
    for addr in ["0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "2001:db8:1::1"] {
        let at = |port: u16| anyhow::Ok(SocketAddr::new(addr.parse()?, port));
        for port in [SINGLE, RANGED] {
            ensure!(tcp(&lab.device.ns, at(port)?)? == Some(want), "TCP {addr}: {:?}", tcp(&lab.device.ns, at(port)?)?);
            ensure!(udp(&lab.device.ns, at(port)?)? == Some(want), "UDP {addr}: {:?}", udp(&lab.device.ns, at(port)?)?);
        }
        // An unpublished port, and port 0.
        for port in [SINGLE + 1, 0] {
            ensure!(tcp(&lab.device.ns, at(port)?)?.is_none() && udp(&lab.device.ns, at(port)?)?.is_none(), "{addr}");
        }
    }
    // Binds in other namespaces are free, whatever the cgroup.
    for ns in [&lab.web.ns, &lab.outside] {
        ensure!(tcp(ns, "0.0.0.0:8080".parse()?)?.is_none() && udp(ns, "[::]:9001".parse()?)?.is_none(), "elsewhere");
    }
    lab.device.cli(&["detach", "web"]).ok()?;
    ensure!(tcp(&lab.device.ns, "0.0.0.0:8080".parse()?)?.is_none(), "the port is not free again");
    Ok(())
}

/// The errno of a refused bind: before kernel 5.18 the hook cannot give EADDRINUSE.
fn refusal() -> Result<i32> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let number = |i: usize| kernel.split(['.', '-']).nth(i).and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
    Ok(if (number(0), number(1)) >= (5, 18) { libc::EADDRINUSE } else { libc::EPERM })
}

fn bind_tcp(ns: &Namespace, at: SocketAddr) -> Result<Option<i32>> {
    ns.run(|| Ok(TcpListener::bind(at).err().and_then(|e| e.raw_os_error())))
}

fn bind_udp(ns: &Namespace, at: SocketAddr) -> Result<Option<i32>> {
    ns.run(|| Ok(UdpSocket::bind(at).err().and_then(|e| e.raw_os_error())))
}

#[test]
fn a_port_on_one_address_is_kept_from_sockets_on_all() -> Result<()> {
    let ports = json!([
        "192.0.2.1:8080:80/tcp",
        "192.0.2.1:9001-9010:901-910/udp",
        "[2001:db8:1::1]:8081:80/udp",
        "[2001:db8:1::1]:9101-9110:901-910/tcp"
    ]);
    let Lab { device, outside: _outside, web: _web } = lab(&ports)?;
    let want = refusal()?;
    let expect = |addr: &str, port: u16, transport: &str, refused: bool| {
        let at = SocketAddr::new(addr.parse()?, port);
        let said = if transport == "tcp" { bind_tcp(&device.ns, at)? } else { bind_udp(&device.ns, at)? };
        ensure!(said == refused.then_some(want), "{transport} {at}: {said:?}");
        Ok(())
    };
    for (own, all, other, loopback, tcp, udp) in [
        ("192.0.2.1", "0.0.0.0", "10.0.3.1", "127.0.0.1", [8080, 8080], [9001, 9010]),
        ("2001:db8:1::1", "::", "fd00:5056:0:3::1", "::1", [9101, 9107], [8081, 8081]),
    ] {
        for (published, free, ports) in [("tcp", "udp", tcp), ("udp", "tcp", udp)] {
            for port in ports {
                for addr in [own, all] {
                    expect(addr, port, published, true)?;
                    expect(addr, port, free, false)?;
                }
                // The port is published on another address only.
                expect(other, port, published, false)?;
                expect(loopback, port, published, false)?;
            }
        }
    }
    // A socket on `::` takes IPv4 too; one on 0.0.0.0 takes no IPv6.
    expect("::", 8080, "tcp", true)?;
    expect("::", 9005, "udp", true)?;
    expect("::ffff:0.0.0.0", 8080, "tcp", true)?;
    expect("0.0.0.0", 8081, "udp", false)?;
    expect("0.0.0.0", 9101, "tcp", false)?;
    expect("0.0.0.0", 9011, "udp", false)?;
    device.cli(&["detach", "web"]).ok()?;
    expect("0.0.0.0", 8080, "tcp", false)?;
    expect("::", 8081, "udp", false)
}

#[test]
fn who_is_refused_a_port_and_who_has_it_is_said() -> Result<()> {
    let lab = lab(&everywhere())?;
    let mut command = lab.device.command();
    command.args(["--json", "monitor"]).stdout(Stdio::piped());
    let mut monitor = command.spawn()?;
    let mut lines = BufReader::new(monitor.stdout.take().context("its output")?).lines();
    let pid = std::process::id();
    for (addr, port, proto) in [("0.0.0.0", SINGLE, "tcp"), ("::", RANGED, "udp"), ("2001:db8:1::1", SINGLE, "udp")] {
        let at = SocketAddr::new(addr.parse()?, port);
        // The monitor may not have subscribed yet, and events of one kind are limited in rate.
        let stop = AtomicBool::new(false);
        let event = std::thread::scope(|scope| {
            let again = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let said =
                        if proto == "tcp" { bind_tcp(&lab.device.ns, at)? } else { bind_udp(&lab.device.ns, at)? };
                    ensure!(said.is_some(), "{proto} {at}: not refused");
                    std::thread::sleep(Duration::from_millis(30));
                }
                Ok(())
            });
            let found = lines.by_ref().find_map(|line| {
                let event: Value = serde_json::from_str(&line.ok()?).ok()?;
                (event["reason"] == "port-published" && event["address"] == addr && event["proto"] == proto)
                    .then_some(event)
            });
            stop.store(true, Ordering::Relaxed);
            again.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            found.context("no event")
        })?;
        ensure!(event["container"] == "web" && event["port"] == port && event["pid"] == pid, "{event}");
        ensure!(!event["program"].as_str().unwrap_or_default().is_empty(), "{event}");
        let log = lab.device.log();
        let line = |l: &&str| {
            let words = [&format!("address={addr}"), &format!("port={port}"), &format!("proto={proto}")];
            l.contains("WARN") && words.iter().all(|w| l.contains(w.as_str()))
        };
        let said: Vec<&str> = log.lines().filter(line).collect();
        let [said] = said.as_slice() else { anyhow::bail!("not one line: {said:?}") };
        ensure!(said.contains("container=web") && said.contains(&format!("pid={pid}")), "{said}");
    }
    monitor.kill()?;
    monitor.wait()?;
    Ok(())
}
