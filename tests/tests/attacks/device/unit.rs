//! The daemon as the packaged unit runs it: with nothing but what the unit allows, everything works.

mod confine;

use anyhow::{Context, Result, ensure};
use confine::{Confined, Unit};
use harness::configs::{self, DEVICE, HOST, HOSTS, UPLINK};
use harness::{Device, Process, SOON, echo, eventually, patience};
use serde_json::json;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts the daemon under the unit's restrictions. It does not start where it could do more than they allow.
fn start(device: &Device, unit: &Unit) -> Result<Process> {
    let confined = Confined::new(unit, device.file(""))?;
    let log = File::options().create(true).append(true).open(device.file("log"))?;
    let mut command = device.command();
    command.arg("run").stderr(log.try_clone()?).stdout(log);
    // SAFETY: between fork and exec it makes system calls with what was prepared before, and allocates nothing.
    unsafe { command.pre_exec(move || confined.enter()) };
    let mut daemon = Process::start(&mut command)?;
    let ready = eventually(SOON, || Ok(!daemon.has_ended()? && device.json(&["status"]).map(|_| true)?))?;
    ensure!(ready, "the daemon ended: {}", device.log());
    Ok(daemon)
}

/// Socket hooks, resets of connections that wait, the uplinks' filter, rules and published ports, a reload and a
/// container's end: none is a condition, and each does what it should.
#[test]
fn under_the_packaged_unit_everything_works() -> Result<()> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        harness::skip("the packaged unit", "no systemd-analyze, that knows the groups of system calls");
        return Ok(());
    }
    let text = include_str!("../../../../packaging/pv-net.service");
    let unit = Unit::parse(text)?;
    ensure!(unit.words("RestrictAddressFamilies") == ["AF_UNIX", "AF_NETLINK", "AF_PACKET"], "other families");
    let mut config = configs::masqueraded();
    config["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"], "xdp": "generic"});
    config["network"]["policies"] =
        json!([{"name": "all", "from": {"pool": "internal"}, "to": "world", "action": "allow"}]);
    let device = Device::new(&config)?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    let daemon = start(&device, &unit)?;
    let a = device.attach_run(&json!({"name": "a", "network": {"pool": "internal", "ports": ["8080:80"]}}))?;
    echo::serve(&a.ns, Ipv6Addr::UNSPECIFIED.into(), 80)?;
    echo::serve(&out, Ipv6Addr::UNSPECIFIED.into(), 7000)?;
    for at in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), HOSTS[0].1, HOSTS[1].1] {
        let at = SocketAddr::new(at, 8080);
        echo::tcp(&device.ns, at, b"by the socket hooks").with_context(|| format!("{at} from the device"))?;
    }
    device.cli(&["reload"]).ok()?;
    let status = device.json(&["status"])?;
    ensure!(status["conditions"] == json!([]), "{}", status["conditions"]);
    ensure!(status["uplinks"][0]["xdp"] == "generic", "{}", status["uplinks"]);
    for (family, (host, _)) in HOSTS.into_iter().enumerate() {
        let mut stream = echo::connect(&a.ns, SocketAddr::new(host, 7000))?;
        stream.set_read_timeout(Some(patience(SOON)))?;
        let mut buffer = [0; 100];
        ensure!(stream.read(&mut buffer)? > 0, "no greeting of {host}");
        device.ns.ip(&format!("addr del {} dev {UPLINK}", DEVICE[family]))?;
        let end = stream.read(&mut buffer).map_err(|e| e.kind());
        ensure!(end == Err(ErrorKind::ConnectionReset), "{host}: a connection that waits: {end:?}");
    }
    device.cli(&["detach", "a"]).ok()?;
    device.cli(&["down"]).ok()?;
    drop(daemon);
    ensure!(!device.log().contains("WARN"), "{}", device.log());
    Ok(())
}
