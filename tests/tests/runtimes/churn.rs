//! Many starts and stops in a row, ten at a time: no link, address, pin, namespace or lease of them is left.

use crate::lab::{Lab, Runtime};
use crate::podman::{IN_POOL, Podman};
use crate::starter::{SERVES, Starter};
use anyhow::{Context, Result, anyhow, ensure};
use harness::{SOON, Snapshot, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

/// How many containers start at the same time.
const AT_ONCE: usize = 10;
/// How many starts there are in all, unless `PV_NET_STARTS` says so.
const STARTS: usize = 20;

fn names() -> Vec<String> {
    (0..AT_ONCE).map(|n| format!("c{n}")).collect()
}

/// How often each container is started. What the first round leaves is what the others must leave too.
fn rounds() -> usize {
    let starts = std::env::var("PV_NET_STARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(STARTS);
    starts.div_ceil(AT_ONCE).max(2)
}

/// Does something with each container at the same time, to the end of all.
fn each(names: &[String], act: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = names.iter().map(|name| scope.spawn(|| act(name))).collect();
        let done: Vec<_> = all.into_iter().map(|one| one.join().map_err(|_| anyhow!("a panic"))).collect();
        done.into_iter().try_for_each(|one| one?)
    })
}

/// A process's open files, without what distinguishes those of one kind, and without pipes: the broker keeps that of a
/// child which has ended until its next request.
fn open_files(pid: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One may be closed meanwhile.
        if let Ok(target) = fs::read_link(entry?.path()) {
            all.push(target.display().to_string().replace(|c: char| c.is_ascii_digit(), ""));
        }
    }
    all.retain(|kind| !kind.starts_with("pipe:"));
    Ok(all)
}

/// What is on the device while no container runs.
struct Device {
    network: Snapshot,
    /// Ids that the device's namespace has for others: one for each that a link leads into, as long as it exists.
    namespaces: String,
    /// How many open files of each kind the daemon, its broker and the runner have. An open namespace lives on.
    files: BTreeMap<String, usize>,
    leases: Value,
}

impl Device {
    fn of(lab: &Lab, runner: Option<u32>) -> Result<Self> {
        let daemon = lab.device.daemon()?.pid();
        let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"))?;
        let children = children.split_whitespace().map(str::to_owned);
        let processes = children.chain([daemon].into_iter().chain(runner).map(|pid| pid.to_string()));
        Ok(Self {
            network: Snapshot::of(&lab.device)?,
            namespaces: lab.device.ns.sh("ip netns list-id")?,
            files: processes.map(|pid| open_files(&pid)).collect::<Result<Vec<_>>>()?.into_iter().flatten().fold(
                BTreeMap::new(),
                |mut all, kind| {
                    *all.entry(kind).or_default() += 1;
                    all
                },
            ),
            leases: lab.device.json(&["leases"])?,
        })
    }

    fn is(&self, other: &Self) -> Result<()> {
        let diff = self.network.diff(&other.network);
        ensure!(diff.is_empty(), "{diff}");
        ensure!(self.namespaces == other.namespaces, "{}\nbecame\n{}", self.namespaces, other.namespaces);
        let more = other.files.iter().filter(|(kind, n)| self.files.get(*kind).is_none_or(|had| had < *n));
        let more: Vec<_> = more.collect();
        ensure!(more.is_empty(), "more open files than {:?}: {more:?}", self.files);
        ensure!(self.leases == other.leases, "{}\nbecame\n{}", self.leases, other.leases);
        Ok(())
    }
}

/// Starts and stops all containers, again and again.
fn churn(
    lab: &Lab,
    runner: Option<u32>,
    start: impl Fn(&str) -> Result<()> + Sync,
    stop: impl Fn(&str) -> Result<()> + Sync,
) -> Result<()> {
    let (names, begun) = (names(), Instant::now());
    let mut before = None;
    for round in 0..rounds() {
        let started = each(&names, &start);
        let stopped = each(&names, &stop);
        started.and(stopped).with_context(|| format!("round {round}"))?;
        lab.no_links()?;
        let Some(before) = &before else {
            // The kernel notes later that the bridges have no ports any more.
            eventually(SOON, || {
                let bridges = lab.device.ns.ip("-o link show type bridge")?;
                ensure!(!bridges.contains("state UP"), "{bridges}");
                Ok(())
            })?;
            before = Some(Device::of(lab, runner)?);
            continue;
        };
        eventually(SOON, || Device::is(before, &Device::of(lab, runner)?)).with_context(|| format!("round {round}"))?;
    }
    eprintln!("{} starts and stops: {:?}", rounds() * AT_ONCE, begun.elapsed());
    Ok(())
}

/// By pv-net's runner.
fn by_the_runner(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    for name in names() {
        starter.declare(&name, SERVES, json!({}))?;
    }
    let runner = starter.runner.as_ref().map(harness::Process::pid);
    let start = |name: &str| {
        starter.act("start", name)?;
        starter.identity(name).map(drop)
    };
    churn(&starter.lab, runner, start, |name| starter.act("stop", name).map(drop))?;
    let kept = starter.kept()?;
    ensure!(kept.trim().is_empty(), "the runtime keeps {kept}");
    // The leases are the declared containers' own.
    let leases = starter.lab.device.json(&["leases"])?;
    ensure!(leases.as_array().map(Vec::len) == Some(AT_ONCE), "{leases}");
    for name in names() {
        starter.lab.device.cli(&["detach", &name]).ok()?;
    }
    ensure!(starter.lab.device.json(&["leases"])? == json!([]), "leases are left");
    let left: Vec<_> = fs::read_dir(starter.lab.device.file("run-runner"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().display().to_string()))
        .filter(|name| name != "lock" && !name.ends_with(".stopped"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_starts_at_a_time_leave_nothing_of_lxc() -> Result<()> {
    by_the_runner("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_starts_at_a_time_leave_nothing_of_runc() -> Result<()> {
    by_the_runner("runc")
}

/// Nobody has declared these containers, so their leases end with them.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_starts_at_a_time_leave_nothing_of_podman() -> Result<()> {
    let lab = Lab::new("oci")?;
    // Its store is made by the first call.
    Podman.prepare(&lab, &names())?;
    let start = |name: &str| {
        let named = format!("pv-net.name={name}");
        Podman::run(&lab, name, &[IN_POOL[0], IN_POOL[1], "--annotation", &named])?;
        lab.attached(name).map(drop)
    };
    churn(&lab, None, start, |name| Podman.stop(&lab, name))?;
    eventually(SOON, || {
        let all = lab.device.json(&["containers"])?.to_string();
        ensure!(!all.contains("\"c0\""), "{all}");
        Ok(())
    })?;
    ensure!(lab.device.json(&["leases"])? == json!([]), "leases are left");
    Ok(())
}
