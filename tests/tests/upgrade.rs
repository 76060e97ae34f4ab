//! Another build takes over. Forged frames reach nobody meanwhile, whether the start succeeds or not, and flows go on
//! when the map layout is the same.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use harness::forger::{Forger, Victims};
use harness::{Container, Device, Process, SOON, configs, echo, eventually, other_layout, output};
use nix::sys::signal::Signal;
use pv_net_common::flow::MAX_LINKS;
use pv_net_common::{ABI_VERSION, InterfaceInfo, names};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// `a` forges; `b` and `c` are honest and in two pools.
struct Lab {
    device: Device,
    a: Container,
    b: Container,
    c: Container,
}

impl Lab {
    fn new() -> Result<Self> {
        let device = Device::started(&configs::open_pools())?;
        let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
        let c = device.attach("c", "management")?;
        Ok(Self { device, a, b, c })
    }

    fn victims(&self) -> Result<Victims> {
        Victims::listen(&self.device, &["pvbr3"], &[&self.b.ns])
    }

    fn forger(&self) -> Result<Forger> {
        Forger::start(vec![self.a.ns.path()], self.b.mac()?)
    }

    /// Fails unless a new flow works, over both families.
    fn talks(&self, port: u16) -> Result<()> {
        for to in self.c.addresses() {
            echo::serve(&self.c.ns, to, port)?;
            echo::tcp(&self.b.ns, SocketAddr::new(to, port), &[7; 10_000])?;
            echo::udp(&self.b.ns, SocketAddr::new(to, port), &[7; 1_000])?;
        }
        Ok(())
    }

    fn conditions(&self) -> Result<String> {
        Ok(self.device.json(&["status"])?["conditions"].to_string())
    }

    fn adopted(&self, what: &str) -> Result<bool> {
        self.device.json(&["status"])?["adopted"][what].as_bool().with_context(|| what.to_owned())
    }

    /// The ids of the programs of pinned links, by pin.
    fn programs(&self) -> Result<BTreeMap<PathBuf, u32>> {
        let mut found = BTreeMap::new();
        for place in [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_BRIDGE] {
            for pin in fs::read_dir(self.device.pins().join("links").join(place))? {
                let pin = pin?.path();
                let link = FdLink::from(PinnedLink::from_pin(&pin)?).info()?;
                found.insert(pin, link.program_id());
            }
        }
        // Two links for each of three containers, and one for each of two bridges.
        ensure!(found.len() == 8, "{found:?}");
        Ok(found)
    }
}

/// A connection from before the upgrade that must go on.
struct Connection(TcpStream);

impl Connection {
    fn open(from: &Container, to: &Container, v6: bool, port: u16) -> Result<Self> {
        let to_addr = to.addresses()[usize::from(v6)];
        echo::serve(&to.ns, to_addr, port)?;
        let mut stream = echo::connect(&from.ns, SocketAddr::new(to_addr, port))?;
        let mut byte = [0u8];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        let mut connection = Self(stream);
        connection.goes_on()?;
        connection.goes_on()?;
        Ok(connection)
    }

    fn goes_on(&mut self) -> Result<()> {
        let (sent, mut back) = ([42u8; 5_000], [0u8; 5_000]);
        self.0.write_all(&sent)?;
        self.0.read_exact(&mut back).context("the echo")?;
        ensure!(sent == back, "other bytes came back");
        Ok(())
    }
}

fn ping(from: &Container, to: &str) -> Result<Process> {
    let mut command = from.ns.command("ping");
    Process::start(command.args(["-n", "-q", "-i", "0.005", "-W", "5", to]).stdout(Stdio::piped()))
}

fn lost_nothing(ping: Process) -> Result<()> {
    ping.signal(Signal::SIGINT)?;
    let said = ping.finish(SOON)?;
    // The last number may still be on its way.
    let numbers: Vec<u64> = said
        .lines()
        .filter(|line| line.contains("packets transmitted"))
        .flat_map(|line| line.split([' ', ',']).filter_map(|word| word.parse().ok()))
        .collect();
    ensure!(matches!(numbers[..], [sent, received, ..] if received > 0 && sent - received <= 1), "{said}");
    Ok(())
}

