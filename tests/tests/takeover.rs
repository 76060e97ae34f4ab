//! A restart takes the earlier daemon's programs over when they are the ones that it would load itself; else it
//! replaces them.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use harness::{Container, Device, SOON, configs, echo, eventually, output};
use nix::sys::signal::Signal;
use pv_net_common::{GlobalConfig, names};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// The directory of the pinned programs; an error when there is more than one.
fn programs_dir(device: &Device) -> Result<PathBuf> {
    let mut dirs = below(&device.pins().join("programs"))?;
    ensure!(dirs.len() == 1, "{dirs:?}");
    dirs.pop().context("none")
}

/// The ids of the pinned programs, by name.
fn programs(device: &Device) -> Result<BTreeMap<String, u32>> {
    let id = |file: PathBuf| {
        let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
        Ok((name, ProgramInfo::from_pin(&file).with_context(|| file.display().to_string())?.id()))
    };
    let pins = below(&programs_dir(device)?)?.into_iter();
    pins.filter(|pin| !pin.ends_with(names::MAP_STAGES)).map(id).collect()
}

/// The ids of the pinned links by pin, each with its program's id.
fn links(device: &Device) -> Result<BTreeMap<PathBuf, (u32, u32)>> {
    let mut all = BTreeMap::new();
    for dir in below(&device.pins().join("links"))? {
        for pin in below(&dir)? {
            let info = FdLink::from(PinnedLink::from_pin(&pin)?).info()?;
            all.insert(pin, (info.id(), info.program_id()));
        }
    }
    Ok(all)
}

/// Fails unless each link runs the program that is pinned under the name of the link's directory or pin.
fn links_run_what_is_pinned(device: &Device) -> Result<()> {
    let (programs, links) = (programs(device)?, links(device)?);
    for name in names::PROG_STAGES.iter().chain([&names::PROG_CLOCK, &names::PROG_FROM_UPLINK]) {
        ensure!(programs.contains_key(*name), "{name} is not pinned: {programs:?}");
    }
    // Two links for each of two containers, and one for each of two bridges.
    ensure!(links.len() == 6 + names::PROG_SOCK.len(), "{links:?}");
    for (pin, (_, program)) in links {
        let names = pin.components().filter_map(|part| programs.get(part.as_os_str().to_str()?)).collect::<Vec<_>>();
        ensure!(names == [&program], "{} runs {program}, pinned are {programs:?}", pin.display());
    }
    Ok(())
}

/// Fails unless a new flow works, over both families.
fn talk(a: &Container, b: &Container, port: u16) -> Result<()> {
    for to in b.addresses() {
        echo::serve(&b.ns, to, port)?;
        echo::tcp(&a.ns, SocketAddr::new(to, port), &[7; 10_000])?;
    }
    Ok(())
}

fn taken_over(device: &Device) -> Result<bool> {
    device.json(&["status"])?["adopted"]["programs"].as_bool().context("adopted.programs")
}

fn lab() -> Result<(Device, Container, Container)> {
    let device = Device::started(&configs::open_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "management")?);
    Ok((device, a, b))
}

#[test]
fn a_restart_takes_over_the_programs() -> Result<()> {
    let (mut device, a, b) = lab()?;
    ensure!(!taken_over(&device)?, "there was nothing to take over");
    links_run_what_is_pinned(&device)?;
    let before = programs(&device)?;
    let tc = |device: &Device| -> Result<BTreeMap<PathBuf, (u32, u32)>> {
        let of_containers = |pin: &Path| !pin.starts_with(device.pins().join("links/sockets"));
        Ok(links(device)?.into_iter().filter(|(pin, _)| of_containers(pin)).collect())
    };
    let links_before = tc(&device)?;
    // A map of an earlier build that no program uses.
    let unused = device.pins().join("maps/unused");
    let stats = unused.with_file_name(names::MAP_STATS);
    output(Command::new("bpftool").args(["map", "pin", "pinned"]).arg(stats).arg(&unused))?;
    for (signal, port) in [(Signal::SIGKILL, 7100), (Signal::SIGTERM, 7101)] {
        device.stop(signal)?;
        device.start()?;
        ensure!(taken_over(&device)?, "after {signal}: not taken over");
        ensure!(!unused.exists(), "after {signal}: a map that nobody uses is still pinned");
        ensure!(programs(&device)? == before, "after {signal}: {:?} instead of {before:?}", programs(&device)?);
        ensure!(tc(&device)? == links_before, "after {signal}: the links changed");
        links_run_what_is_pinned(&device)?;
        talk(&a, &b, port)?;
    }
    let probe = device.pins().join("programs").join(programs_dir(&device)?).join(names::PROG_POLICY_PROBE);
    ensure!(!probe.exists(), "it is loaded with the first question");
    device.cli(&["policy", "explain", "a", "b", "tcp/80"]).ok()?;
    let said = output(Command::new("bpftool").args(["prog", "show", "pinned"]).arg(&probe))?;
    ensure!(said.contains("pv_policy_probe"), "{said}");
    device.down()?;
    ensure!(!device.pins().exists(), "pins are left");
    Ok(())
}

