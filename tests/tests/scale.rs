//! Many containers, and many cycles of attach and detach: what they cost, and that nothing is left.

use anyhow::{Context, Result, anyhow, ensure};
use harness::{Container, Device, Namespace, Process, Snapshot, configs, echo, eventually, output};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// Locked for writing while time is measured, so that other work of these tests waits.
static BESIDE: RwLock<()> = RwLock::new(());

/// Limits for a release build of the daemon; a debug build is several times larger and slower.
struct Limits {
    attach_200: Duration,
    resident_kib: u64,
}

fn limits() -> Result<Limits> {
    let shipped = harness::binary()?.components().any(|part| part.as_os_str() == "release");
    Ok(if shipped {
        Limits { attach_200: Duration::from_secs(10), resident_kib: 24 * 1024 }
    } else {
        Limits { attach_200: Duration::from_secs(60), resident_kib: 96 * 1024 }
    })
}

fn resident_kib(device: &Device) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", device.daemon()?.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How long the daemon was ready to run while others had the CPU; zero where the kernel does not tell.
fn kept_waiting(device: &Device) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{}/schedstat", device.daemon()?.pid())).unwrap_or_default();
    let nanos = text.split_whitespace().nth(1).map_or(Ok(0), str::parse)?;
    Ok(Duration::from_nanos(nanos))
}

fn attach(device: &Device, name: &str, ns: &Namespace, pool: &str) -> Result<Value> {
    device.json(&["attach", name, "--netns", &ns.path().display().to_string(), "--pool", pool])
}

#[test]
fn two_hundred_containers() -> Result<()> {
    let limits = limits()?;
    let mut device = Device::started(&configs::two_pools())?;
    let names: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
    let namespaces = names.iter().map(|name| Namespace::new(name)).collect::<Result<Vec<_>>>()?;
    let alone = BESIDE.write().unwrap_or_else(PoisonError::into_inner);
    let (start, waited) = (Instant::now(), kept_waiting(&device)?);
    // Several at the same time, as at boot.
    let all: Vec<_> = names.iter().zip(&namespaces).collect();
    let attach_some = |part: &[(&String, &Namespace)]| {
        part.iter().try_for_each(|(name, ns)| attach(&device, name, ns, "internal").map(drop))
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = all.chunks(50).map(|part| scope.spawn(move || attach_some(part))).collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow!("an attaching thread"))?)
    })?;
    let took = start.elapsed();
    let busy = took.saturating_sub(kept_waiting(&device)? - waited);
    drop(alone);
    let resident = resident_kib(&device)?;
    println!("200 containers attached in {took:.2?}, {busy:.2?} of it pv-net's; the daemon has {resident} KiB");
    // CPU time that other programs used does not count.
    ensure!(busy < limits.attach_200, "200 containers took {busy:?} of {took:?}");
    ensure!(resident < limits.resident_kib, "the daemon has {resident} KiB");

    let leases = device.json(&["leases"])?;
    ensure!(leases.as_array().map(Vec::len) == Some(200), "{leases}");
    let address = |n: usize, key: &str| leases[n][key].as_str().map(str::to_owned).context("an address");
    let mut all: Vec<String> = (0..200).map(|n| address(n, "ipv4_address")).collect::<Result<_>>()?;
    all.sort();
    all.dedup();
    ensure!(all.len() == 200, "an address was given twice");

    device.stop(Signal::SIGKILL)?;
    let start = Instant::now();
    device.start()?;
    println!("restarted in {:.2?}; the daemon has {} KiB", start.elapsed(), resident_kib(&device)?);
    let adopted = &device.json(&["status"])?["adopted"];
    ensure!(*adopted == json!({"maps": true, "programs": true, "links": 200, "containers": 200}), "adopted {adopted}");
    ensure!(device.json(&["leases"])? == leases, "the leases changed");
    ensure!(resident_kib(&device)? < limits.resident_kib, "the daemon has {} KiB", resident_kib(&device)?);
    for (from, to) in [(0, 199), (199, 100)] {
        // Leases are sorted by name, so the name finds the namespace.
        let name = leases[from]["container"].as_str().context("a name")?;
        let at = names.iter().position(|n| n == name).context("its namespace")?;
        namespaces[at].ping(address(to, "ipv4_address")?, 2)?;
        namespaces[at].ping(address(to, "ipv6_address")?, 2)?;
    }
    device.down()
}

