//! `pv-net plan`: it prints what a reload would do, and changes nothing.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS, UPLINK};
use harness::{Device, SOON, Snapshot, echo, eventually};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const PORT: u16 = 7000;

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

fn has(value: &Value, part: &str) -> Result<()> {
    ensure!(texts(value).iter().any(|text| text.contains(part)), "no {part:?} in {value:#}");
    Ok(())
}

/// Everything that a reload could change: the device's network, maps of the programs, the state on disk.
fn all(device: &Device) -> Result<(Snapshot, String, Vec<u8>)> {
    let maps = ["locals", "networks", "uplinks", "port_map", "filter_sources", "interfaces", "endpoints"];
    let dump = |map: &&str| {
        let path = device.pins().join("maps").join(map);
        device.ns.sh(&format!("bpftool -j map dump pinned {}", path.display()))
    };
    let maps = maps.iter().map(dump).collect::<Result<Vec<_>>>()?.join("\n");
    Ok((Snapshot::of(device)?, maps, std::fs::read(device.file("state/state.json"))?))
}

#[test]
fn a_plan_says_what_a_reload_does_and_changes_nothing() -> Result<()> {
    plan_and_reload(false)
}

/// Without tcx the kernel lists filters, which show on which links programs are.
#[test]
fn a_plan_without_tcx_says_the_same() -> Result<()> {
    plan_and_reload(true)
}

fn plan_and_reload(clsact: bool) -> Result<()> {
    let mut config = configs::masqueraded();
    let mut device = Device::new(&config)?;
    device.clsact = clsact;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&json!({
        "#spec": "service-manifest-run@1", "name": "web", "type": "netns",
        "network": {"pool": "internal", "ports": ["8080:80/tcp"]},
    }))?;
    let mut open = Vec::new();
    for (host, _) in HOSTS {
        echo::serve(&out, host, PORT)?;
        let mut stream = web.ns.run(|| Ok(TcpStream::connect(SocketAddr::new(host, PORT))?))?;
        stream.write_all(b"x")?;
        let mut answer = [0; 64];
        ensure!(stream.read(&mut answer)? > 0, "no answer");
        open.push(stream);
    }
    // The kernel adds the links' own addresses some time later; the plan has a step for them until the daemon knows
    // them.
    let nothing_to_do = |when: &str| {
        eventually(SOON, || {
            let text = device.cli(&["reload", "--dry-run"]).ok()?;
            ensure!(text.trim() == "nothing changes", "{when}: {text}");
            Ok(())
        })
    };
    nothing_to_do("an unchanged configuration")?;

    // A new pool, a rule, a filter, and another uplink: the flows of the old uplink end.
    let _elsewhere = device.outside("up1", &["198.51.100.1/24"], &["198.51.100.9/24"])?;
    eventually(SOON, || {
        ensure!(device.json(&["status"])?["uplinks"].to_string().contains(UPLINK), "not settled");
        Ok(())
    })?;
    config["network"]["uplinks"] = json!(["up1"]);
    config["network"]["pools"]["guest"] = configs::pool(5);
    config["network"]["policies"] =
        json!([{"name": "quiet", "from": {"pool": "guest"}, "to": "world", "action": "deny"}]);
    config["network"]["uplink_filter"] = json!({"xdp": "generic", "deny": ["203.0.113.0/24"]});
    device.configure(&config)?;
    // The kernel adds the new link's own address some time later.
    let mut plan = Value::Null;
    eventually(SOON, || {
        let before = all(&device)?;
        plan = device.json(&["plan"])?;
        let after = all(&device)?;
        ensure!(before.0.diff(&after.0).is_empty(), "changed: {}", before.0.diff(&after.0));
        ensure!(before.1 == after.1, "maps changed");
        ensure!(before.2 == after.2, "the state changed");
        Ok(())
    })?;
    ensure!(texts(&plan["pools"]["added"]) == ["guest"], "{plan:#}");
    has(&plan["rules"]["added"], "quiet: deny pool guest to world")?;
    for step in [
        "bridge pvbr5 made",
        "pvbr5 address 10.0.5.1/24 added",
        "pvbr5 address fd00:5056:0:5::1/64 added",
        "pvbr5 up",
        "program on bridge pvbr5",
        "program on uplink up1",
        "program on uplink up0 removed",
        "filtered source 203.0.113.0/24 set",
        "filter (generic) on uplink up1",
        "pool network 10.0.5.0/24 set",
        "rules put in force",
    ] {
        has(&plan["steps"], step)?;
    }
    for (host, _) in HOSTS {
        has(&plan["flows"], &SocketAddr::new(host, PORT).to_string())?;
    }
    let text = device.cli(&["plan"]).ok()?;
    ensure!(text.contains("flows that end") && text.contains("pools added"), "{text}");

    // A reload does what the plan has shown.
    device.cli(&["reload"]).ok()?;
    let links = device.ns.ip("-o link")?;
    ensure!(links.contains("pvbr5"), "{links}");
    nothing_to_do("after the reload")?;
    let flows = device.json(&["flows"])?;
    let went_on = flows.as_array().context("no list")?.iter().filter(|f| f["dport"] == json!(PORT)).count();
    ensure!(went_on == 0, "{flows:#}");
    Ok(())
}

/// Bridges that two pools exchange are made anew, and the plan has every step for both.
#[test]
fn a_plan_of_exchanged_bridges_is_complete() -> Result<()> {
    let mut config = configs::two_pools();
    let device = Device::started(&config)?;
    let pools = &mut config["network"]["pools"];
    let bridge = pools["internal"]["bridge"].take();
    pools["internal"]["bridge"] = pools["management"]["bridge"].take();
    pools["management"]["bridge"] = bridge;
    device.configure(&config)?;
    let plan = device.json(&["plan"])?;
    for (bridge, n) in [("pvbr4", 3), ("pvbr3", 4)] {
        for step in [
            format!("{bridge} deleted"),
            format!("bridge {bridge} made"),
            format!("{bridge} address 10.0.{n}.1/24 added"),
            format!("{bridge} address fd00:5056:0:{n}::1/64 added"),
            format!("net.ipv4.conf.{bridge}.forwarding = 1"),
            format!("net.ipv6.conf.{bridge}.forwarding = 1"),
            format!("{bridge} up"),
            format!("program on bridge {bridge}"),
            format!("pool network 10.0.{n}.0/24 set"),
        ] {
            has(&plan["steps"], &step)?;
        }
    }
    device.cli(&["reload"]).ok()?;
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    a.ns.ping(b.v4, 1)
}

/// The plan fails where the reload fails, with the same words.
#[test]
fn a_plan_is_refused_as_the_reload_is() -> Result<()> {
    let config = configs::two_pools();
    let device = Device::started(&config)?;
    let _a = device.attach("a", "internal")?;
    let mut other = config.clone();
    other["network"]["pools"]["internal"] = configs::pool(9);
    let mut wrong = config.clone();
    wrong["network"]["pools"]["internal"]["subnet"] = json!("10.0.3.0/99");
    for refused in [other, wrong] {
        device.configure(&refused)?;
        let [plan, reload] = ["plan", "reload"].map(|word| device.cli(&[word]));
        ensure!(plan.code == reload.code && plan.code != Some(0), "{plan:?} {reload:?}");
        ensure!(plan.stderr == reload.stderr, "{}\n{}", plan.stderr, reload.stderr);
    }
    Ok(())
}
