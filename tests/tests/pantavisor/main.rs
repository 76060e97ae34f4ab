//! pv-net as a container of Pantavisor: the example container is built and started in a test double, signals that a
//! revision's network is ready, and has a revision with a bad network rolled back.

mod double;
mod lab;
mod lxc;
mod server;

use anyhow::{Context, Result, ensure};
use harness::configs::{DEVICE, HOST, UPLINK, pool, two_pools};
use harness::{SOON, eventually};
use lab::{Lab, ROOMS};
use pv_net::kernel::link::knows_netkit;
use serde_json::{Value, json};
use std::fs;
use std::sync::mpsc;
use std::time::Duration;

/// The two pools, and what Pantavisor has in the file beside.
fn device() -> Value {
    let mut device = two_pools();
    device["groups"] = json!([{"name": "root", "status_goal": "STARTED", "restart_policy": "system", "timeout": 30}]);
    device["disks"] = json!([]);
    device
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_revision_is_ready_and_its_containers_are_in_their_pools() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    let list = lab.list()?;
    let all = list.as_array().context("a list")?;
    let status = |name: &str| all.iter().find(|c| c["name"] == name).map(|c| c["status"].clone());
    ensure!(status("pv-net") == Some(json!("READY")), "{list}");
    ensure!(["web", "db", "other"].iter().all(|name| status(name) == Some(json!("STARTED"))), "{list}");
    lab.pools_hold()?;
    // The names and the offers of a revision are those of any other configuration.
    let found = lab.device.cli(&["resolve", "page.pv.local"]).ok()?;
    ensure!(found.contains(&lab.addresses("web")?[0]), "{found}");
    ensure!(lab.device_meta().is_empty(), "{:?}", lab.device_meta());
    // People see the same without JSON.
    let table = lab.pantavisor(&["list"]).ok()?;
    ensure!(table.contains("READY") && table.contains("RESTART POLICY"), "{table}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_revision_with_a_bad_network_is_rolled_back() -> Result<()> {
    let lab = Lab::new(SOON)?;
    let _outside = lab.device.outside(UPLINK, &DEVICE, &HOST)?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    let before = lab.addresses("web")?;

    let mut gateway = device();
    gateway["network"]["pools"]["internal"]["gateway"] = json!("10.9.9.9");
    let mut misspelt = device();
    misspelt["netwrok"] = misspelt["network"].take();
    let mut overlap = device();
    overlap["network"]["uplinks"] = json!([UPLINK]);
    overlap["network"]["pools"]["wide"] = json!({"bridge": "pvbr9", "subnet": "192.0.2.0/24", "gateway": "192.0.2.7"});
    for (name, config, containers, part) in [
        ("locals/gateway", gateway, ROOMS.to_vec(), "network.pools.internal.gateway"),
        ("locals/misspelt", misspelt, ROOMS.to_vec(), "netwrok"),
        ("locals/overlap", overlap, ROOMS.to_vec(), "192.0.2.0/24"),
        ("locals/nowhere", device_of_two_rooms(), [&ROOMS[..], &[("new", "nowhere")]].concat(), "no such pool"),
    ] {
        lab.revision(name, &config, &containers)?;
        // While no daemon runs, what was attached is guarded.
        let (done, seen) = mpsc::channel();
        lab.before_rollback(move |lab| done.send(lab.guard_holds()).expect("somebody waits"));
        let (status, message) = lab.pv.run(name)?;
        ensure!(status == "ERROR" && message.contains("pv-net: A container could not be started"), "{name}: {message}");
        ensure!(message.contains("exit status: 2") && !message.contains("rollback"), "{name}: {message}");
        seen.recv()?.with_context(|| format!("{name}: guard"))?;
        // What the log has too.
        let meta = lab.device_meta();
        let why = meta.get("pv-net.error").with_context(|| format!("{name}: {meta:?}"))?;
        ensure!(why.starts_with(&format!("{name}: ")) && why.contains(part), "{name}: {why}");
        ensure!(lab.log().contains("error: ") && lab.log().contains(part), "{name}: {}", lab.log());
        // The revision before is in force again.
        ensure!(lab.pv.shared.state().revision == "0", "{name}: not rolled back");
        ensure!(lab.addresses("web")? == before, "{name}: other addresses");
        lab.pools_hold().with_context(|| format!("after {name}"))?;
    }
    Ok(())
}

/// Another file at the root of the revision, so that pv-net is started again.
fn device_of_two_rooms() -> Value {
    let mut device = device();
    device["volumes"] = json!({});
    device
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_revision_that_is_never_in_force_is_not_ready() -> Result<()> {
    let lab = Lab::new(Duration::from_secs(15))?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    // Somebody's link has the name of the new pool's bridge.
    lab.device.ns.ip("link add pvbr8 type veth peer name pvbr8p")?;
    let mut taken = device();
    taken["network"]["pools"]["new"] = pool(8);
    lab.revision("locals/taken", &taken, &ROOMS)?;
    let (status, message) = lab.pv.run("locals/taken")?;
    ensure!(status == "ERROR" && message.contains("pv-net: Status goal not reached"), "{message}");
    ensure!(!message.contains("rollback"), "{message}");
    let why = lab.device_meta().get("pv-net.error").cloned().unwrap_or_default();
    ensure!(why.starts_with("locals/taken: pool new: ") && why.contains("pvbr8"), "{why}");
    lab.pools_hold()?;
    // When the cause is gone, the same revision is ready, and nothing is said against it any more.
    lab.device.ns.ip("link del pvbr8")?;
    lab.runs("locals/taken")?;
    eventually(SOON, || {
        ensure!(lab.device_meta().is_empty(), "{:?}", lab.device_meta());
        Ok(())
    })?;
    lab.pools_hold()
}

/// Links that the kernel lacks keep a revision from being ready only where a container is to have one.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn netkit_links_count_in_the_pool_of_a_container() -> Result<()> {
    let lab = Lab::new(Duration::from_secs(15))?;
    if lab.device.ns.run(|| Ok(knows_netkit()?))? {
        println!("skipped: this kernel has netkit");
        return Ok(());
    }
    let with_spare = |mut device: Value| {
        device["network"]["pools"]["spare"] = pool(8);
        device["network"]["pools"]["spare"]["link"] = json!("netkit");
        device
    };
    lab.revision("0", &with_spare(device()), &ROOMS)?;
    lab.runs("0")?;
    let status = lab.device.json(&["status"])?["conditions"].to_string();
    ensure!(status.contains("pool spare: link: "), "{status}");
    lab.revision("locals/1", &with_spare(device_of_two_rooms()), &[&ROOMS[..], &[("late", "spare")]].concat())?;
    let (status, message) = lab.pv.run("locals/1")?;
    ensure!(status == "ERROR" && message.contains("pv-net: Status goal not reached"), "{message}");
    let why = lab.device_meta().get("pv-net.error").cloned().unwrap_or_default();
    ensure!(why.starts_with("locals/1: pool spare: link: this kernel has no netkit links"), "{why}");
    lab.pools_hold()
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn containers_are_stopped_and_started_by_the_control_socket() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    let before = lab.addresses("web")?;
    for word in ["start", "restart"] {
        let said = lab.pantavisor(&[word, "web"]).ok()?;
        ensure!(said == format!("container web: {word}ed\n"), "{said}");
        eventually(SOON, || lab.pools_hold())?;
    }
    lab.pantavisor(&["stop", "web"]).ok()?;
    let list = lab.list()?;
    let web = list.as_array().into_iter().flatten().find(|c| c["name"] == "web").cloned();
    ensure!(web.is_some_and(|web| web["status"] == "STOPPED"), "{list}");
    eventually(SOON, || {
        let links = lab.device.ns.ip("-o link show type veth")?;
        ensure!(links.lines().count() == 2, "{links}");
        Ok(())
    })?;
    lab.pantavisor(&["start", "web"]).ok()?;
    ensure!(lab.addresses("web")? == before, "other addresses");
    lab.pools_hold()?;

    for (words, code, part) in [
        (["restart", "pv-net"], 1, "restart_policy 'system'"),
        (["stop", "nobody"], 1, "Container not found"),
        (["stop", "no name"], 2, "no name"),
    ] {
        let refused = lab.pantavisor(&words);
        ensure!(refused.code == Some(code) && refused.stderr.starts_with("error: container "), "{refused:?}");
        ensure!(refused.stderr.contains(part), "{refused:?}");
    }
    let nobody = lab.device.cli(&["--pv-ctrl", "/nobody/there", "pantavisor", "list"]);
    ensure!(nobody.code == Some(1) && nobody.stderr.contains("help: name Pantavisor's control socket"), "{nobody:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_update_of_other_containers_is_followed_without_a_restart() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    let pid = lab.pid("pv-net")?;
    // The new container's hook is called at once, before anybody has asked for a reload.
    let with_late = [&ROOMS[..], &[("late", "internal")]].concat();
    lab.revision("locals/1", &device(), &with_late)?;
    lab.runs("locals/1")?;
    ensure!(lab.pid("pv-net")? == pid, "pv-net was started again");
    let late = lab.addresses("late")?;
    lab.in_container("web", |ns| late.iter().try_for_each(|address| ns.ping(address, 2)))?;
    lab.pools_hold()?;
    // One whose containers cannot be carried out fails by its container, which is not started without its network.
    let with_lost = [&with_late[..], &[("lost", "nowhere")]].concat();
    lab.revision("locals/2", &device(), &with_lost)?;
    let (status, message) = lab.pv.run("locals/2")?;
    ensure!(status == "ERROR" && message.contains("no such pool"), "{message}");
    lab.pools_hold()?;
    eventually(SOON, || {
        let why = lab.device_meta().get("pv-net.error").cloned().unwrap_or_default();
        ensure!(why.starts_with("locals/2: ") && why.contains("no such pool"), "{why}");
        Ok(())
    })?;
    // Where no container is started, the end of pv-net's is what Pantavisor sees.
    lab.revision("locals/3", &device(), &with_late)?;
    let services = json!([{"name": "page", "type": "http", "port": 70_000}]);
    fs::write(lab.pv.shared.trail("locals/3").join("web/services.json"), services.to_string())?;
    lab.pv.shared.set_commit_delay(SOON);
    let (status, message) = lab.pv.run("locals/3")?;
    ensure!(
        status == "ERROR" && message.contains("pv-net: A container could not be started: exit status: 2"),
        "{message}"
    );
    ensure!(!message.contains("rollback"), "{message}");
    let why = lab.device_meta().get("pv-net.error").cloned().unwrap_or_default();
    ensure!(why.starts_with("locals/3: ") && why.contains("services[0].port"), "{why}");
    lab.pools_hold()
}

/// A container's address may be another one's in the next revision.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_goes_to_another_container() -> Result<()> {
    let lab = Lab::new(SOON)?;
    let revision = |name: &str, owner: &str| {
        lab.revision(name, &device(), &[&ROOMS[..], &[(owner, "internal")]].concat())?;
        let file = lab.pv.shared.trail(name).join(owner).join("run.json");
        let mut run: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        run["network"] = json!({"mode": "pool", "interfaces": [{"pool": "internal", "ipv4_address": "10.0.3.80/24"}]});
        anyhow::Ok(fs::write(file, run.to_string())?)
    };
    for (name, owner) in [("0", "shop"), ("locals/1", "shop2"), ("locals/2", "shop")] {
        revision(name, owner)?;
        lab.runs(name)?;
        ensure!(lab.addresses(owner)?[0] == "10.0.3.80", "{name}");
    }
    // When pv-net is started anew, too.
    let mut other = device();
    other["volumes"] = json!({});
    lab.revision("locals/3", &other, &ROOMS)?;
    revision("locals/4", "shop3")?;
    lab.runs("locals/3")?;
    lab.runs("locals/4")?;
    ensure!(lab.addresses("shop3")?[0] == "10.0.3.80", "locals/4");
    lab.pools_hold()
}

/// An address that only LXC gives to a container, which is in no pool, is nobody else's.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_in_a_configuration_of_lxc_is_nobody_elses() -> Result<()> {
    let lab = Lab::new(Duration::from_secs(15))?;
    let revision = |name: &str, device: &Value, address: &str| {
        lab.revision(name, device, &[&ROOMS[..], &[("aside", "internal")]].concat())?;
        let dir = lab.pv.shared.trail(name).join("aside");
        let mut run: Value = serde_json::from_str(&fs::read_to_string(dir.join("run.json"))?)?;
        run.as_object_mut().context("an object")?.remove("network");
        run["config"] = json!("own.conf");
        fs::write(dir.join("run.json"), run.to_string())?;
        let net = format!("lxc.net.0.type = empty\nlxc.net.0.ipv4.address = {address}/24\n");
        anyhow::Ok(fs::write(dir.join("own.conf"), format!("lxc.init.cmd = /bin/sleep 100000\n{net}"))?)
    };
    // Without it, one of the others would have the first address of the pool.
    revision("0", &device(), "10.0.3.2")?;
    lab.runs("0")?;
    for name in ["web", "db"] {
        let [address, _] = lab.addresses(name)?;
        ensure!(address != "10.0.3.2", "{name} has it");
    }
    lab.pools_hold()?;
    // One that a container of a pool has already makes the next revision one that is never ready.
    let [taken, _] = lab.addresses("web")?;
    revision("locals/1", &device_of_two_rooms(), &taken)?;
    let (status, message) = lab.pv.run("locals/1")?;
    ensure!(status == "ERROR" && message.contains("pv-net: Status goal not reached"), "{message}");
    let why = lab.device_meta().get("pv-net.error").cloned().unwrap_or_default();
    ensure!(why.contains(&format!("aside/own.conf: {taken} is taken by web@eth0")), "{why}");
    ensure!(lab.addresses("web")?[0] == taken, "another address");
    lab.pools_hold()
}

