//! Starts and stops that fail: what is said, and that nothing of them is left.

use crate::starter::{SERVES, STUBBORN, Starter};
use crate::story::published;
use anyhow::{Context, Result, ensure};
use harness::{Namespace, SOON, eventually, output, unix_http};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_does_not_end_is_killed() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("web", STUBBORN, json!({"stop_timeout": 1}))?;
        starter.act("start", "web")?;
        let begun = Instant::now();
        starter.act("stop", "web")?;
        ensure!(begun.elapsed() >= Duration::from_secs(1), "{kind}: killed after {:?}", begun.elapsed());
        ensure!(!starter.is_running("web")?, "{kind}: it runs");
        starter.lab.no_links()?;
    }
    Ok(())
}

/// Each is told once, and leaves nothing.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_cannot_be_started_is_said() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("web", "exit 3\n", json!({}))?;
        let refused = |starter: &Starter, words: &[&str], code: i32, part: &str| {
            let reply = starter.lab.device.cli(words);
            ensure!(
                reply.code == Some(code) && reply.stderr.contains(part),
                "{kind}: {words:?}: {reply:?}\n{}",
                starter.log()
            );
            Ok(())
        };
        // One that ends at once, whether that is before or after its runtime says that it runs.
        let reply = starter.lab.device.cli(&["containers", "start", "web"]);
        ensure!(reply.code == Some(0) || reply.stderr.contains("ended at once"), "{reply:?}");
        starter.becomes("web", "failed")?;
        starter.lab.no_links()?;
        // Its runtime has nothing of it.
        let run: Value =
            serde_json::from_str(&fs::read_to_string(starter.lab.device.file("containers/web/run.json"))?)?;
        let mut missing = run.clone();
        let key = if kind == "lxc" { "lxcpath" } else { "bundle" };
        missing["runtime"][key] = json!("/nowhere");
        starter.write("web", &missing)?;
        refused(&starter, &["containers", "start", "web"], 2, "/nowhere")?;
        ensure!(starter.runs("web")?.0 == "failed", "{}", starter.lab.view("web")?);
        if kind != "lxc" {
            let mut missing = run.clone();
            missing["runtime"]["program"] = json!("/nowhere/runc");
            starter.write("web", &missing)?;
            refused(&starter, &["containers", "start", "web"], 2, "/nowhere/runc")?;
        }
        // Two that are one.
        starter.write("web", &run)?;
        let mut twin = run.clone();
        twin["name"] = json!("twin");
        twin["network"]["ports"] = json!([]);
        twin["runtime"]["id"] = run["runtime"].get("id").cloned().unwrap_or(json!("web"));
        let dir = starter.write("twin", &twin)?;
        starter.lab.device.cli(&["reload"]).ok()?;
        refused(&starter, &["containers", "start", "twin"], 2, "the same one")?;
        fs::remove_dir_all(dir)?;
        // One that somebody else starts, one that is not declared, and no name.
        starter.write("web", &json!({"name": "web", "type": "lxc", "network": {"pool": "internal"}}))?;
        refused(&starter, &["containers", "start", "web"], 2, "does not say how it is started")?;
        refused(&starter, &["containers", "start", "nobody"], 2, "not declared")?;
        refused(&starter, &["containers", "start", "../web"], 2, "")?;
        let body = json!({"action": "stop", "pid": 1}).to_string();
        let refused_by_api = unix_http::ask(&starter.lab.device.file("run/api.sock"), "PUT", "/containers/web", &body);
        let why = format!("{refused_by_api:?}");
        ensure!(why.contains("400 Bad Request") && why.contains("stands alone"), "{why}");
        // A pool that is gone: its hook fails, so it does not start.
        starter.lab.device.cli(&["reload"]).ok()?;
        starter.declare("db", SERVES, json!({}))?;
        starter.act("start", "db")?;
        starter.act("stop", "db")?;
        let mut of_no_pool = run.clone();
        of_no_pool["name"] = json!("db");
        of_no_pool["network"] = json!({"pool": "gone"});
        of_no_pool["runtime"] = starter.runtime("db")?;
        starter.write("db", &of_no_pool)?;
        starter.lab.device.cli(&["reload"]).ok()?;
        refused(&starter, &["containers", "start", "db"], 1, "declared")?;
        ensure!(!starter.is_running("db")?, "it has started without a network");
        starter.lab.no_links()?;
        ensure!(starter.kept()?.trim().is_empty(), "{kind}: the runtime keeps {}", starter.kept()?);
    }
    Ok(())
}

/// A container whose runtime cannot be asked keeps its network, whoever asks.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_runtime_that_does_not_answer_ends_no_container() -> Result<()> {
    let mut starter = Starter::new("runc")?;
    starter.declare("web", SERVES, json!({}))?;
    starter.act("start", "web")?;
    let own = starter.identity("web")?;
    let pid = starter.becomes("web", "running")?;
    let file = starter.lab.device.file("containers/web/run.json");
    let run: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let is_there = |starter: &Starter, part: &str| {
        let view = starter.lab.view("web")?;
        ensure!(view["state"] == "attached" && view["interfaces"][0]["ipv4_address"] == json!(own[0]), "{view}");
        ensure!(view["runtime"]["pid"].as_u64() == pid && view["conditions"].to_string().contains(part), "{view}");
        published(&starter.lab)
    };
    for (key, value, part) in [("program", "/nowhere/runc", "/nowhere/runc"), ("id", "nobody", "does not know")] {
        let mut wrong = run.clone();
        wrong["runtime"][key] = json!(value);
        starter.write("web", &wrong)?;
        let refused = starter.lab.device.cli(&["containers", "stop", "web"]);
        ensure!(refused.code != Some(0), "{refused:?}");
        is_there(&starter, part)?;
    }
    // A new runner cannot ask either.
    let mut wrong = run.clone();
    wrong["runtime"]["program"] = json!("/nowhere/runc");
    starter.write("web", &wrong)?;
    starter.runner = None;
    starter.start_runner()?;
    starter.becomes("web", "failed")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(starter.lab.view("web")?["state"] == "attached", "{}", starter.lab.view("web")?);
    published(&starter.lab)?;
    // It asks again when the runtime answers.
    starter.write("web", &run)?;
    ensure!(starter.becomes("web", "running")? == pid, "another process");
    is_there(&starter, "[]")?;
    starter.act("stop", "web")?;
    starter.lab.no_links()
}

