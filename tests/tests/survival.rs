//! SIGKILL, restarts and damaged state: packets, leases and links are not affected.

use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, Snapshot, configs, echo, eventually};
use nix::sys::signal::Signal;
use pv_net::ipam::store;
use pv_net::lease::record;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
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
            // New flows work too, since the data plane is in the kernel.
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
fn leases_that_are_lost_are_learned_again_from_the_containers() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let (a, _b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    let leases = device.json(&["leases"])?;
    let file = device.file("state").join("leases");
    for damage in [None, Some(b"" as &[u8]), Some(b"pv-net leases 1\n\0\0\0")] {
        device.stop(Signal::SIGKILL)?;
        match damage {
            Some(damage) => std::fs::write(&file, damage)?,
            None => std::fs::remove_file(&file)?,
        }
        device.start()?;
        let conditions = device.json(&["status"])?["conditions"].to_string();
        ensure!(conditions.contains("lease of a learned again"), "{conditions}");
        ensure!(conditions.contains("leases lost") == damage.is_some(), "{conditions}");
        let again = device.json(&["leases"])?;
        ensure!(again == leases, "{leases} became {again}");
        ensure!(std::fs::metadata(&file)?.mode() & 0o777 == 0o600, "others can read it");
        // A complete file again, so there is no condition.
        device.stop(Signal::SIGTERM)?;
        device.start()?;
        let conditions = device.json(&["status"])?["conditions"].to_string();
        ensure!(!conditions.contains("lease"), "{conditions}");
    }
    let c = device.attach("c", "internal")?;
    ensure!(c.v4 != a.v4, "{} was given twice", c.v4);
    Ok(())
}

#[test]
fn a_lease_of_a_container_that_nobody_knows_any_more_stays_until_it_is_detached() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let a = device.attach("a", "internal")?;
    let v4 = a.v4;
    device.stop(Signal::SIGKILL)?;
    std::fs::remove_file(device.file("state").join("state.json"))?;
    drop(a);
    eventually(SOON, || {
        let links = device.ns.ip("link")?;
        ensure!(!links.contains("pva-"), "{links}");
        Ok(())
    })?;
    device.start()?;
    ensure!(device.json(&["containers"])?.as_array().is_some_and(Vec::is_empty), "it is known");
    ensure!(device.json(&["leases"])?.to_string().contains(&v4.to_string()), "its lease is lost");
    device.cli(&["detach", "a"]).ok()?;
    ensure!(device.json(&["leases"])?.as_array().is_some_and(Vec::is_empty), "its lease stays");
    ensure!(device.cli(&["detach", "a"]).code == Some(1), "it has nothing any more");
    Ok(())
}

#[test]
fn leases_of_an_older_state_file_stay() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let a = device.attach("a", "internal")?;
    let leases = device.json(&["leases"])?;
    device.stop(Signal::SIGKILL)?;
    // The state as an earlier version has written it.
    let dir = device.file("state");
    let (mut state, _) = store::load(&dir)?;
    let found = record::decode(&std::fs::read(dir.join("leases"))?).map_err(anyhow::Error::msg)?;
    state.ipam = Some(found.ipam);
    store::save(&dir, &state)?;
    std::fs::remove_file(dir.join("leases"))?;
    device.start()?;
    let again = device.json(&["leases"])?;
    ensure!(again == leases, "{leases} became {again}");
    ensure!(!std::fs::read_to_string(dir.join("state.json"))?.contains("ipam"), "they are in both files");
    let conditions = device.json(&["status"])?["conditions"].to_string();
    ensure!(!conditions.contains("lease"), "{conditions}");
    device.down()?;
    ensure!(std::fs::read_dir(&dir)?.next().is_none(), "down left something");
    drop(a);
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