/// A revision that is over before the next look for it is not left in force.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_revision_that_another_container_fails_is_not_kept() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    lab.runs("0")?;
    let pid = lab.pid("pv-net")?;
    // The hook of `late` has it put in force; `never` cannot be started.
    lab.revision("locals/1", &device(), &[&ROOMS[..], &[("late", "internal"), ("never", "internal")]].concat())?;
    let trail = lab.pv.shared.trail("locals/1");
    fs::write(trail.join("never/lxc.container.conf"), "lxc.init.cmd = /bin/true\nlxc.hook.pre-start = /bin/false\n")?;
    let offers = json!([{"name": "second", "type": "http", "port": 81}]);
    fs::write(trail.join("web/services.json"), offers.to_string())?;
    let (status, message) = lab.pv.run("locals/1")?;
    ensure!(status == "ERROR" && message.contains("never: A container could not be started"), "{message}");
    ensure!(!message.contains("rollback"), "{message}");
    eventually(SOON, || {
        let offers = lab.device.json(&["services"])?.to_string();
        ensure!(offers.contains("page") && !offers.contains("second"), "{offers}");
        Ok(())
    })?;
    ensure!(lab.pid("pv-net")? == pid, "pv-net was started again");
    lab.pools_hold()
}

/// A container without the role `mgmt` may only signal.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_signal_takes_no_role() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    let file = lab.pv.shared.trail("0").join("pv-net/run.json");
    let mut run: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    run["roles"] = json!([]);
    fs::write(&file, run.to_string())?;
    lab.runs("0")?;
    lab.pools_hold()?;
    // Nothing was noted in the device's metadata, so that nobody misses the role.
    ensure!(!lab.log().contains("metadata"), "{}", lab.log());
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_revision_is_checked_before_it_is_installed() -> Result<()> {
    let lab = Lab::new(SOON)?;
    lab.revision("0", &device(), &ROOMS)?;
    let check = |dir: &str| {
        let mut command = std::process::Command::new(harness::binary()?);
        anyhow::Ok(command.arg("--pantavisor").arg(lab.pv.shared.trail(dir)).arg("check").output()?)
    };
    let good = check("0")?;
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    ensure!(good.status.success() && said.contains("all right, with 3 containers in pools"), "{good:?}");
    lab.revision("1", &device(), &[("web", "nowhere")])?;
    let bad = check("1")?;
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    ensure!(bad.status.code() == Some(2) && said.contains("web/run.json: network.interfaces[0].pool"), "{bad:?}");
    let gone = check("2")?;
    ensure!(gone.status.code() == Some(2), "{gone:?}");
    for (words, part) in [(&["check"][..], "no file is named"), (&["check", "x", "--pantavisor", "/x"], "are named")] {
        let output = std::process::Command::new(harness::binary()?).args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains(part), "{words:?}: {said}");
    }
    // Both ways to name a configuration at once.
    let both = lab.device.cli(&["--pantavisor", "/x", "check"]);
    ensure!(both.code == Some(2) && both.stderr.contains("cannot be used with"), "{both:?}");
    Ok(())
}
