//! BIG TCP: the sizes on the pools' links, and correct streams on every path with and without it.

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::raw::RawSocket;
use harness::{Container, Device, Namespace, echo};
use rtnetlink::packet_route::link::LinkAttribute;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PORT: u16 = 7000;
const BIG: u32 = 262_144;
const USUAL: u32 = 65_536;
/// Only with BIG TCP is a frame this large: it fills the receive buffer.
const BIG_FRAME: usize = 65_536;

fn config(big_tcp: bool) -> Value {
    let mut config = configs::open_pools();
    config["network"]["uplinks"] = json!(["up0"]);
    for name in ["internal", "management"] {
        config["network"]["pools"][name]["nat"] = json!(true);
        config["network"]["pools"][name]["big_tcp"] = json!(big_tcp);
    }
    config
}

/// GSO and GRO sizes of a link: IPv6, then IPv4.
fn sizes(ns: &Namespace, link: &str) -> Result<[u32; 4]> {
    let link = link.to_owned();
    ns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            let next = handle.link().get().match_name(link.clone()).execute().try_next().await?;
            let message = next.with_context(|| link.clone())?;
            let mut found = [0; 4];
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::GsoMaxSize(n) => found[0] = n,
                    LinkAttribute::GroMaxSize(n) => found[1] = n,
                    LinkAttribute::GsoIpv4MaxSize(n) => found[2] = n,
                    LinkAttribute::GroIpv4MaxSize(n) => found[3] = n,
                    _ => {}
                }
            }
            Ok(found)
        })
    })
}

struct Lab {
    device: Device,
    outside: Namespace,
    a: Container,
    b: Container,
    far: Container,
}

fn lab(big_tcp: bool) -> Result<Lab> {
    let mut device = Device::new(&config(big_tcp))?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let run = json!({"name": "a", "network": {"pool": "internal", "ports": ["8080:7000/tcp"]}});
    let a = device.attach_run(&run)?;
    let (b, far) = (device.attach("b", "internal")?, device.attach("far", "management")?);
    for ns in [&a.ns, &b.ns, &far.ns, &outside, &device.ns] {
        echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    }
    Ok(Lab { device, outside, a, b, far })
}

impl Lab {
    /// Both ends of the containers' links, and the bridges.
    fn all_sizes(&self) -> Result<Vec<(String, [u32; 4])>> {
        let mut all = Vec::new();
        for c in [&self.a, &self.b, &self.far] {
            all.push((c.host_if().to_owned(), sizes(&self.device.ns, c.host_if())?));
            all.push((format!("{} inside", c.host_if()), sizes(&c.ns, "eth0")?));
        }
        for bridge in ["pvbr3", "pvbr4"] {
            all.push((bridge.to_owned(), sizes(&self.device.ns, bridge)?));
        }
        Ok(all)
    }

    /// A stream there and back on every path; every byte is compared.
    fn streams(&self) -> Result<()> {
        let blob: Vec<u8> = (0..6_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for i in [0, 1] {
            let (outside, device) = HOSTS[i];
            let gateway: IpAddr = if i == 0 { [10, 0, 3, 1].into() } else { "fd00:5056:0:3::1".parse()? };
            let (b, far, a) = (self.b.addresses()[i], self.far.addresses()[i], self.a.addresses()[i]);
            for (what, from, to, port) in [
                ("one pool", &self.a.ns, b, PORT),
                ("two pools", &self.a.ns, far, PORT),
                ("masquerade", &self.a.ns, outside, PORT),
                ("published port", &self.outside, device, 8080),
                ("from the device", &self.device.ns, a, PORT),
            ] {
                let server = SocketAddr::new(to, port);
                echo::tcp(from, server, &blob).with_context(|| format!("{what}: {server}"))?;
            }
            // Containers may open no port of the gateway, which refuses at once.
            let refused = self.a.ns.run(|| Ok(std::net::TcpStream::connect((gateway, 9)).is_err()))?;
            ensure!(refused, "{gateway}");
        }
        Ok(())
    }

    /// Whether a frame above 64 KiB passes `link` while `work` runs.
    fn sees_big(&self, link: &str, v4: bool, work: impl FnOnce() -> Result<()>) -> Result<bool> {
        let tap = RawSocket::open(&self.device.ns, link)?;
        let done = AtomicBool::new(false);
        let kind: [u8; 2] = if v4 { [8, 0] } else { [0x86, 0xdd] };
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut seen = false;
                while !done.load(Ordering::Relaxed) {
                    let big = |f: &[u8]| f.len() >= BIG_FRAME && f[12..14] == kind;
                    seen |= tap.receive(Duration::from_millis(50), big)?.is_some();
                }
                anyhow::Ok(seen)
            });
            let worked = work();
            done.store(true, Ordering::Relaxed);
            let seen = watch.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
            worked.map(|()| seen)
        })
    }
}

#[test]
fn streams_are_right_with_it_and_without() -> Result<()> {
    for on in [true, false] {
        let lab = lab(on)?;
        let want = if on { BIG } else { USUAL };
        for (link, sizes) in lab.all_sizes()? {
            ensure!(sizes == [want; 4], "{link}: {sizes:?}, not {want}");
        }
        lab.streams()?;
    }
    Ok(())
}

#[test]
fn it_is_used_between_containers_and_not_on_the_wire() -> Result<()> {
    let blob = vec![7u8; 30_000_000];
    for on in [true, false] {
        let lab = lab(on)?;
        for i in [0, 1] {
            let stream = |to: IpAddr| echo::tcp(&lab.a.ns, SocketAddr::new(to, PORT), &blob).map(drop);
            let seen = lab.sees_big(lab.a.host_if(), i == 0, || stream(lab.far.addresses()[i]))?;
            ensure!(seen == on, "family {i}: big frames between pools: {seen}, with BIG TCP {on}");
            let (host, _) = HOSTS[i];
            let seen = lab.sees_big("up0", i == 0, || stream(host))?;
            ensure!(!seen, "family {i}: a frame above 64 KiB left by the uplink");
        }
    }
    Ok(())
}

#[test]
fn a_reload_changes_links_that_are_there() -> Result<()> {
    let lab = lab(true)?;
    for (on, want) in [(false, USUAL), (true, BIG)] {
        lab.device.configure(&config(on))?;
        lab.device.cli(&["reload"]).ok()?;
        for (link, sizes) in lab.all_sizes()? {
            ensure!(sizes == [want; 4], "{link}: {sizes:?}, not {want}");
        }
    }
    lab.streams()
}

#[test]
fn a_bridge_of_somebody_else_keeps_its_sizes() -> Result<()> {
    let mut device = Device::new(&config(true))?;
    let _outside = device.outside("up0", &DEVICE, &HOST)?;
    device.ns.ip("link add pvbr3 gso_max_size 50000 type bridge")?;
    let before = sizes(&device.ns, "pvbr3")?;
    ensure!(before[0] == 50_000, "{before:?}");
    device.start()?;
    let a = device.attach("a", "internal")?;
    ensure!(sizes(&device.ns, a.host_if())? == [BIG; 4], "the container's link");
    ensure!(sizes(&device.ns, "pvbr3")? == before, "changed");
    device.down()?;
    ensure!(sizes(&device.ns, "pvbr3")? == before, "changed by down");
    Ok(())
}
