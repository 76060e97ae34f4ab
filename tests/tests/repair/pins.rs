//! Pins, stages, and the entries that go with a link's: the daemon holds them open, and puts them back.

use super::changes::lab;
use anyhow::{Context, Result, ensure};
use harness::{Device, SOON, eventually};
use nix::sys::signal::Signal;
use pv_net_common::names;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The pins of maps and of the data plane's programs, with the kernel's ids. Programs that are loaded when they are needed
/// are loaded again, and have other ids then.
fn pins(device: &Device) -> Result<BTreeMap<PathBuf, u64>> {
    let mut all = BTreeMap::new();
    let mut add = |kind: &str, dir: &Path| -> Result<()> {
        for file in std::fs::read_dir(dir)? {
            let path = file?.path();
            let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
            if name.starts_with("pv_sock_") || name.starts_with("pv_xdp_") {
                continue;
            }
            let kind = if path.ends_with(names::MAP_STAGES) { "map" } else { kind };
            let shown = device.ns.sh(&format!("bpftool -j {kind} show pinned {}", path.display()))?;
            let shown: Value = serde_json::from_str(&shown)?;
            all.insert(path, shown["id"].as_u64().context("an id")?);
        }
        Ok(())
    };
    add("map", &device.pins().join("maps"))?;
    add("prog", &programs(device)?)?;
    Ok(all)
}

fn programs(device: &Device) -> Result<PathBuf> {
    let first = std::fs::read_dir(device.pins().join("programs"))?.next().context("no programs")?;
    Ok(first?.path())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn they_come_back() -> Result<()> {
    let mut lab = lab(false)?;
    let before = pins(&lab.device)?;
    let (maps, programs) = (lab.device.pins().join("maps"), programs(&lab.device)?);
    std::fs::remove_file(maps.join(names::MAP_ENDPOINTS))?;
    std::fs::remove_file(maps.join(names::MAP_HALF_OPEN))?;
    std::fs::remove_file(programs.join("pv_stage_open"))?;
    // Another map in the place of one.
    std::fs::remove_file(maps.join(names::MAP_DROPS))?;
    std::fs::hard_link(maps.join(names::MAP_STATS), maps.join(names::MAP_DROPS)).or_else(|_| {
        let (stats, drops) = (maps.join(names::MAP_STATS), maps.join(names::MAP_DROPS));
        lab.device.ns.sh(&format!("bpftool map pin pinned {} {}", stats.display(), drops.display())).map(drop)
    })?;
    // The kernel would empty it if nobody held it.
    std::fs::remove_file(programs.join(names::MAP_STAGES))?;
    lab.well()?;
    for words in [
        &["maps/endpoints: not pinned any more", "put back"][..],
        &["maps/half_open: not pinned any more", "put back"],
        &["pv_stage_open: not pinned any more", "put back"],
        &["maps/drops: another one is pinned", "put back"],
        &["stages: not pinned any more", "put back"],
    ] {
        lab.monitor.says(words)?;
    }
    ensure!(pins(&lab.device)? == before, "{:#?} instead of {before:#?}", pins(&lab.device)?);

    let index = lab.index(lab.a.host_if())?;
    lab.forget(names::MAP_FLOW_LIMITS, &index.to_ne_bytes())?;
    let stage = names::PROG_STAGES.iter().position(|name| *name == "pv_stage_open").context("a stage")?;
    let key: Vec<String> = u32::try_from(stage)?.to_ne_bytes().iter().map(ToString::to_string).collect();
    let stages = programs.join(names::MAP_STAGES);
    lab.device.ns.sh(&format!("bpftool map delete pinned {} key {}", stages.display(), key.join(" ")))?;
    lab.monitor.says(&["pv_stage_open: not in the map stages", "put back"])?;
    lab.monitor.says(&["another limit or no count of its flows", "put back"])?;
    lab.well()?;
    lab.guarded()?;

    // The directories too. The next daemon adopts everything.
    std::fs::remove_dir_all(&maps)?;
    std::fs::remove_dir_all(&programs)?;
    eventually(SOON, || {
        let now = pins(&lab.device)?;
        let other: Vec<_> = before.iter().filter(|(path, id)| now.get(*path) != Some(*id)).collect();
        let more: Vec<_> = now.keys().filter(|path| !before.contains_key(*path)).collect();
        ensure!(other.is_empty() && more.is_empty(), "not put back: {other:?}; more: {more:?}");
        Ok(())
    })?;
    // What is loaded when it is needed is attached anew, with the same look.
    lab.monitor.says(&["filter (generic) on uplink"])?;
    lab.monitor.says(&["socket hook"])?;
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    ensure!(pins(&lab.device)? == before, "the next daemon has others");
    lab.well()
}
