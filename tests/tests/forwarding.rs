//! Packets between containers, both families.

use anyhow::{Context, Result, ensure};
use harness::{AT_ONCE, Container, Device, SOON, configs, echo, eventually, frame, raw::RawSocket};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;

fn pairs(a: &Container, b: &Container) -> [(IpAddr, IpAddr); 2] {
    [(a.v4.into(), b.v4.into()), (a.v6.into(), b.v6.into())]
}

/// Fails unless every kind of traffic from `a` to `b` works, and the server sees the client's own address.
fn talks(a: &Container, b: &Container) -> Result<()> {
    let blob: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for (from, to) in pairs(a, b) {
        echo::serve(&b.ns, to, PORT)?;
        a.ns.ping(to, 20)?;
        let server = SocketAddr::new(to, PORT);
        ensure!(echo::tcp(&a.ns, server, &blob)?.ip() == from, "TCP: another client address");
        for size in [0, 1, 1200] {
            ensure!(echo::udp(&a.ns, server, &blob[..size])?.ip() == from, "UDP: another client address");
        }
    }
    Ok(())
}

#[test]
fn fragmented_datagrams_arrive_whole() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    let blob: Vec<u8> = (0..60_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    for to in b.addresses().into_iter().chain(c.addresses()) {
        let server = if to == b.addresses()[0] || to == b.addresses()[1] { &b } else { &c };
        echo::serve(&server.ns, to, PORT)?;
        for size in [1473, 9000, 60_000] {
            echo::udp(&a.ns, SocketAddr::new(to, PORT), &blob[..size])?;
        }
    }
    Ok(())
}

#[test]
fn containers_of_one_pool_talk_over_the_fast_path() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let grown = device.counted(|| talks(&a, &b))?;
    ensure!(grown["fast-path"] > 100 && grown["fast-path"] > 4 * grown["slow-path"], "{grown:?}");
    ensure!(grown["flow-table-full"] == 0, "{grown:?}");
    for container in [&a, &b] {
        container.ns.ping("10.0.3.1", 3)?;
        container.ns.ping("fd00:5056:0:3::1", 3)?;
    }
    Ok(())
}

#[test]
fn iperf3_streams_in_both_directions() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    for (_, to) in pairs(&a, &b) {
        for how in ["", "-R", "-u -b 50M"] {
            let server = harness::Process::start(b.ns.command("iperf3").args(["-s"]).stdout(Stdio::null()))?;
            let grown = device.counted(|| {
                // The server may not listen yet. With `-J` the exit status is 0 even so.
                eventually(SOON, || {
                    let said = a.ns.sh(&format!("iperf3 -J -c {to} -t 1 {how}"))?;
                    ensure!(!said.contains("\"error\""), "{said}");
                    Ok(())
                })
            })?;
            drop(server);
            ensure!(grown["fast-path"] > 1000, "{to} {how}: {grown:?}");
        }
    }
    Ok(())
}

#[test]
fn a_full_sized_ping_is_not_cut() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    a.ns.sh(&format!("ping -c 2 -M do -s 1472 -W 2 {}", b.v4))?;
    a.ns.sh(&format!("ping -c 2 -M do -s 1452 -W 2 {}", b.v6))?;
    // Larger packets are sent in fragments, by the bridge.
    a.ns.sh(&format!("ping -c 2 -s 8000 -W 2 {}", b.v4))?;
    a.ns.sh(&format!("ping -c 2 -s 8000 -W 2 {}", b.v6))?;
    Ok(())
}

#[test]
fn isolated_pools_answer_at_once() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    for (_, to) in pairs(&a, &b) {
        echo::serve(&b.ns, to, PORT)?;
        let start = Instant::now();
        let refused = a.ns.run(|| Ok(std::net::TcpStream::connect((to, PORT)).err()))?;
        ensure!(refused.as_ref().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused), "{to}: {refused:?}");
        ensure!(start.elapsed() < AT_ONCE, "refused only after {:?}", start.elapsed());

        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = a.ns.run(|| Ok(UdpSocket::bind((any, 0))?))?;
        socket.connect((to, PORT))?;
        socket.set_read_timeout(Some(echo::PATIENCE))?;
        socket.send(b"hello")?;
        let answer = socket.recv(&mut [0; 16]).err().context("a datagram crossed isolated pools")?;
        ensure!(
            matches!(answer.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
            "{to}: no ICMP error, but {answer:?}"
        );
        ensure!(a.ns.ping(to, 1).is_err(), "a ping crossed isolated pools");
    }
    let counters = device.counters()?;
    ensure!(counters["pool-isolated"] >= 6 && counters["answered"] >= 6, "{counters:?}");
    Ok(())
}