/// A start that hangs ends after its time, and holds up no other.
fn hangs(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    starter.declare("slow", SERVES, json!({}))?;
    starter.declare("web", SERVES, json!({}))?;
    if kind == "lxc" {
        let config = starter.lab.device.file("lxc/slow/config");
        let text = fs::read_to_string(&config)? + "lxc.hook.pre-start = sh -c 'sleep 1000'\n";
        fs::write(&config, text)?;
    } else {
        let config = starter.lab.device.file("bundles/slow/config.json");
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
        spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sleep", "args": ["sleep", "1000"]}]);
        fs::write(&config, spec.to_string())?;
    }
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| starter.lab.device.cli(&["containers", "start", "slow"]));
        starter.act("start", "web")?;
        ensure!(!slow.is_finished(), "held up by the other start, or that did not hang");
        let slow = slow.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        ensure!(slow.code == Some(1) && slow.stderr.contains("not done within"), "{slow:?}");
        Ok(())
    })?;
    ensure!(starter.runs("slow")?.0 == "failed" && !starter.is_running("slow")?, "it runs");
    starter.act("stop", "web")?;
    starter.lab.no_links()?;
    let kept = starter.kept()?;
    ensure!(kept.trim().is_empty(), "the runtime keeps {kept}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_of_lxc_that_hangs_holds_up_no_other() -> Result<()> {
    hangs("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_of_runc_that_hangs_holds_up_no_other() -> Result<()> {
    hangs("runc")
}

/// A container that runs has deleted its only interface: that is said until its next start. One that it has moved away goes
/// then.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_deletes_its_interface_is_told() -> Result<()> {
    let mut starter = Starter::new("runc")?;
    starter.declare("web", SERVES, json!({}))?;
    starter.act("start", "web")?;
    let own = starter.identity("web")?;
    let elsewhere = Namespace::new("away")?;
    for spoil in ["link del eth0".to_owned(), format!("link set eth0 netns {}", elsewhere.name())] {
        let pid = starter.becomes("web", "running")?.context("a process")?;
        let mut inside = Command::new("nsenter");
        output(inside.arg(format!("--net=/proc/{pid}/ns/net")).arg("ip").args(spoil.split(' ')))?;
        if spoil.contains("del") {
            eventually(SOON, || {
                let view = starter.lab.view("web")?;
                let conditions = view["conditions"].to_string();
                ensure!(conditions.contains("it runs without its interfaces"), "{view}");
                ensure!(conditions.contains("pv-net containers restart web"), "{view}");
                Ok(())
            })?;
            ensure!(starter.is_running("web")?, "it was stopped");
        }
        starter.act("restart", "web")?;
        ensure!(starter.identity("web")? == own, "{spoil}: another identity");
        eventually(SOON, || published(&starter.lab)).context(spoil)?;
    }
    ensure!(elsewhere.ip("-o link show eth0").is_err(), "its former interface is left");
    starter.act("stop", "web")?;
    ensure!(starter.lab.view("web")?["conditions"] == json!([]), "{}", starter.lab.view("web")?);
    starter.lab.no_links()
}

/// A container whose hook does not run is stopped, whether a person or an automatic start has started it.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_starts_without_its_hook_is_stopped() -> Result<()> {
    let mut starter = Starter::new("runc")?;
    starter.declare("web", SERVES, json!({"start": "auto"}))?;
    let program = starter.lab.device.file("unhooked");
    let config = starter.lab.device.file("bundles/web/config.json").display().to_string();
    fs::write(&program, format!("#!/bin/sh\nsed -i s/createRuntime/unknown/ {config}\nexec runc \"$@\"\n"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let file = starter.lab.device.file("containers/web/run.json");
    let mut run: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    run["runtime"]["program"] = json!(program.display().to_string());
    starter.write("web", &run)?;
    let is_stopped = |starter: &Starter| {
        eventually(SOON, || {
            ensure!(starter.runs("web")?.0 == "stopped", "{}", starter.lab.view("web")?);
            ensure!(!starter.is_running("web")?, "it runs");
            Ok(())
        })
    };
    let refused = starter.lab.device.cli(&["containers", "start", "web"]);
    ensure!(refused.code == Some(1) && refused.stderr.contains("without being attached"), "{refused:?}");
    is_stopped(&starter)?;
    starter.lab.device.stop(Signal::SIGTERM)?;
    let before = starter.log().matches("started container=web").count();
    starter.lab.device.start()?;
    eventually(SOON, || {
        let log = starter.log();
        ensure!(log.matches("started container=web").count() > before, "not started: {log}");
        Ok(())
    })?;
    is_stopped(&starter)
}
