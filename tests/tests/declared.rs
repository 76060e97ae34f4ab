//! Declared containers are attached by themselves when their namespaces appear. One that somebody has detached is not
//! attached again.

use anyhow::{Context, Result, ensure};
use harness::{Container, Device, Namespace, Process, SOON, configs, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// How long to watch that nothing is attached: longer than an attach takes.
const WHILE: Duration = Duration::from_millis(700);

/// Declares a container in `internal` whose namespace is at `path`.
fn declare(device: &Device, name: &str, path: &Path) -> Result<()> {
    declare_as(device, name, &json!({"name": name, "type": "netns", "netns": path, "network": {"pool": "internal"}}))
}

fn declare_as(device: &Device, name: &str, run: &Value) -> Result<()> {
    let dir = device.file("containers").join(name);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(dir.join("run.json"), run.to_string())?)
}

/// A running device with `web` declared, and the name of its namespace, which does not exist yet.
fn started() -> Result<(Device, String)> {
    let mut device = Device::new(&configs::two_pools())?;
    let name = Namespace::free_name("web");
    declare(&device, "web", &Namespace::place(&name))?;
    device.start()?;
    Ok((device, name))
}

fn view(device: &Device, name: &str) -> Result<Value> {
    let all = device.json(&["containers"])?;
    let found = all.as_array().into_iter().flatten().find(|c| c["name"] == name);
    found.cloned().with_context(|| format!("{name} is not in {all}"))
}

/// Waits until a container is attached, and no condition exists.
fn attached(device: &Device, name: &str) -> Result<Value> {
    eventually(SOON, || {
        let view = view(device, name)?;
        ensure!(view["state"] == "attached" && view["conditions"] == json!([]), "{view}: {}", device.log());
        Ok(view)
    })
}

/// The container in `ns`, as soon as it is attached; it reaches its pool's gateway over both families.
fn container(device: &Device, name: &str, ns: Namespace) -> Result<Container> {
    let container = Container::new(ns, attached(device, name)?)?;
    for gateway in ["10.0.3.1", "fd00:5056:0:3::1"] {
        container.ns.ping(gateway, 2).with_context(|| format!("{name}: {gateway}"))?;
    }
    Ok(container)
}

/// Fails when a container is attached within some time.
fn stays(device: &Device, name: &str, state: &str) -> Result<()> {
    sleep(WHILE);
    let view = view(device, name)?;
    ensure!(view["state"] == state && view["conditions"] == json!([]), "{view}: {}", device.log());
    Ok(())
}

fn no_conditions(device: &Device) -> Result<()> {
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}

#[test]
fn one_whose_namespace_is_there_is_attached_at_the_start() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let ns = Namespace::new("web")?;
    declare(&device, "web", &ns.path())?;
    declare(&device, "late", &Namespace::place(&Namespace::free_name("late")))?;
    device.start()?;
    let web = container(&device, "web", ns)?;
    // An attach by hand succeeds and changes nothing.
    let before = web.ns.ip("-o link show dev eth0")?;
    device.cli(&["attach", "web", "--netns", &web.ns.path().display().to_string()]).ok()?;
    ensure!(web.ns.ip("-o link show dev eth0")? == before, "attached anew");
    ensure!(view(&device, "late")?["state"] == "declared", "without a namespace");
    no_conditions(&device)
}

#[test]
fn one_whose_namespace_appears_later_is_attached_then() -> Result<()> {
    let name = Namespace::free_name("web");
    let mut device = Device::new(&configs::two_pools())?;
    declare(&device, "web", &Namespace::place(&name))?;
    // The directory does not exist yet either; in it there will be a symbolic link to a namespace.
    let deep = device.file("later").join("and/deeper");
    declare(&device, "deep", &deep.join("ns"))?;
    device.start()?;
    stays(&device, "web", "declared")?;

    // `ip netns add` makes the file first and mounts the namespace on it afterwards. Until then the daemon waits.
    fs::write(Namespace::place(&name), [])?;
    let waited = stays(&device, "web", "declared");
    let web = Namespace::named(&name);
    waited?;
    let web = container(&device, "web", web?)?;

    let ns = Namespace::new("deep")?;
    fs::create_dir_all(&deep)?;
    symlink(ns.path(), deep.join("ns"))?;
    let deep = container(&device, "deep", ns)?;
    for to in deep.addresses() {
        web.ns.ping(to, 2)?;
    }
    no_conditions(&device)
}

#[test]
fn a_reload_attaches_what_is_declared_by_then() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let ns = Namespace::new("web")?;
    let run = |pool: &str| json!({"netns": ns.path(), "network": {"pool": pool, "ports": ["8080:80"]}});
    declare_as(&device, "web", &run("nope"))?;
    device.cli(&["reload"]).ok()?;
    ensure!(device.json(&["status"])?["conditions"].to_string().contains("no such pool"), "no condition");
    declare_as(&device, "web", &run("internal"))?;
    device.cli(&["reload"]).ok()?;
    attached(&device, "web")?;
    ns.ping("10.0.3.1", 2)?;
    no_conditions(&device)
}