#[test]
fn a_denied_flow_is_an_event() -> Result<()> {
    use std::io::{BufRead, BufReader};
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    let mut command = device.command();
    command.args(["--json", "monitor"]).stdout(Stdio::piped());
    let mut monitor = command.spawn()?;
    let mut lines = BufReader::new(monitor.stdout.take().context("its output")?).lines();
    // The monitor may not have subscribed yet, so the connection is repeated.
    let stop = AtomicBool::new(false);
    let probe = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // The connection is refused, which the event reports.
                let _ = a.ns.run(|| Ok(std::net::TcpStream::connect((b.v4, PORT)).is_ok()));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let line = lines.next().context("no event");
        stop.store(true, Ordering::Relaxed);
        line
    });
    monitor.kill()?;
    monitor.wait()?;
    let event: serde_json::Value = serde_json::from_str(&probe??)?;
    ensure!(event["reason"] == "pool-isolated" && event["container"] == "a", "{event}");
    ensure!(event["dst"] == b.v4.to_string() && event["dport"] == PORT && event["proto"] == "tcp", "{event}");
    Ok(())
}

#[test]
fn open_pools_are_routed() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    let grown = device.counted(|| talks(&a, &b))?;
    ensure!(grown["fast-path"] > 100 && grown["pool-isolated"] == 0, "{grown:?}");
    // There is one hop between them, which answers from the gateway's address.
    for (to, gateway) in [(IpAddr::from(b.v4), "10.0.3.1"), (b.v6.into(), "fd00:5056:0:3::1")] {
        let said = a.ns.sh(&format!("ping -n -c 1 -W 2 -t 2 {to}"))?;
        ensure!(said.contains("ttl=63"), "{said}");
        let mut ping = a.ns.command("ping");
        let said = all_output(ping.args(["-n", "-c", "1", "-W", "2", "-t", "1", &to.to_string()]))?;
        ensure!(said.contains(&format!("From {gateway}")) && said.to_lowercase().contains("exceeded"), "{said}");
    }
    Ok(())
}

#[test]
fn what_is_too_big_for_the_next_pool_is_told() -> Result<()> {
    let mut config = configs::open_pools();
    config["network"]["pools"]["management"]["mtu"] = 1400.into();
    let device = Device::started(&config)?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    for (to, size) in [(IpAddr::from(b.v4), 1472), (b.v6.into(), 1452)] {
        let mut ping = a.ns.command("ping");
        ping.args(["-n", "-c", "2", "-W", "2", "-M", "do", "-s", &size.to_string(), &to.to_string()]);
        let said = all_output(&mut ping)?;
        ensure!(said.contains("1400"), "{to}: no MTU in: {said}");
    }
    // Streams work too.
    talks(&a, &b)?;
    ensure!(device.counters()?["too-big"] > 0, "none was too big");
    Ok(())
}

fn all_output(command: &mut std::process::Command) -> Result<String> {
    let done = command.output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
}

#[test]
fn the_bytes_arrive_as_they_were_sent() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    let (out, back) = (RawSocket::open(&a.ns, "eth0")?, RawSocket::open(&b.ns, "eth0")?);
    a.ns.ping("10.0.3.1", 1)?;
    let neighbour = a.ns.ip("neigh show 10.0.3.1")?;
    let gateway = frame::parse_mac(neighbour.split_whitespace().nth(4).context("no neighbour")?)?;
    let to_mac = b.mac()?;
    for (from, to) in pairs(&a, &b) {
        let packet = frame::udp((from, 5555), (to, 6666), b"payload of the packet");
        let kind = if from.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        out.send(&frame::ethernet(a.mac()?, gateway, kind, &packet))?;
        let arrived =
            back.receive(echo::PATIENCE, |f| f.starts_with(&to_mac) && f.ends_with(b"payload of the packet"))?;
        let arrived = arrived.with_context(|| format!("nothing arrived at {to}"))?;
        // The packet has one hop less, and so another IPv4 header checksum; everything else is as sent.
        let mut want = packet;
        if from.is_ipv4() {
            want[8] -= 1;
            want[10..12].copy_from_slice(&[0, 0]);
            let check = frame::checksum(&[&want[..20]]);
            want[10..12].copy_from_slice(&check);
        } else {
            want[7] -= 1;
        }
        ensure!(arrived[14..] == want[..], "{arrived:02x?}");
    }
    Ok(())
}