/// Counts of everything that a detached container could leave behind.
#[derive(Debug)]
struct Footprint {
    maps: BTreeMap<&'static str, usize>,
    leases: Value,
    containers: Value,
    open_files: usize,
    kernel: Snapshot,
}

impl Footprint {
    fn of(device: &Device) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for name in ["flows", "half_open", "endpoints", "interfaces"] {
            let pin = device.pins().join("maps").join(name);
            let dump = output(Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin))?;
            let entries: Value = serde_json::from_str(&dump).context(name)?;
            maps.insert(name, entries.as_array().context("a list")?.len());
        }
        Ok(Self {
            maps,
            leases: device.json(&["leases"])?,
            containers: device.json(&["containers"])?,
            open_files: std::fs::read_dir(format!("/proc/{}/fd", device.daemon()?.pid()))?.count(),
            kernel: Snapshot::of(device)?,
        })
    }

    /// Fails with the differences, unless they go away soon.
    fn is_again(&self, device: &Device) -> Result<()> {
        eventually(PATIENCE, || {
            let now = Self::of(device)?;
            let changed = self.kernel.diff(&now.kernel);
            ensure!(changed.is_empty(), "left behind:\n{changed}");
            let same = self.maps == now.maps && self.leases == now.leases && self.containers == now.containers;
            // The connection of the last request may still have been open at the beginning.
            let files = now.open_files <= self.open_files;
            ensure!(same && files, "left behind: {:?} became {:?}", self.without_kernel(), now.without_kernel());
            Ok(())
        })
    }

    fn without_kernel(&self) -> impl std::fmt::Debug {
        (&self.maps, &self.leases, &self.containers, self.open_files)
    }
}

#[test]
fn a_thousand_cycles_leave_nothing_behind() -> Result<()> {
    // Two containers each.
    const ROUNDS: u32 = 500;
    let device = Device::started(&configs::open_pools())?;
    let (one, two) = (Namespace::new("one")?, Namespace::new("two")?);
    let round = |n: u32| -> Result<()> {
        let _beside = BESIDE.read().unwrap_or_else(PoisonError::into_inner);
        let pool = if n.is_multiple_of(2) { "internal" } else { "management" };
        attach(&device, "one", &one, "internal")?;
        let view = attach(&device, "two", &two, pool)?;
        if n.is_multiple_of(25) {
            for key in ["ipv4_address", "ipv6_address"] {
                one.ping(view[key].as_str().context(key)?, 2)?;
            }
        }
        device.cli(&["detach", "one"]).ok()?;
        device.cli(&["detach", "two"]).ok().map(drop)
    };
    // The first round makes things that stay, such as a directory of pins: these are no leak.
    round(0)?;
    round(1)?;
    // A bridge loses its carrier a moment after its last port.
    eventually(PATIENCE, || {
        let links = device.ns.ip("-o link")?;
        ensure!(links.matches("NO-CARRIER").count() == 2, "{links}");
        Ok(())
    })?;
    let before = Footprint::of(&device)?;
    ensure!(before.maps.values().all(|n| *n == 0), "{before:?}");
    let resident = resident_kib(&device)?;
    let start = Instant::now();
    for n in 2..ROUNDS + 2 {
        round(n).with_context(|| format!("round {n}"))?;
    }
    println!("{} cycles in {:.1?}", ROUNDS * 2, start.elapsed());
    before.is_again(&device)?;
    let grown = resident_kib(&device)?.saturating_sub(resident);
    ensure!(grown < 2048, "the daemon grew by {grown} KiB");
    Ok(())
}

#[test]
fn detaching_twice_is_told() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let before = Footprint::of(&device)?;
    let a = device.attach("a", "internal")?;
    device.cli(&["detach", "a"]).ok()?;
    for name in ["a", "never-there"] {
        let reply = device.cli(&["detach", name]);
        ensure!(reply.code == Some(1), "{reply:?}");
        let error = format!("error: container {name}: is not attached\n");
        ensure!(reply.stderr.starts_with(&error) && reply.stderr.contains("help: "), "{}", reply.stderr);
    }
    ensure!(!a.ns.ip("-o link")?.contains("eth0"), "the interface is still there");
    // The bridge has had a carrier by now, and keeps its link-local address; everything else is as before.
    let now = Footprint::of(&device)?;
    ensure!((now.maps, now.leases, now.containers) == (before.maps, before.leases, before.containers), "left behind");
    Ok(())
}

