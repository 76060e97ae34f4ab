//! From the first start to `down`: what the daemon does not touch, and what it removes again.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, SOON, Snapshot, configs, echo, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A snapshot after the kernel has added the links' own addresses: two snapshots in a row must be the same.
fn settled(device: &Device) -> Result<Snapshot> {
    eventually(SOON, || {
        let tentative = device.ns.ip("-6 addr show tentative")?;
        ensure!(tentative.is_empty(), "{tentative}");
        let first = Snapshot::of(device)?;
        std::thread::sleep(Duration::from_millis(100));
        let second = Snapshot::of(device)?;
        ensure!(first == second, "{}", first.diff(&second));
        Ok(second)
    })
}

/// Fails unless the device is as in `before` now or soon.
fn same(device: &Device, before: &Snapshot, when: &str) -> Result<()> {
    eventually(SOON, || {
        let changed = before.diff(&Snapshot::of(device)?);
        ensure!(changed.is_empty(), "{when}:\n{changed}");
        Ok(())
    })
}

#[test]
fn without_pools_nothing_is_changed() -> Result<()> {
    let networks = [json!({}), json!({"network": {}}), json!({"network": {"uplinks": ["up0"], "domain": "a.test"}})];
    for config in networks {
        let mut device = Device::new(&config)?;
        let _outside = device.outside("up0", &["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.2/24"])?;
        let before = settled(&device)?;
        device.start()?;
        ensure!(device.json(&["containers"])? == json!([]) && device.json(&["flows"])? == json!([]), "not empty");
        same(&device, &before, "after the start")?;
        device.cli(&["reload"]).ok()?;
        same(&device, &before, "after a reload")?;
        device.stop(Signal::SIGTERM)?;
        same(&device, &before, "after the stop")?;
        device.start()?;
        device.down()?;
        same(&device, &before, "after `down`")?;
    }
    Ok(())
}

/// What an administrator may have on a device: a bridge in use, links, routes, rules, a qdisc.
fn administrators_own(device: &Device) -> Result<Namespace> {
    let outside = device.outside("up0", &["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.2/24", "2001:db8::2/64"])?;
    for line in [
        "link add br-own address 02:11:22:33:44:55 type bridge stp_state 0 ageing_time 12300",
        "link add lan0 address 02:11:22:33:44:66 type veth peer name lan1",
        "link set lan0 master br-own up",
        "link set lan1 up",
        "addr add 198.51.100.1/24 dev br-own",
        "link set br-own up",
        "link add br-idle type bridge",
        // A link gets its queueing discipline when it is set up for the first time, and a bridge its segment size with
        // its first port; both stay.
        "link add idle0 type veth peer name idle1",
        "link set idle0 master br-idle",
        "link set br-idle up",
        "link set br-idle down",
        "link add pvbr9 type bridge",
        "link set pvbr9 alias pv-lookalike",
        "route add 203.0.113.0/24 via 192.0.2.2",
        "-6 route add 2001:db8:9::/64 via 2001:db8::2",
        "rule add from 198.51.100.0/24 lookup 77",
    ] {
        device.ns.ip(line)?;
    }
    device.ns.sh("tc qdisc add dev up0 clsact")?;
    device.ns.sh("nft add table inet own")?;
    Ok(outside)
}

/// Two pools on the administrator's bridges, of which one is in use and one is down, and a pool on a new bridge.
fn mixed_pools() -> Value {
    let mut config = configs::open_pools();
    config["network"]["pools"]["internal"]["bridge"] = "br-own".into();
    config["network"]["pools"]["idle"] = configs::pool(5);
    config["network"]["pools"]["idle"]["bridge"] = "br-idle".into();
    config
}