/// Replaces a pinned program by another program of the same kind.
fn swap(dir: &Path, name: &str, by: &str) -> Result<()> {
    let id = ProgramInfo::from_pin(dir.join(by))?.id().to_string();
    fs::remove_file(dir.join(name))?;
    output(Command::new("bpftool").args(["prog", "pin", "id", &id]).arg(dir.join(name))).map(drop)
}

#[test]
fn other_programs_are_replaced() -> Result<()> {
    let (mut device, a, b) = lab()?;
    type Tamper = fn(&Path, &Path) -> Result<()>;
    let tampers: [(&str, Tamper); 7] = [
        ("of another build", |dir, all| Ok(fs::rename(dir, all.join("0123456789abcdef"))?)),
        ("pinned half", |dir, all| {
            fs::remove_file(dir.join(names::PROG_STAGES[3]))?;
            Ok(fs::rename(dir, all.join("new"))?)
        }),
        ("without one", |dir, _| Ok(fs::remove_file(dir.join(names::PROG_STAGES[5]))?)),
        ("with a wrong one", |dir, _| swap(dir, names::PROG_STAGES[5], names::PROG_CLOCK)),
        ("over another map", |_, all| Ok(fs::remove_file(all.with_file_name("maps").join(names::MAP_STATS))?)),
        ("without the map that they find each other by", |dir, _| Ok(fs::remove_file(dir.join(names::MAP_STAGES))?)),
        ("not pinned at all", |dir, all| {
            below(dir)?.iter().try_for_each(fs::remove_file)?;
            fs::remove_dir(dir)?;
            Ok(fs::remove_dir(all)?)
        }),
    ];
    for ((what, tamper), port) in tampers.into_iter().zip(7100..) {
        let check = || -> Result<()> {
            let before: BTreeSet<u32> = programs(&device)?.into_values().collect();
            device.stop(Signal::SIGKILL)?;
            tamper(&programs_dir(&device)?, &device.pins().join("programs"))?;
            device.start()?;
            ensure!(!taken_over(&device)?, "taken over");
            let now: BTreeSet<u32> = programs(&device)?.into_values().collect();
            ensure!(now.is_disjoint(&before), "some were kept: {before:?} {now:?}");
            links_run_what_is_pinned(&device)?;
            talk(&a, &b, port)?;
            eventually(SOON, || {
                let loaded: BTreeSet<u32> =
                    aya::programs::loaded_programs().filter_map(Result::ok).map(|p| p.id()).collect();
                let left: Vec<_> = loaded.intersection(&before).collect();
                ensure!(left.is_empty(), "still loaded: {left:?}");
                Ok(())
            })?;
            device.stop(Signal::SIGKILL)?;
            device.start()?;
            ensure!(taken_over(&device)?, "not taken over afterwards");
            Ok(())
        };
        let mut check = check;
        check().context(what)?;
    }
    Ok(())
}

#[test]
fn one_that_was_lost_beside_the_data_plane_is_loaded_alone() -> Result<()> {
    let (mut device, a, b) = lab()?;
    let before = programs(&device)?;
    device.stop(Signal::SIGKILL)?;
    let lost = names::PROG_SOCK[2];
    fs::remove_file(programs_dir(&device)?.join(lost))?;
    device.start()?;
    let now = programs(&device)?;
    ensure!(taken_over(&device)?, "not taken over");
    let changed: Vec<_> = now.iter().filter(|(name, id)| before[*name] != **id).map(|(name, _)| name).collect();
    ensure!(changed == [lost], "{changed:?} are new");
    links_run_what_is_pinned(&device)?;
    talk(&a, &b, 7100)
}

/// The names that two maps had in layout 6.
const FORMER: [&str; 2] = ["transient", "services"];

#[test]
fn maps_of_an_earlier_layout_are_removed_under_their_former_names() -> Result<()> {
    let (mut device, a, b) = lab()?;
    device.stop(Signal::SIGKILL)?;
    let maps = device.pins().join("maps");
    let data = MapData::from_pin(maps.join(names::MAP_CONFIG))?;
    let mut config = Array::<_, GlobalConfig>::try_from(Map::Array(data))?;
    config.set(0, GlobalConfig { abi: 6, ..config.get(&0, 0)? }, 0)?;
    for (name, former) in [names::MAP_HALF_OPEN, names::MAP_PORT_MAP].into_iter().zip(FORMER) {
        fs::rename(maps.join(name), maps.join(former))?;
    }
    device.start()?;
    ensure!(device.json(&["status"])?["adopted"]["maps"] == true, "those that have the same layout were not kept");
    for former in FORMER {
        ensure!(!maps.join(former).exists(), "{former} is left");
    }
    links_run_what_is_pinned(&device)?;
    talk(&a, &b, 7100)?;
    device.down()?;
    ensure!(!device.pins().exists(), "pins are left");
    Ok(())
}