#[test]
fn a_restart_finds_it_attached_and_a_reboot_attaches_it_again() -> Result<()> {
    let (mut device, name) = started()?;
    let mut web = container(&device, "web", Namespace::named(&name)?)?;
    let addresses = web.addresses();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let link = web.ns.ip("-o link show dev eth0")?;
        device.stop(signal)?;
        device.start()?;
        stays(&device, "web", "attached")?;
        ensure!(web.ns.ip("-o link show dev eth0")? == link, "{signal}: another link");
    }
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        // The container starts again while no daemon runs; or everything does, and the run directory is empty.
        device.stop(signal)?;
        drop(web);
        fs::remove_dir_all(device.file("run"))?;
        let next = Namespace::named(&name)?;
        device.start()?;
        // The kernel may still be deleting the link of the earlier start, which the daemon shows as attached.
        eventually(SOON, || next.ping("10.0.3.1", 1)).with_context(|| device.log())?;
        web = container(&device, "web", next)?;
        ensure!(web.addresses() == addresses, "{signal}: {:?} after {addresses:?}", web.addresses());
    }
    Ok(())
}

#[test]
fn a_namespace_that_is_made_anew_is_attached_anew() -> Result<()> {
    let (device, name) = started()?;
    let other = device.attach("other", "internal")?;
    let mut web = container(&device, "web", Namespace::named(&name)?)?;
    for round in 0..4 {
        let addresses = web.addresses();
        // In every second round a process keeps the earlier namespace alive.
        let lives = (round % 2 == 0).then(|| Process::start(web.ns.command("sleep").arg("60"))).transpose()?;
        drop(web);
        let next = Namespace::named(&name)?;
        // As long as the link of the earlier start exists, the daemon shows that one as attached.
        eventually(SOON, || next.ping("10.0.3.1", 1)).with_context(|| device.log())?;
        web = container(&device, "web", next)?;
        ensure!(web.addresses() == addresses, "start {round}: {:?} after {addresses:?}", web.addresses());
        for to in other.addresses() {
            web.ns.ping(to, 2).with_context(|| format!("start {round}"))?;
        }
        drop(lives);
    }
    // Another namespace is mounted on the old one; the file itself looks the same.
    let next = Namespace::new("next")?;
    let path = web.ns.path().display().to_string();
    let over = Command::new("mount").args(["--bind", &next.path().display().to_string(), &path]).status()?;
    ensure!(over.success(), "mount: {over}");
    let seen = eventually(SOON, || next.ping("10.0.3.1", 1));
    // Lazy, since the daemon may have the file open at the moment.
    let off = Command::new("umount").args(["--lazy", &path]).status()?;
    ensure!(off.success(), "umount: {off}");
    seen.context("in the namespace that has the name now")?;
    // The namespace below is the container's again.
    eventually(SOON, || web.ns.ping("10.0.3.1", 1))?;
    attached(&device, "web")?;
    no_conditions(&device)
}

#[test]
fn who_was_detached_by_hand_stays_so_until_its_next_start() -> Result<()> {
    let (mut device, name) = started()?;
    let web = container(&device, "web", Namespace::named(&name)?)?;
    device.cli(&["detach", "web"]).ok()?;
    // Other namespaces come and go in the same directory.
    drop(Namespace::new("beside")?);
    stays(&device, "web", "declared")?;
    device.cli(&["reload"]).ok()?;
    stays(&device, "web", "declared")?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        device.stop(signal)?;
        device.start()?;
        stays(&device, "web", "declared")?;
    }
    ensure!(web.ns.ip("-o link show dev eth0").is_err(), "it has a link");
    // It can be attached by hand again.
    let path = web.ns.path().display().to_string();
    device.cli(&["attach", "web", "--netns", &path]).ok()?;
    web.ns.ping("10.0.3.1", 1)?;
    device.cli(&["detach", "web"]).ok()?;
    // The kernel mostly gives the next namespace the inode number of this one.
    drop(web);
    container(&device, "web", Namespace::named(&name)?)?;
    no_conditions(&device)
}