#[test]
fn down_leaves_the_device_as_it_was() -> Result<()> {
    let mut device = Device::new(&mixed_pools())?;
    let outside = administrators_own(&device)?;
    let before = settled(&device)?;
    for (round, with_daemon) in [(1, true), (2, false)] {
        device.start()?;
        let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
        let (c, d) = (device.attach("c", "management")?, device.attach("d", "idle")?);
        for to in b.addresses().into_iter().chain(c.addresses()) {
            a.ns.ping(to, 2)?;
        }
        d.ns.ping("10.0.5.1", 1)?;
        device.stop(Signal::SIGKILL)?;
        device.start()?;
        let e = device.attach("e", "idle")?;
        d.ns.ping(e.v6, 1)?;
        // One container's namespace is deleted, one container is detached, the others are left to `down`.
        drop(b);
        device.cli(&["detach", "d"]).ok()?;
        device.stop(Signal::SIGTERM)?;
        device.start()?;
        if !with_daemon {
            device.stop(Signal::SIGKILL)?;
        }
        device.down().with_context(|| format!("round {round}"))?;
        same(&device, &before, &format!("round {round}"))?;
        let links = a.ns.ip("-o link")?;
        ensure!(!links.contains("eth0"), "the container keeps {links}");
        for dir in ["state", "run"] {
            let left: Vec<_> = std::fs::read_dir(device.file(dir))?.flatten().map(|e| e.file_name()).collect();
            ensure!(left.is_empty(), "{dir} has {left:?}");
        }
        outside.ping("192.0.2.1", 1)?;
    }
    // A second `down` has nothing to do, and succeeds.
    device.down()?;
    same(&device, &before, "a second `down`")
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let before = Snapshot::of(&device)?;
    let said = device.file("second");
    let mut second = device.command().arg("run").stdin(Stdio::null()).stderr(File::create(&said)?).spawn()?;
    let ended = eventually(SOON, || second.try_wait()?.context("the second daemon runs"));
    if ended.is_err() {
        second.kill()?;
        second.wait()?;
    }
    let (ended, said) = (ended?, std::fs::read_to_string(&said)?);
    ensure!(ended.code() == Some(1), "{ended}: {said}");
    ensure!(said.contains("error: ") && said.contains("another daemon runs") && said.contains("help: "), "{said}");
    // The first daemon is not affected.
    same(&device, &before, "after a second daemon")?;
    a.ns.ping(b.v4, 1)?;
    device.attach("c", "management")?;
    Ok(())
}

/// A daemon's command with directories of its own, except those that are given.
fn other(ns: &Namespace, own: &Path, shared: &[(&str, PathBuf)]) -> Result<Command> {
    let mut command = ns.command(&harness::binary()?.display().to_string());
    command.stdin(Stdio::null());
    for (flag, dir) in [("--run-dir", "run"), ("--state-dir", "state"), ("--bpffs", "bpf/pv-net"), ("--config", "none")]
    {
        let given = shared.iter().find(|(name, _)| *name == flag).map(|(_, dir)| dir.clone());
        command.arg(flag).arg(given.unwrap_or_else(|| own.join(dir)));
    }
    Ok(command)
}

