//! SIGKILL, restarts and torn state: packets, leases and links do not notice.

use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, Snapshot, configs, echo};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

const KILLS: usize = 20;

#[test]
fn twenty_kills_under_load_lose_nothing() -> Result<()> {
    let mut device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    let leases = device.json(&["leases"])?;
    let before = Snapshot::of(&device)?;

    let server = Process::start(b.ns.command("iperf3").args(["-s", "-1"]).stdout(Stdio::null()))?;
    b.ns.listens(5201)?;
    let target = b.v6.to_string();
    let stream = Process::start(
        a.ns.command("iperf3").args(["-J", "-c", &target, "-t", "600", "-b", "200M"]).stdout(Stdio::null()),
    )?;
    let ping = |to: String| {
        let mut command = a.ns.command("ping");
        Process::start(command.args(["-n", "-q", "-i", "0.005", "-W", "5", &to]).stdout(Stdio::piped()))
    };
    let pings = [ping(b.v4.to_string())?, ping(b.v6.to_string())?, ping(c.v4.to_string())?, ping(c.v6.to_string())?];
    for round in 0..KILLS {
        device.stop(Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_millis(50));
        device.start()?;
        let status = device.json(&["status"])?;
        let adopted = &status["adopted"];
        ensure!(
            adopted["maps"] == true && adopted["links"] == 3 && adopted["containers"] == 3,
            "kill {round}: adopted {adopted}"
        );
        ensure!(device.json(&["leases"])? == leases, "kill {round}: the leases changed");
    }
    for ping in pings {
        ping.signal(Signal::SIGINT)?;
        let said = ping.finish(SOON)?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    let mut stream = stream;
    ensure!(!stream.has_ended()?, "the stream ended");
    drop((stream, server));
    let changed = before.diff(&Snapshot::of(&device)?);
    let beyond_programs: Vec<&str> = changed.lines().filter(|l| !l.starts_with("bpf:")).collect();
    ensure!(beyond_programs.is_empty(), "{changed}");
    Ok(())
}

#[test]
fn traffic_flows_with_no_daemon_and_after_a_clean_stop() -> Result<()> {
    let mut device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        device.stop(signal)?;
        for to in b.addresses() {
            a.ns.ping(to, 3)?;
            let port = 7100 + u16::from(signal == Signal::SIGTERM);
            echo::serve(&b.ns, to, port)?;
            // New flows too: all that decides is in the kernel.
            echo::tcp(&a.ns, SocketAddr::new(to, port), &[7; 100_000])?;
        }
        device.start()?;
    }
    Ok(())
}

#[test]
fn a_torn_state_file_is_set_aside_and_leases_are_learned_again() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let leases = device.json(&["leases"])?;
    for damage in [b"" as &[u8], b"{\"version\":1,\"torn", b"\0\0\0\0\0\0\0\0"] {
        device.stop(Signal::SIGKILL)?;
        std::fs::write(device.file("state").join("state.json"), damage)?;
        device.start()?;
        let status = device.json(&["status"])?;
        let conditions = status["conditions"].as_array().context("conditions")?;
        ensure!(conditions.iter().any(|c| c.as_str().is_some_and(|c| c.contains("state"))), "{conditions:?}");
        let again = device.json(&["leases"])?;
        let addresses = |v: &serde_json::Value| {
            let all = v.as_array().cloned().unwrap_or_default();
            all.iter()
                .map(|l| (l["container"].clone(), l["ipv4_address"].clone(), l["ipv6_address"].clone()))
                .collect::<Vec<_>>()
        };
        ensure!(addresses(&again) == addresses(&leases), "{leases} became {again}");
        a.ns.ping(b.v4, 2)?;
    }
    let c = device.attach("c", "internal")?;
    ensure!(c.v4 != a.v4 && c.v4 != b.v4, "{} was given twice", c.v4);
    Ok(())
}

#[test]
fn a_container_that_comes_back_keeps_its_address() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let first = device.attach("web", "internal")?;
    let addresses = first.addresses();
    drop(first);
    let other = device.attach("other", "internal")?;
    let second = device.attach("web", "internal")?;
    ensure!(second.addresses() == addresses, "{:?} after {addresses:?}", second.addresses());
    ensure!(other.addresses()[0] != addresses[0], "the address was given away");
    second.ns.ping(other.v4, 2)?;
    second.ns.ping(other.v6, 2)?;
    Ok(())
}