#[test]
fn one_that_cannot_be_attached_is_a_condition_and_touches_nobody_else() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let (first, second, good) = (Namespace::new("first")?, Namespace::new("second")?, Namespace::new("good")?);
    let publishing =
        |ns: &Namespace| json!({"netns": ns.path(), "network": {"pool": "internal", "ports": ["8080:80/tcp"]}});
    declare_as(&device, "first", &publishing(&first))?;
    device.start()?;
    attached(&device, "first")?;
    declare_as(&device, "second", &publishing(&second))?;
    declare(&device, "good", &good.path())?;
    declare(&device, "file", &device.config())?;
    fs::create_dir(device.file("containers").join("bad"))?;
    fs::write(device.file("containers/bad/run.json"), b"{\"netns\":")?;
    device.cli(&["reload"]).ok()?;
    let good = container(&device, "good", good)?;
    let condition = |name: &str, part: &str| {
        eventually(SOON, || {
            let view = view(&device, name)?;
            let all = view["conditions"].as_array().context("conditions")?;
            ensure!(all.len() == 1 && all[0].to_string().contains(part), "{view}: {}", device.log());
            ensure!(view["state"] == "declared", "{view}");
            Ok(())
        })
    };
    condition("second", "8080")?;
    condition("file", "not a network namespace")?;
    let failures =
        |log: &str| log.lines().filter(|line| line.contains("second") && line.contains("tried again")).count();
    let before = failures(&device.log());
    sleep(WHILE * 3);
    let tries = failures(&device.log()) - before;
    ensure!(tries <= 4, "{tries} tries in {:?}", WHILE * 3);
    // The container that held the port is detached.
    device.cli(&["detach", "first"]).ok()?;
    attached(&device, "second")?;
    second.ping("10.0.3.1", 1)?;
    drop(second);
    good.ns.ping("10.0.3.1", 1)?;
    // A declared container without a namespace is no condition.
    declare_as(&device, "third", &publishing(&first))?;
    let third = Namespace::new("third")?;
    declare_as(
        &device,
        "third",
        &json!({"netns": third.path(), "network": {"pool": "internal", "ports": ["8080:80"]}}),
    )?;
    device.cli(&["attach", "second", "--netns", &first.path().display().to_string()]).ok()?;
    device.cli(&["reload"]).ok()?;
    condition("third", "8080")?;
    drop(third);
    eventually(SOON, || {
        let view = view(&device, "third")?;
        ensure!(view["state"] == "declared" && view["conditions"] == json!([]), "{view}");
        Ok(())
    })
}

#[test]
fn twenty_at_once_are_all_attached() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let names: Vec<(String, String)> = (0..20).map(|n| (format!("c{n}"), Namespace::free_name("many"))).collect();
    for (name, netns) in &names {
        declare(&device, name, &Namespace::place(netns))?;
    }
    device.start()?;
    let make = |names: &[(String, String)]| -> Result<Vec<Namespace>> {
        names.iter().map(|(_, netns)| Namespace::named(netns)).collect()
    };
    let all_of_them = |made: Vec<Namespace>| -> Result<Vec<Container>> {
        let containers = names.iter().zip(made).map(|((name, _), ns)| Container::new(ns, attached(&device, name)?));
        let containers: Vec<Container> = containers.collect::<Result<_>>()?;
        let addresses: BTreeSet<_> = containers.iter().flat_map(Container::addresses).collect();
        ensure!(addresses.len() == 40, "{addresses:?}");
        for pair in containers.windows(2) {
            for to in pair[1].addresses() {
                pair[0].ns.ping(to, 1)?;
            }
        }
        Ok(containers)
    };
    let containers = all_of_them(make(&names)?)?;
    let addresses: Vec<_> = containers.iter().map(Container::addresses).collect();
    no_conditions(&device)?;
    drop(containers);
    // All containers start again.
    let again = make(&names)?;
    for ns in &again {
        eventually(SOON, || ns.ping("10.0.3.1", 1))?;
    }
    let again = all_of_them(again)?;
    ensure!(again.iter().map(Container::addresses).eq(addresses), "other addresses");
    no_conditions(&device)
}

#[test]
fn who_attaches_by_hand_at_the_same_time_is_not_disturbed() -> Result<()> {
    let (device, name) = started()?;
    for round in 0..10 {
        let ns = Namespace::named(&name)?;
        let path = ns.path().display().to_string();
        // Every second attach names another pool than the declaration; each comes a bit later than the one before.
        sleep(Duration::from_millis(round * 3));
        let mut words = vec!["attach", "web", "--netns", &path];
        if round % 2 == 1 {
            words.extend(["--pool", "management"]);
        }
        let reply = device.cli(&words);
        let was_late = reply.code == Some(1) && reply.stderr.contains("attached already");
        ensure!(reply.code == Some(0) || (round % 2 == 1 && was_late), "round {round}: {reply:?}");
        let gateway = if reply.code == Some(0) && round % 2 == 1 { "10.0.4.1" } else { "10.0.3.1" };
        ns.ping(gateway, 1).with_context(|| format!("round {round}"))?;
        let link = ns.ip("-o link show dev eth0")?;
        sleep(WHILE / 2);
        ensure!(ns.ip("-o link show dev eth0")? == link, "round {round}: attached anew");
        attached(&device, "web")?;
        no_conditions(&device)?;
    }
    Ok(())
}