#[test]
fn detaching_under_traffic_ends_its_flows_alone() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let c = device.attach("c", "management")?;
    let stream = |from: &Container, to: &Container, server: &Process| {
        ensure!(server.pid() > 0, "no server");
        let to = to.v6.to_string();
        // The server may not listen yet.
        eventually(PATIENCE, || {
            let line = from.ns.sh(&format!("iperf3 -c {to} -n 1M"))?;
            ensure!(line.contains("receiver"), "{line}");
            Ok(())
        })?;
        Process::start(from.ns.command("iperf3").args(["-c", &to, "-t", "60", "-b", "100M"]).stdout(Stdio::null()))
    };
    let server = |c: &Container| Process::start(c.ns.command("iperf3").arg("-s").stdout(Stdio::null()));
    let servers = [server(&b)?, server(&c)?];
    let (mut doomed, mut other) = (stream(&a, &b, &servers[0])?, stream(&a, &c, &servers[1])?);
    let packets = |to: &Container| -> Result<u64> {
        let flows = device.json(&["flows"])?;
        let to = to.v6.to_string();
        let mine = flows.as_array().into_iter().flatten().filter(|f| f["dst"] == to || f["src"] == to);
        Ok(mine.filter_map(|f| f["packets"].as_u64()).sum())
    };
    for to in [&b, &c] {
        eventually(PATIENCE, || {
            ensure!(packets(to)? > 1000, "no traffic to {}", to.v6);
            Ok(())
        })?;
    }
    ensure!(!doomed.has_ended()? && !other.has_ended()?, "a stream ended by itself");
    device.cli(&["detach", "b"]).ok()?;
    ensure!(packets(&b)? == 0, "flows of a detached container");
    let seen = packets(&c)?;
    eventually(PATIENCE, || {
        ensure!(packets(&c)? > seen + 1000, "the other stream stands still");
        Ok(())
    })?;
    ensure!(!other.has_ended()?, "the other stream ended");
    // The sender goes on for a while: its packets find no endpoint, and open no flow.
    ensure!(packets(&b)? == 0, "flows of a detached container came back");
    Ok(())
}

#[test]
fn a_namespace_that_goes_away_takes_its_entries_along_and_keeps_its_lease() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let leases = device.json(&["leases"])?;
    for to in b.addresses() {
        echo::serve(&b.ns, to, 7000)?;
        echo::tcp(&a.ns, SocketAddr::new(to, 7000), &[3; 10_000])?;
    }
    let (host_if, addresses) = (b.host_if().to_owned(), b.addresses());
    // A namespace lives as long as sockets in it: the echo servers keep this one, so the test deletes the link.
    b.ns.ip("link del eth0")?;
    drop(b);
    eventually(PATIENCE, || {
        let footprint = Footprint::of(&device)?;
        let (maps, pins) = (&footprint.maps, device.pinned()?);
        ensure!(maps["interfaces"] == 1 && maps["endpoints"] == 3 && maps["flows"] == 0, "{maps:?}");
        ensure!(!pins.contains(&host_if), "{pins}");
        Ok(())
    })?;
    let state = device.json(&["containers"])?[1]["state"].clone();
    ensure!(state == "detached", "{state}");
    ensure!(device.json(&["leases"])? == leases, "a lease was lost");
    let again = device.attach("b", "internal")?;
    ensure!(again.addresses() == addresses, "{:?}", again.addresses());
    a.ns.ping(again.v4, 2)?;
    // The whole namespace goes, since nothing holds it.
    drop(again);
    eventually(PATIENCE, || {
        ensure!(device.json(&["containers"])?[1]["state"] == "detached", "not noticed");
        Ok(())
    })?;
    device.cli(&["detach", "b"]).ok()?;
    ensure!(device.json(&["leases"])?.as_array().map(Vec::len) == Some(1), "the lease stays after a detach");
    Ok(())
}
