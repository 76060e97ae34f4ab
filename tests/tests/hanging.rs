//! A namespace on a file system that does not answer delays only requests about that namespace.

use anyhow::{Context, Result, ensure};
use harness::{Container, Device, Namespace, SOON, configs, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A file system whose server never answers; unmounted when dropped.
struct Stuck {
    dir: PathBuf,
    // Dropped after the unmount.
    _server: File,
}

impl Stuck {
    /// Mounts it; `None` on a machine without FUSE, where the test is skipped.
    fn mount(dir: PathBuf) -> Option<Self> {
        let mounted = || -> Result<File> {
            let server = File::options().read(true).write(true).open("/dev/fuse")?;
            fs::create_dir_all(&dir)?;
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            mount(Some("stuck"), &dir, Some("fuse"), MsFlags::empty(), Some(options.as_str())).context("mount")?;
            Ok(server)
        };
        match mounted() {
            Ok(server) => Some(Self { dir, _server: server }),
            Err(why) => {
                harness::skip("a namespace that does not answer", &format!("no FUSE here: {why:#}"));
                None
            }
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Err(why) = umount2(&self.dir, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {why}", self.dir.display());
        }
    }
}

/// Starts a `pv-net` command that runs at the same time as the test.
fn begin(device: &Device, words: &[&str]) -> Result<Child> {
    let mut command = device.command();
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

fn begin_attach(device: &Device, name: &str, netns: &Path) -> Result<Child> {
    begin(device, &["attach", name, "--netns", &netns.display().to_string(), "--pool", "internal"])
}

/// Waits for the end of a command that must fail, and gives its error.
fn refused(child: Child) -> Result<String> {
    let ended = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(!ended.status.success(), "it was done");
    Ok(said)
}

/// Waits until the broker has no child processes: those that hung in a namespace are gone too.
fn broker_is_alone(device: &Device) -> Result<()> {
    let daemon = device.daemon()?.pid();
    let children = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let broker: u32 = children(daemon)?.split_whitespace().next().context("no broker")?.parse()?;
    eventually(SOON, || {
        let of_broker = children(broker)?;
        ensure!(of_broker.trim().is_empty(), "the broker has children: {of_broker}");
        Ok(())
    })
}

fn mtu_is(ns: &Namespace, mtu: u32) -> Result<()> {
    eventually(SOON, || {
        let link = ns.ip("-o link show dev eth0")?;
        ensure!(link.contains(&format!("mtu {mtu} ")), "{link}");
        Ok(())
    })
}

#[test]
fn whoever_asks_about_it_waits_and_nobody_else() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let folder = device.file("stuck");
    fs::create_dir(&folder)?;
    // The path goes by a symbolic link in the folder: when that hangs, nobody can tell which namespace it was.
    let (first, second) = (Namespace::new("first")?, Namespace::new("second")?);
    symlink(first.path(), folder.join("moved"))?;
    let waiting = device.file("containers").join("waiting");
    fs::create_dir(&waiting)?;
    let run = json!({"name": "waiting", "type": "netns", "netns": folder.join("ns"), "network": {"pool": "internal"}});
    fs::write(waiting.join("run.json"), run.to_string())?;
    device.start()?;
    for (path, why) in [("/etc/hostname", "not a network namespace"), ("/proc/self/ns/net", "the device's own")] {
        let reply = device.cli(&["attach", "bad", "--netns", path, "--pool", "internal"]);
        ensure!(reply.stderr.contains(why), "{path}: {}", reply.stderr);
    }
    let place = folder.join("moved").display().to_string();
    device.json(&["attach", "moved", "--netns", &place, "--pool", "internal"])?;
    let stays = device.attach("stays", "internal")?;

    let Some(stuck) = Stuck::mount(folder) else { return Ok(()) };
    let mut config = configs::two_pools();
    config["network"]["pools"]["internal"]["mtu"] = json!(1400);
    device.configure(&config)?;
    // An attach of a hanging namespace; an attach elsewhere of a container whose earlier path hangs; a detach of a
    // container whose declared path hangs; and a reload that changes the MTU of all containers.
    let mut hang = vec![
        begin_attach(&device, "stuck", &stuck.dir.join("ns"))?,
        begin_attach(&device, "moved", &second.path())?,
        begin(&device, &["detach", "waiting"])?,
        begin(&device, &["reload"])?,
    ];
    mtu_is(&stays.ns, 1400)?;
    for number in 0..3 {
        let name = format!("a{number}");
        let container = device.attach(&name, "internal")?;
        mtu_is(&container.ns, 1400)?;
        container.ns.ping(stays.addresses()[0], 1)?;
        device.cli(&["detach", &name]).ok()?;
    }
    for (number, child) in hang.iter_mut().enumerate() {
        ensure!(child.try_wait()?.is_none(), "command {number} does not wait: nothing is shown");
    }
    let reload = hang.pop().context("four commands")?.wait_with_output()?;
    ensure!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    for child in hang {
        let said = refused(child)?;
        ensure!(said.contains("no answer within 10 s"), "{said}");
    }
    let all = device.json(&["containers"])?.to_string();
    ensure!(all.contains("does not have its pool's MTU 1400"), "{all}");
    // When the file system is gone, the next reload sets the MTU.
    mtu_is(&first, 1500)?;
    drop(stuck);
    device.cli(&["reload"]).ok()?;
    mtu_is(&first, 1400)?;
    let all = device.json(&["containers"])?.to_string();
    ensure!(!all.contains("does not have its pool's MTU"), "{all}");
    broker_is_alone(&device)
}

#[test]
fn of_a_hundred_attaches_at_once_those_whose_namespaces_answer_are_done() -> Result<()> {
    const HANG: usize = 60;
    let device = Device::started(&configs::two_pools())?;
    let Some(stuck) = Stuck::mount(device.file("stuck")) else { return Ok(()) };
    let hang: Result<Vec<Child>> =
        (0..HANG).map(|n| begin_attach(&device, &format!("stuck{n}"), &stuck.dir.join(n.to_string()))).collect();
    let mut hang = hang?;
    let namespaces: Vec<Namespace> = (HANG..100).map(|_| Namespace::new("many")).collect::<Result<_>>()?;
    let attach = |(n, ns): (usize, &Namespace)| begin_attach(&device, &format!("c{n}"), &ns.path());
    let attaches: Vec<Child> = namespaces.iter().enumerate().map(attach).collect::<Result<_>>()?;
    for child in attaches {
        let ended = child.wait_with_output()?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    ensure!(hang.iter_mut().all(|child| matches!(child.try_wait(), Ok(None))), "one does not wait: nothing is shown");
    let views = device.json(&["containers"])?;
    let views = views.as_array().context("a list")?;
    ensure!(views.len() == namespaces.len(), "{views:?}");
    for (n, ns) in namespaces.into_iter().enumerate() {
        let view = views.iter().find(|view| view["name"] == format!("c{n}")).context("it is attached")?;
        Container::new(ns, view.clone())?.ns.ping("10.0.3.1", 1)?;
    }
    for child in hang {
        let said = refused(child)?;
        ensure!(said.contains("no answer within 10 s"), "{said}");
    }
    broker_is_alone(&device)
}

#[test]
fn a_hundred_attaches_at_once_are_all_done() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let namespaces: Vec<Namespace> = (0..100).map(|_| Namespace::new("many")).collect::<Result<_>>()?;
    let attach = |(n, ns): (usize, &Namespace)| begin_attach(&device, &format!("c{n}"), &ns.path());
    let attaches: Vec<Child> = namespaces.iter().enumerate().map(attach).collect::<Result<_>>()?;
    for child in attaches {
        let ended = child.wait_with_output()?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    for ns in &namespaces {
        ns.ping("10.0.3.1", 1)?;
    }
    broker_is_alone(&device)
}
