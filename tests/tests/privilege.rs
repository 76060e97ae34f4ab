//! The daemon's privileges while it runs: five capabilities, no way to get more, and everything works with these.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS, UPLINK};
use harness::{Container, Device, Namespace, Process, SOON, echo, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

/// `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_PERFMON` and `CAP_BPF`, by their numbers in
/// `linux/capability.h`.
const DAEMON: u64 = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
/// `CAP_NET_ADMIN`, `CAP_SYS_PTRACE` and `CAP_SYS_ADMIN`.
const BROKER: u64 = 1 << 12 | 1 << 19 | 1 << 21;

/// The lines of a `status` file of `/proc`.
fn status(path: &str) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

fn numbers(dir: &str) -> Result<Vec<u32>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect()
}

/// Fails unless each thread of a process has `wanted` and nothing else, cannot get more, and has its system calls
/// filtered.
fn holds(pid: u32, wanted: u64) -> Result<()> {
    for thread in numbers(&format!("/proc/{pid}/task"))? {
        let found = status(&format!("/proc/{pid}/task/{thread}/status"))?;
        let set = |key: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(found.get(key).context("a set")?, 16)?);
        for (key, want) in [("CapEff", wanted), ("CapPrm", wanted), ("CapBnd", wanted), ("CapInh", 0), ("CapAmb", 0)] {
            ensure!(set(key)? == want, "{key} of thread {thread} ({}) is {:x}, not {want:x}", found["Name"], set(key)?);
        }
        ensure!(found["NoNewPrivs"] == "1" && found["Seccomp"] == "2", "thread {thread}: {found:?}");
    }
    Ok(())
}

fn broker_of(daemon: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"))?;
    let of_name = |pid: &u32| status(&format!("/proc/{pid}/status")).is_ok_and(|s| s["Name"] == "pv-net-broker");
    let mut brokers = children.split_whitespace().filter_map(|n| n.parse().ok()).filter(of_name);
    brokers.next().with_context(|| format!("no broker among {children}"))
}

fn config() -> Value {
    let mut config = configs::masqueraded();
    config["network"]["policies"] =
        json!([{"name": "all", "from": {"pool": "internal"}, "to": "world", "action": "allow"}]);
    config
}

fn web(device: &Device) -> Result<Container> {
    device.attach_run(&json!({"name": "web", "network": {"pool": "internal", "ports": ["8080:80"]}}))
}

/// Fails unless the container reaches the outside by both families, and is reached by its published port.
fn works(device: &Device, web: &Container, out: &Namespace) -> Result<()> {
    for (host, own) in HOSTS {
        web.ns.ping(host, 2)?;
        echo::tcp(out, SocketAddr::new(own, 8080), b"from outside")?;
        echo::tcp(&device.ns, SocketAddr::new(own, 8080), b"from the device")?;
    }
    Ok(())
}

#[test]
fn the_daemon_holds_five_capabilities_and_everything_works() -> Result<()> {
    let mut device = Device::new(&config())?;
    // Made before the start: an uplink that appears later is used only a moment later.
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let pid = device.daemon()?.pid();
    holds(pid, DAEMON)?;
    let broker = broker_of(pid)?;
    holds(broker, BROKER)?;
    ensure!(numbers(&format!("/proc/{broker}/task"))?.len() == 1, "the broker has threads");

    let first = web(&device)?;
    echo::serve(&first.ns, "::".parse()?, 80)?;
    works(&device, &first, &out)?;
    // A container by its process id too: opening that namespace needs a capability that only the broker has.
    let ns = Namespace::new("pid")?;
    let sleeps = Process::start(ns.command("sleep").arg("60"))?;
    device.cli(&["attach", "by-pid", "--pid", &sleeps.pid().to_string(), "--pool", "internal"]).ok()?;
    ns.ping("10.0.3.1", 1)?;
    // Changes that concern several threads, and both ends of links.
    let mut other = config();
    other["network"]["pools"]["internal"]["big_tcp"] = json!(false);
    device.configure(&other)?;
    device.cli(&["reload"]).ok()?;
    device.json(&["flows"])?;
    device.json(&["policy", "explain", "web", "world", "tcp/443"])?;
    works(&device, &first, &out)?;
    device.cli(&["detach", "by-pid"]).ok()?;
    holds(pid, DAEMON)?;

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        device.stop(signal)?;
        eventually(SOON, || {
            ensure!(fs::metadata(format!("/proc/{broker}")).is_err(), "the broker stays after {signal}");
            Ok(())
        })?;
        device.start()?;
        holds(device.daemon()?.pid(), DAEMON)?;
        works(&device, &first, &out)?;
    }
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    device.cli(&["detach", "web"]).ok()?;
    ensure!(first.ns.ip("-o link show dev eth0").is_err(), "the link is still there");
    device.down()?;
    ensure!(!device.log().contains("WARN"), "{}", device.log());
    Ok(())
}

/// Without its broker the daemon cannot enter namespaces, and it has no capability to start another broker: it logs
/// that and ends. Attached containers go on, and the next daemon works fully.
#[test]
fn without_its_broker_the_daemon_ends_and_the_next_one_is_whole() -> Result<()> {
    let mut device = Device::new(&config())?;
    // Made before the start: an uplink that appears later is used only a moment later.
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let first = web(&device)?;
    echo::serve(&first.ns, "::".parse()?, 80)?;
    let broker = broker_of(device.daemon()?.pid())?;
    // A terminal sends these signals to both processes; the broker ignores them and ends with the daemon.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(Pid::from_raw(i32::try_from(broker)?), ignored)?;
    }
    device.attach("more", "internal")?;
    kill(Pid::from_raw(i32::try_from(broker)?), Signal::SIGKILL)?;
    let status = device.ends()?;
    ensure!(status.code() == Some(1), "{status:?}: {}", device.log());
    ensure!(device.log().contains("error: the broker has ended"), "{}", device.log());
    ensure!(device.log().contains("help: start pv-net again"), "{}", device.log());
    works(&device, &first, &out)?;
    device.start()?;
    holds(device.daemon()?.pid(), DAEMON)?;
    works(&device, &first, &out)?;
    device.attach("again", "internal")?;
    Ok(())
}

#[test]
fn doctor_tells_what_the_daemon_holds() -> Result<()> {
    let device = Device::new(&config())?;
    ensure!(device.cli(&["doctor"]).stdout.contains("no daemon runs"), "without a daemon");
    let device = Device::started(&config())?;
    let all = device.json(&["doctor"])?["processes"].clone();
    let daemon = json!(["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]);
    let broker = json!(["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
    for (found, (role, wanted)) in [("daemon", daemon), ("broker", broker)].into_iter().enumerate() {
        let held = &all[found];
        ensure!(held["role"] == role && held["capabilities"] == wanted, "{all}");
        ensure!(held["no_new_privs"] == true && held["seccomp"] == true, "{all}");
    }
    ensure!(all[0]["pid"] == device.daemon()?.pid(), "{all}");
    let said = device.cli(&["doctor"]).ok()?;
    ensure!(said.contains("CAP_BPF; no_new_privs; system calls filtered"), "{said}");
    Ok(())
}