/// Other directories do not make it another device: not in the same network namespace, and not with the same state or pins.
#[test]
fn a_second_daemon_with_other_directories_is_refused() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let before = Snapshot::of(&device)?;
    let elsewhere = Device::new(&json!({}))?;
    let own = elsewhere.file("");
    let (state, pins) = (("--state-dir", device.file("state")), ("--bpffs", device.pins()));
    let config = ("--config", device.config());
    let process = format!("process {}", device.daemon()?.pid());
    for (what, ns, shared, why) in [
        ("all of its own", &device.ns, &[config.clone()][..], process.as_str()),
        ("the same pins", &device.ns, &[pins.clone(), config.clone()], &process),
        ("the same state", &device.ns, &[state.clone(), config.clone()], "state"),
        ("the same pins elsewhere", &elsewhere.ns, &[pins, config.clone()], "pv-net"),
        ("the same state elsewhere", &elsewhere.ns, &[state, config], "state"),
    ] {
        for word in ["run", "down"] {
            let mut command = other(ns, &own, shared)?;
            let said = elsewhere.file("said");
            let mut second = command.arg(word).stderr(File::create(&said)?).spawn()?;
            let ended = eventually(SOON, || second.try_wait()?.context("it goes on"));
            if ended.is_err() {
                second.kill()?;
                second.wait()?;
            }
            let said = std::fs::read_to_string(&said)?;
            let ended = ended.with_context(|| format!("{word}, {what}: {said}"))?;
            ensure!(!ended.success() && said.contains("help: "), "{word}, {what}: {ended}: {said}");
            ensure!(said.contains("another daemon runs") && said.contains(why), "{word}, {what}: {said}");
        }
        same(&device, &before, what)?;
    }
    a.ns.ping(b.v4, 1)?;
    // A daemon that is killed keeps none away, also not the next moment.
    for _ in 0..3 {
        device.stop(Signal::SIGKILL)?;
        device.start()?;
    }
    a.ns.ping(b.v6, 1)
}

/// Another user who has the name by which daemons find each other does not keep them from starting.
#[test]
fn a_name_of_another_user_keeps_no_daemon_away() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let listener = device.ns.run(|| {
        // SAFETY: takes numbers only, and changes the calling thread alone.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name("pv-net-daemon")?)?)
    })?;
    device.start()?;
    device.attach("a", "internal")?;
    let log = device.log();
    ensure!(log.contains("user 65534 has the name @pv-net-daemon"), "{log}");
    drop(listener);
    Ok(())
}

#[test]
fn a_bad_file_is_refused_and_changes_nothing() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let (before, pools) = (settled(&device)?, device.json(&["pools"])?);
    let mut broken = configs::two_pools();
    broken["network"]["pools"]["third"] = json!({"subnet6": "fd00:pv::/64"});
    device.configure(&broken)?;

    let reply = device.cli(&["reload"]);
    ensure!(reply.code == Some(2), "{reply:?}");
    for part in ["device.json", "network.pools.third.subnet6", "fd00:pv::/64", "\"pv\""] {
        ensure!(reply.stderr.contains(part), "no {part} in: {}", reply.stderr);
    }
    device.daemon()?.signal(Signal::SIGHUP)?;
    eventually(SOON, || {
        let log = device.log();
        ensure!(log.contains("not reloaded") && log.contains("network.pools.third.subnet6"), "{log}");
        Ok(())
    })?;
    ensure!(!device.log().contains('\x1b'), "the log has control characters: {:?}", device.log());

    same(&device, &before, "after a bad file")?;
    ensure!(device.json(&["pools"])? == pools, "the pools changed");
    a.ns.ping(b.v6, 1)?;
    Ok(())
}

#[test]
fn a_signal_during_a_start_is_kept() -> Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let device = Device::new(&configs::two_pools())?;
        let log = std::fs::File::create(device.file("log"))?;
        let mut daemon = Process::start(device.command().arg("run").stderr(log.try_clone()?).stdout(log))?;
        // It has begun, and loads its programs for some time.
        while !device.pins().exists() {
            ensure!(!daemon.has_ended()?, "it has ended by itself: {}", device.log());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        daemon.signal(signal)?;
        if signal == Signal::SIGHUP {
            eventually(SOON, || {
                ensure!(!daemon.has_ended()?, "it has ended: {}", device.log());
                device.json(&["status"])
            })?;
            continue;
        }
        let status = eventually(SOON, || daemon.ended()?.context("it goes on"))?;
        ensure!(status.success(), "{status}: {}", device.log());
    }
    Ok(())
}

