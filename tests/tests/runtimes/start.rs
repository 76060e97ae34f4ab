//! Containers that pv-net starts, stops and restarts by their runtimes.

use crate::starter::{SERVES, Starter};
use crate::story::published;
use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, configs, eventually};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Whether a name has addresses.
fn resolves(starter: &Starter, name: &str) -> Result<bool> {
    let answer = starter.lab.device.json(&["resolve", &format!("{name}.pv.local")])?;
    Ok(answer.to_string().contains("10.0.3."))
}

fn gone_from_names_and_ports(starter: &Starter, lease: &str) -> Result<()> {
    ensure!(!resolves(starter, "web")?, "still in DNS");
    let ports = starter.lab.device.json(&["ports"])?;
    ensure!(!ports.to_string().contains("8080"), "{ports}");
    let flows = starter.lab.device.json(&["flows"])?;
    ensure!(!flows.to_string().contains(lease), "flows are left: {flows}");
    let leases = starter.lab.device.json(&["leases"])?;
    ensure!(leases.to_string().contains(lease), "the lease is gone: {leases}");
    Ok(())
}

/// Kills a container's first process.
fn kill_first(pid: Option<u64>) -> Result<()> {
    let pid = i32::try_from(pid.context("no process")?)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill")
}

fn story(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    starter.declare("web", SERVES, json!({"stop_timeout": 60}))?;
    lives(&mut starter)
}

/// The container `web` starts, restarts, ends by itself, and is stopped; daemon and runner are killed in between.
pub fn lives(starter: &mut Starter) -> Result<()> {
    let kind = starter.kind;
    let view = starter.act("start", "web")?;
    ensure!(view["state"] == "attached" && view["runtime"]["state"] == "running", "{view}");
    let own = starter.identity("web")?;
    eventually(SOON, || published(&starter.lab))?;
    ensure!(resolves(starter, "web")?, "not in DNS");
    let pid = starter.becomes("web", "running")?;
    let again = starter.lab.device.cli(&["containers", "start", "web"]);
    ensure!(again.code == Some(1) && again.stderr.contains("running already"), "{again:?}");
    ensure!(starter.becomes("web", "running")? == pid, "another process");
    // The same addresses for another process.
    starter.act("restart", "web")?;
    ensure!(starter.becomes("web", "running")? != pid, "the same process");
    ensure!(starter.identity("web")? == own, "another identity after a restart");
    eventually(SOON, || published(&starter.lab))?;
    survives_kills(starter, &own)?;
    // A container that ends by itself is gone at once, and its lease stays.
    let pid = starter.becomes("web", "running")?;
    // Something that holds its namespace keeps its links from going with it.
    let held = fs::File::open(format!("/proc/{}/ns/net", pid.context("no process")?))?;
    kill_first(pid)?;
    let begun = Instant::now();
    eventually(SOON, || gone_from_names_and_ports(starter, &own[0]))?;
    eprintln!("{kind}: gone after {:?}", begun.elapsed());
    starter.lab.no_links()?;
    drop(held);
    starter.becomes("web", "failed")?;
    let view = starter.lab.view("web")?;
    ensure!(
        view["conditions"].to_string().contains("signal 9") || view["conditions"].to_string().contains("by itself"),
        "{view}"
    );
    starter.lab.no_links()?;
    starter.act("start", "web")?;
    ensure!(starter.identity("web")? == own, "another identity after its end");
    // Stopped, it is asked to end.
    let begun = Instant::now();
    let view = starter.act("stop", "web")?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "it was killed: {:?}", begun.elapsed());
    let runtime = &view["runtime"];
    let is_stopped = runtime["state"] == "stopped" && runtime["pid"].is_null() && runtime["why"].is_null();
    ensure!(view["state"] == "detached" && is_stopped, "{view}");
    gone_from_names_and_ports(starter, &own[0])?;
    let again = starter.lab.device.cli(&["containers", "stop", "web"]);
    ensure!(again.code == Some(1) && again.stderr.contains("not running"), "{again:?}");
    ensure!(starter.lab.view("web")?["conditions"] == json!([]), "{}", starter.lab.view("web")?);
    starter.lab.no_links()?;
    ensure!(starter.kept()?.trim().is_empty(), "the runtime keeps {}", starter.kept()?);
    Ok(())
}

fn survives_kills(starter: &mut Starter, own: &[String; 3]) -> Result<()> {
    let pid = starter.becomes("web", "running")?;
    starter.lab.device.stop(Signal::SIGKILL)?;
    published(&starter.lab)?;
    starter.lab.device.start()?;
    ensure!(starter.becomes("web", "running")? == pid && starter.identity("web")? == *own, "not the same");
    published(&starter.lab)?;
    // Without a runner the daemon goes on, and says what is missing.
    starter.runner = None;
    let refused = starter.lab.device.cli(&["containers", "restart", "web"]);
    ensure!(refused.code == Some(1) && refused.stderr.contains("runner"), "{refused:?}");
    ensure!(refused.stderr.contains("help: start it with"), "{refused:?}");
    published(&starter.lab)?;
    starter.start_runner()?;
    ensure!(starter.becomes("web", "running")? == pid, "the new runner has not found it");
    // One that ends while neither runs is gone when they are back.
    starter.runner = None;
    starter.lab.device.stop(Signal::SIGKILL)?;
    kill_first(pid)?;
    starter.lab.device.start()?;
    starter.start_runner()?;
    eventually(SOON, || gone_from_names_and_ports(starter, &own[0]))?;
    eventually(SOON, || starter.act("start", "web"))?;
    ensure!(starter.identity("web")? == *own, "another identity after the kills");
    eventually(SOON, || published(&starter.lab))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_lxc() -> Result<()> {
    story("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_runc() -> Result<()> {
    story("runc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_crun() -> Result<()> {
    story("crun")
}

/// A daemon can start the runner itself. It goes on without that daemon, and is kept by the next one.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_daemon_starts_a_runner_where_nobody_else_does() -> Result<()> {
    let device = Device::new(&configs::masqueraded())?;
    let socket = device.file("run/runner.sock");
    let start = || {
        let log = fs::File::options().create(true).append(true).open(device.file("log"))?;
        let daemon = Process::start(device.command().args(["run", "--runner"]).stderr(log.try_clone()?).stdout(log))?;
        eventually(SOON, || device.json(&["status"]).with_context(|| device.log()))?;
        anyhow::Ok(daemon)
    };
    // The process that listens.
    let runner = || {
        let peer = eventually(SOON, || Ok(UnixStream::connect(&socket)?))?;
        anyhow::Ok(getsockopt(&peer, PeerCredentials)?.pid())
    };
    let first = start()?;
    let pid = runner()?;
    let kept = (|| {
        let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "others may connect: {mode:o}");
        let refused = device.cli(&["containers", "start", "nobody"]);
        ensure!(refused.code == Some(2) && refused.stderr.contains("not declared"), "{refused:?}");
        drop(first);
        ensure!(runner()? == pid, "the runner has ended with the daemon");
        let second = start()?;
        ensure!(runner()? == pid, "another runner");
        drop(second);
        Ok(())
    })();
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("end the runner")?;
    kept
}
