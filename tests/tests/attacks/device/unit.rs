//! The daemon under the restrictions of the packaged unit: everything works.

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

/// Starts the daemon under the unit's restrictions. The start fails when one of them is not in effect.
fn start(device: &Device, unit: &Unit) -> Result<Process> {
    let confined = Confined::new(unit, device.file(""), [device.config(), device.file("containers")])?;
    let log = File::options().create(true).append(true).open(device.file("log"))?;
    let mut command = device.command();
    command.arg("run").stderr(log.try_clone()?).stdout(log);
    // SAFETY: between fork and exec it makes system calls with prepared values, and allocates nothing.
    unsafe { command.pre_exec(move || confined.enter()) };
    let mut daemon = Process::start(&mut command)?;
    let ready = eventually(SOON, || Ok(!daemon.has_ended()? && device.json(&["status"]).map(|_| true)?))?;
    ensure!(ready, "the daemon ended: {}", device.log());
    Ok(daemon)
}

/// Socket hooks, resets of waiting connections, the uplinks' filter, rules and published ports, a reload, and a detach:
/// each works, and there is no condition.
#[test]
fn under_the_packaged_unit_everything_works() -> Result<()> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        harness::skip("the packaged unit", "no systemd-analyze, that knows the groups of system calls");
        return Ok(());
    }
    let text = include_str!("../../../../packaging/pv-net.service");
    let unit = Unit::parse(text)?;
    ensure!(
        unit.words("RestrictAddressFamilies") == ["AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_INET", "AF_INET6"],
        "other families"
    );
    let mut config = configs::masqueraded();
    config["network"]["uplink_filter"] = json!({"deny": ["203.0.113.0/24"], "xdp": "generic"});
    config["network"]["policies"] =
        json!([{"name": "all", "from": {"pool": "internal"}, "to": "world", "action": "allow"}]);
    let device = Device::new(&config)?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    let daemon = start(&device, &unit)?;
    // The daemon keeps those of the unit's capabilities that it needs.
    let kept = json!(["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]);
    let held = device.json(&["doctor"])?["processes"][0].clone();
    ensure!(held["capabilities"] == kept && held["seccomp"] == true, "{held}");
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
    // An audit may find an address that the device has just got before the kernel's message about it is read.
    let log = device.log();
    let warned = log.lines().any(|line| line.contains("WARN") && !line.contains(" of the device: missing"));
    ensure!(!warned, "{log}");
    Ok(())
}