#[test]
fn a_reload_adds_and_removes_pools_under_traffic() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let mut ping = a.ns.command("ping");
    ping.args(["-n", "-q", "-i", "0.005", "-W", "5", &b.v6.to_string()]);
    let ping = Process::start(ping.stdout(Stdio::piped()))?;
    let two = settled(&device)?;

    let mut three = configs::two_pools();
    three["network"]["pools"]["third"] = configs::pool(5);
    device.configure(&three)?;
    device.daemon()?.signal(Signal::SIGHUP)?;
    let third = eventually(SOON, || device.attach("c", "third"))?;
    third.ns.ping("fd00:5056:0:5::1", 1)?;

    // A pool in use stays, whatever the file says, and so does the rest of the old configuration.
    device.configure(&configs::two_pools())?;
    let reply = device.cli(&["reload"]);
    ensure!(reply.code == Some(1), "{reply:?}");
    ensure!(reply.stderr.contains("network.pools.third") && reply.stderr.contains(": c"), "{}", reply.stderr);
    ensure!(reply.stderr.contains("help: "), "{}", reply.stderr);
    third.ns.ping("10.0.5.1", 1)?;
    device.cli(&["detach", "c"]).ok()?;
    device.cli(&["reload"]).ok()?;
    let refused = device.cli(&["attach", "d", "--netns", &third.ns.path().display().to_string(), "--pool", "third"]);
    ensure!(refused.code == Some(2) && refused.stderr.contains("no such pool"), "{refused:?}");
    same(&device, &two, "with the pool gone again")?;

    // A stop removes nothing.
    device.stop(Signal::SIGTERM)?;
    same(&device, &two, "after SIGTERM")?;
    ping.signal(Signal::SIGINT)?;
    let said = ping.finish(SOON)?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

#[test]
fn a_reload_opens_and_closes_pools_for_flows_that_exist() -> Result<()> {
    let device = Device::started(&configs::open_pools())?;
    let (a, c) = (device.attach("a", "internal")?, device.attach("c", "management")?);
    for to in c.addresses() {
        echo::serve(&c.ns, to, 7000)?;
        echo::tcp(&a.ns, std::net::SocketAddr::new(to, 7000), &[1; 10_000])?;
    }
    let mut stream = echo::connect(&a.ns, (c.v4, 7000).into())?;
    device.configure(&configs::two_pools())?;
    device.cli(&["reload"]).ok()?;
    let lost = {
        use std::io::{Read, Write};
        stream.write_all(b"after the reload").err().or_else(|| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).err()
        })
    };
    let reset = lost.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(reset, "the stream outlived its permission: {lost:?}");
    device.configure(&configs::open_pools())?;
    device.cli(&["reload"]).ok()?;
    for to in c.addresses() {
        echo::tcp(&a.ns, std::net::SocketAddr::new(to, 7000), &[2; 10_000])?;
    }
    Ok(())
}

#[test]
fn a_bridge_of_others_is_given_back_with_its_pool() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let _outside = administrators_own(&device)?;
    device.start()?;
    let before = settled(&device)?;
    let mut four = configs::two_pools();
    for (name, n, bridge) in [("idle", 5, "br-idle"), ("shared", 6, "br-own")] {
        four["network"]["pools"][name] = configs::pool(n);
        four["network"]["pools"][name]["bridge"] = bridge.into();
    }
    device.configure(&four)?;
    device.cli(&["reload"]).ok()?;
    let c = device.attach("c", "idle")?;
    c.ns.ping("10.0.5.1", 1)?;

    // A pool with a container is kept, even if the file that a restart reads does not contain it.
    device.configure(&configs::two_pools())?;
    device.stop(Signal::SIGTERM)?;
    device.start()?;
    let conditions = device.json(&["containers"])?[0]["conditions"].to_string();
    ensure!(conditions.contains("pool idle is not available"), "{conditions}");
    ensure!(c.ns.ping("10.0.5.1", 1).is_err(), "its traffic goes on");

    device.cli(&["detach", "c"]).ok()?;
    device.cli(&["reload"]).ok()?;
    same(&device, &before, "without the pools")
}