fn map_id(device: &Device, map: &str) -> Result<u32> {
    Ok(MapInfo::from_pin(other_layout::pin_of(device, map)).with_context(|| map.to_owned())?.id())
}

/// Fails when something is left of a set of maps that did not come into force, or of an earlier one.
fn is_tidy(device: &Device) -> Result<()> {
    for dir in ["maps_new", "maps_old"] {
        ensure!(!device.pins().join(dir).exists(), "{dir} is left");
    }
    let programs: Vec<_> = fs::read_dir(device.pins().join("programs"))?.collect::<std::io::Result<_>>()?;
    ensure!(programs.len() == 1, "{programs:?}");
    let maps = fs::read_dir(device.pins().join("maps"))?.count();
    ensure!(maps == names::MAPS.len(), "{maps} maps are pinned");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn maps_of_the_same_layout_go_on_and_nothing_forged_passes() -> Result<()> {
    let mut lab = Lab::new()?;
    let mut connections = [false, true].map(|v6| Connection::open(&lab.b, &lab.c, v6, 7100 + u16::from(v6)));
    let pings = [lab.c.v4.to_string(), lab.c.v6.to_string()].map(|to| ping(&lab.b, &to));
    let kept = [names::MAP_FLOWS, names::MAP_HALF_OPEN, names::MAP_ENDPOINTS];
    let before = kept.map(|map| map_id(&lab.device, map).unwrap_or_default());
    let victims = lab.victims()?;
    let forger = lab.forger()?;
    lab.device.stop(Signal::SIGKILL)?;
    for map in [names::MAP_INTERFACES, names::MAP_UPLINKS, names::MAP_NETWORKS] {
        other_layout::grow(&lab.device, map, 8)?;
    }
    lab.device.start()?;
    ensure!(lab.adopted("maps")? && !lab.adopted("programs")?, "{}", lab.device.json(&["status"])?["adopted"]);
    let said = lab.conditions()?;
    ensure!(said.contains("made anew: interfaces, networks, uplinks"), "{said}");
    ensure!(kept.map(|map| map_id(&lab.device, map).unwrap_or_default()) == before, "a map was not kept");
    for connection in &mut connections {
        connection.as_mut().map_err(|e| anyhow::anyhow!("{e:#}"))?.goes_on()?;
    }
    for ping in pings {
        lost_nothing(ping?)?;
    }
    lab.talks(7110)?;
    forger.has_sent(1_000)?;
    victims.heard_nothing()?;
    is_tidy(&lab.device)
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_unknown_layout_is_replaced_without_a_gap() -> Result<()> {
    type Change = fn(&Device) -> Result<()>;
    let changes: [(&str, Change, bool); 6] = [
        ("older", |device| other_layout::say_layout(device, ABI_VERSION - 1), true),
        ("of the future", |device| other_layout::say_layout(device, ABI_VERSION + 1), false),
        ("larger flows", |device| other_layout::grow(device, names::MAP_FLOWS, 8), true),
        ("no config", |device| Ok(fs::remove_file(other_layout::pin_of(device, names::MAP_CONFIG))?), false),
        (
            "a program for a config",
            |device| {
                let pin = other_layout::pin_of(device, names::MAP_CONFIG);
                let program = link_to(device, names::PROG_TO_CONTAINER)?;
                fs::remove_file(&pin)?;
                output(Command::new("bpftool").args(["prog", "pin", "pinned"]).arg(program).arg(pin)).map(drop)
            },
            false,
        ),
        (
            "a link for a config",
            |device| {
                let pin = other_layout::pin_of(device, names::MAP_CONFIG);
                fs::remove_file(&pin)?;
                Ok(std::os::unix::fs::symlink("/nowhere", pin)?)
            },
            false,
        ),
    ];
    let mut lab = Lab::new()?;
    let victims = lab.victims()?;
    let forger = lab.forger()?;
    for ((what, change, kept), port) in changes.into_iter().zip(7100..) {
        let sent = forger.sent();
        lab.device.stop(Signal::SIGKILL)?;
        change(&lab.device).context(what)?;
        lab.device.start().context(what)?;
        ensure!(lab.adopted("maps")? == kept, "{what}: {}", lab.device.json(&["status"])?["adopted"]);
        ensure!(lab.conditions()?.contains("made anew"), "{what}: {}", lab.conditions()?);
        lab.talks(port).context(what)?;
        forger.has_sent(sent + 500).context(what)?;
        victims.heard_nothing().context(what)?;
        is_tidy(&lab.device).context(what)?;
    }
    Ok(())
}

fn link_to(device: &Device, program: &str) -> Result<PathBuf> {
    let dirs = fs::read_dir(device.pins().join("programs"))?;
    let mut dirs: Vec<PathBuf> = dirs.map(|dir| Ok(dir?.path())).collect::<std::io::Result<_>>()?;
    Ok(dirs.pop().context("no programs")?.join(program))
}

/// Starts a daemon by the command `before`; the daemon must end by itself. Gives what it logged.
fn refused(device: &Device, before: &[&str]) -> Result<String> {
    let run = device.command();
    let mut command = match before {
        [] => run,
        [program, words @ ..] => {
            let mut other = device.ns.command(program);
            other.args(words).arg(run.get_program()).args(run.get_args());
            other
        }
    };
    let done = command.arg("run").stdin(Stdio::null()).output()?;
    ensure!(!done.status.success(), "it started");
    Ok(String::from_utf8_lossy(&done.stderr).into_owned())
}

/// A cgroup with so little memory that no flow table of a million entries can be made.
struct LittleMemory(PathBuf);

impl LittleMemory {
    fn new() -> Result<Self> {
        let name = format!("pv-net-test-{}", std::process::id());
        // The memory controller has a hierarchy of its own (cgroup v1), or is in the unified one.
        let (root, limit) = match Path::new("/sys/fs/cgroup/memory") {
            own if own.exists() => (own.to_owned(), "memory.limit_in_bytes"),
            _ => {
                fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
                (PathBuf::from("/sys/fs/cgroup"), "memory.max")
            }
        };
        let group = Self(root.join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(limit), "64M")?;
        Ok(group)
    }
}

impl Drop for LittleMemory {
    fn drop(&mut self) {
        let gone = eventually(SOON, || Ok(fs::remove_dir(&self.0)?));
        if let Err(why) = gone {
            eprintln!("{} stays: {why}", self.0.display());
        }
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_that_fails_leaves_what_was() -> Result<()> {
    let mut lab = Lab::new()?;
    let victims = lab.victims()?;
    let forger = lab.forger()?;
    let before = lab.programs()?;
    let pinned = |lab: &Lab| -> Result<Vec<String>> {
        let all = lab.device.pinned()?;
        let mut all: Vec<String> = all.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    };
    lab.device.stop(Signal::SIGKILL)?;
    let unchanged = |lab: &Lab, before: &BTreeMap<PathBuf, u32>, what: &str, pins: &[String]| -> Result<()> {
        ensure!(lab.programs()? == *before, "{what}: a link has another program");
        let now = pinned(lab)?;
        ensure!(now == pins, "{what}: {now:?} instead of {pins:?}");
        lab.b.ns.ping(lab.c.v4, 2)?;
        lab.b.ns.ping(lab.c.v6, 2)?;
        victims.heard_nothing().with_context(|| what.to_owned())
    };

    // The maps have another layout, and the daemon may open few files: it fails wherever these run out.
    other_layout::grow(&lab.device, names::MAP_ENDPOINTS, 8)?;
    let pins = pinned(&lab)?;
    for files in (12..=60).step_by(6) {
        let why = refused(&lab.device, &["prlimit", &format!("--nofile={files}")])?;
        unchanged(&lab, &before, &format!("{files} files: {why}"), &pins)?;
    }
    // Memory runs out when a map is made; the kernel may kill the daemon for that.
    let mut large = configs::open_pools();
    large["network"]["flow_table"] = json!(1_000_000);
    lab.device.configure(&large)?;
    fs::remove_file(other_layout::pin_of(&lab.device, names::MAP_FLOWS))?;
    let pins = pinned(&lab)?;
    let little = LittleMemory::new()?;
    let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", little.0.display());
    let why = refused(&lab.device, &["sh", "-c", &join, "sh"])?;
    drop(little);
    // A daemon that is killed on the way leaves its pins to the next one.
    ensure!(lab.programs()? == before, "{why}: a link has another program");
    if why.contains("error: ") {
        unchanged(&lab, &before, &why, &pins)?;
    }
    lab.device.configure(&configs::open_pools())?;
    lab.device.start()?;
    lab.talks(7090)?;
    lab.device.stop(Signal::SIGKILL)?;
    let before = lab.programs()?;
    other_layout::grow(&lab.device, names::MAP_ENDPOINTS, 8)?;

    // An obstacle that the daemon cannot remove is where it would pin the new programs.
    let obstacle = lab.device.pins().join("programs/new/obstacle");
    fs::create_dir_all(&obstacle)?;
    let pins = pinned(&lab)?;
    let why = refused(&lab.device, &[])?;
    unchanged(&lab, &before, &why, &pins)?;
    fs::remove_dir(&obstacle)?;
    fs::remove_dir(lab.device.pins().join("programs/new"))?;

    // The self-test fails: a map that is kept has no room.
    fill(&other_layout::pin_of(&lab.device, names::MAP_INTERFACES))?;
    let pins = pinned(&lab)?;
    let why = refused(&lab.device, &[])?;
    ensure!(why.contains("interfaces"), "{why}");
    unchanged(&lab, &before, &why, &pins)?;
    empty(&other_layout::pin_of(&lab.device, names::MAP_INTERFACES))?;

    lab.device.start()?;
    lab.talks(7100)?;
    forger.has_sent(1_000)?;
    victims.heard_nothing()?;
    is_tidy(&lab.device)
}

/// Interface indexes that no link has.
fn nobodys() -> impl Iterator<Item = u32> {
    let most = i32::MAX.cast_unsigned();
    most - MAX_LINKS..most
}

fn interfaces(pin: &Path) -> Result<HashMap<MapData, u32, InterfaceInfo>> {
    Ok(HashMap::try_from(Map::from_map_data(MapData::from_pin(pin)?)?)?)
}

fn fill(pin: &Path) -> Result<()> {
    let mut map = interfaces(pin)?;
    let full = nobodys().find(|index| map.insert(index, InterfaceInfo::default(), 0).is_err());
    full.context("there is still room").map(drop)
}

fn empty(pin: &Path) -> Result<()> {
    let mut map = interfaces(pin)?;
    // Entries that did not fit are not there to remove.
    nobodys().for_each(|index| drop(map.remove(&index)));
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_that_is_killed_opens_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    let victims = lab.victims()?;
    let forger = lab.forger()?;
    let pings = [ping(&lab.b, &lab.c.v4.to_string())?, ping(&lab.b, &lab.c.v6.to_string())?];
    lab.device.stop(Signal::SIGKILL)?;
    other_layout::grow(&lab.device, names::MAP_INTERFACES, 8)?;
    let mut lived = 0;
    for step in 0..40u64 {
        let log = fs::File::create(lab.device.file("killed"))?;
        let mut daemon = Process::start(lab.device.command().arg("run").stdout(log.try_clone()?).stderr(log))?;
        std::thread::sleep(Duration::from_millis(step * 25));
        lived += u32::from(!daemon.has_ended()?);
        daemon.signal(Signal::SIGKILL)?;
        eventually(SOON, || {
            ensure!(daemon.has_ended()?, "it lives");
            Ok(())
        })?;
        victims.heard_nothing().with_context(|| format!("killed after {} ms", step * 25))?;
        if lab.device.pins().join("maps/interfaces").exists() && step % 8 == 7 {
            // Once more another build.
            other_layout::grow(&lab.device, names::MAP_INTERFACES, 8 + u32::try_from(step)?)?;
        }
    }
    ensure!(lived == 40, "only {lived} were killed");
    lab.device.start()?;
    for ping in pings {
        lost_nothing(ping)?;
    }
    lab.talks(7100)?;
    forger.has_sent(1_000)?;
    victims.heard_nothing()?;
    is_tidy(&lab.device)
}
