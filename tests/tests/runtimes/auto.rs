//! Automatic starts, in the order of the services.

use crate::starter::{SERVES, Starter};
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;

fn needs(service: &str) -> Value {
    json!({"start": "auto", "services": {"required": [{"name": service}]}})
}

fn offer(starter: &Starter, name: &str, service: &str) -> Result<()> {
    let file = starter.lab.device.file("containers").join(name).join("services.json");
    Ok(fs::write(file, json!([{"name": service, "type": "tcp", "port": 80}]).to_string())?)
}

/// Whoever offers a service is started before those that need it; nothing is started twice, or after a stop by a person.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn automatic_starts_follow_the_services() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        // By their names they would start in the other order.
        starter.declare("app", SERVES, needs("sql"))?;
        starter.declare("db", SERVES, json!({"start": "auto"}))?;
        offer(&starter, "db", "sql")?;
        starter.declare("late", SERVES, needs("broken"))?;
        starter.declare("wrong", "exit 3\n", json!({"start": "auto"}))?;
        offer(&starter, "wrong", "broken")?;
        let mut run: Value =
            serde_json::from_str(&fs::read_to_string(starter.lab.device.file("containers/wrong/run.json"))?)?;
        run["runtime"][if kind == "lxc" { "lxcpath" } else { "bundle" }] = json!("/nowhere");
        starter.write("wrong", &run)?;
        starter.declare("ring1", SERVES, needs("two"))?;
        offer(&starter, "ring1", "one")?;
        starter.declare("ring2", SERVES, needs("one"))?;
        offer(&starter, "ring2", "two")?;
        starter.lab.device.stop(Signal::SIGTERM)?;
        starter.lab.device.start()?;
        for name in ["app", "db"] {
            starter.becomes(name, "running")?;
            starter.identity(name)?;
        }
        let log = starter.log();
        let started = |name: &str| {
            log.lines().position(|line| line.contains("started") && line.contains(&format!("container={name}")))
        };
        ensure!(started("db").context("db")? < started("app").context("app")?, "{log}");
        for (name, why) in [
            ("wrong", "/nowhere"),
            ("late", "it needs container wrong, which was not started"),
            ("ring1", "it waits for itself: ring1 → ring2 → ring1"),
            ("ring2", "it waits for itself"),
        ] {
            starter.becomes(name, "failed")?;
            let conditions = starter.lab.view(name)?["conditions"].to_string();
            ensure!(conditions.contains(why), "{name}: {conditions}");
        }
        // `check` says so before.
        let file =
            |name: &str, file: &str| starter.lab.device.file("containers").join(name).join(file).display().to_string();
        let files: Vec<String> =
            ["ring1", "ring2"].iter().flat_map(|name| [file(name, "run.json"), file(name, "services.json")]).collect();
        let words: Vec<&str> = ["check"].into_iter().chain(files.iter().map(String::as_str)).collect();
        let checked = starter.lab.device.cli(&words);
        ensure!(checked.code == Some(2) && checked.stderr.contains("ring1 → ring2 → ring1"), "{checked:?}");
        // The next daemon finds what runs, and leaves alone what a person has stopped.
        let pid = starter.becomes("app", "running")?;
        starter.act("stop", "db")?;
        starter.lab.device.stop(Signal::SIGKILL)?;
        starter.lab.device.start()?;
        ensure!(starter.becomes("app", "running")? == pid, "started twice");
        eventually(SOON, || {
            let log = starter.log();
            let is_left = |line: &str| line.contains("stopped by a request") && line.contains("container=db");
            ensure!(log.lines().any(is_left), "{log}");
            Ok(())
        })?;
        ensure!(starter.becomes("app", "running")? == pid, "started twice");
        ensure!(starter.runs("db")?.0 == "stopped", "{}", starter.lab.view("db")?);
        starter.act("stop", "app")?;
        starter.lab.no_links()?;
    }
    Ok(())
}

/// When the runner is killed in the middle of the automatic starts, the next one goes on with them: what was being started
/// is waited for. When they are over, a new runner starts nothing.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn automatic_starts_are_gone_on_with_by_the_next_runner() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("app", SERVES, needs("sql"))?;
        starter.declare("db", SERVES, json!({"start": "auto"}))?;
        offer(&starter, "db", "sql")?;
        let mark = starter.lab.device.file("starting").display().to_string();
        let hook = format!("touch {mark}; sleep 3");
        if kind == "lxc" {
            let config = starter.lab.device.file("lxc/db/config");
            let text = fs::read_to_string(&config)? + &format!("lxc.hook.pre-start = sh -c '{hook}'\n");
            fs::write(&config, text)?;
        } else {
            let config = starter.lab.device.file("bundles/db/config.json");
            let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
            spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", hook]}]);
            fs::write(&config, spec.to_string())?;
        }
        starter.lab.device.stop(Signal::SIGTERM)?;
        starter.lab.device.start()?;
        eventually(SOON, || Ok(fs::metadata(&mark)?))?;
        starter.runner = None;
        // An OCI runtime does not say that it is just starting a container.
        if kind == "runc" {
            eventually(SOON, || {
                ensure!(starter.is_running("db")?, "db does not run");
                Ok(())
            })?;
        }
        starter.start_runner()?;
        for name in ["db", "app"] {
            eventually(SOON, || starter.identity(name))?;
        }
        // When they are over, as the first daemon's without any container, the next runner starts nothing.
        eventually(SOON, || {
            let log = starter.lab.device.log();
            ensure!(log.matches("the automatic starts are over").count() == 2, "{log}");
            Ok(())
        })?;
        starter.runner = None;
        starter.start_runner()?;
        for name in ["db", "app"] {
            starter.becomes(name, "running")?;
        }
        ensure!(starter.log().matches("automatic starts").count() == 3, "{}", starter.log());
        for name in ["app", "db"] {
            starter.act("stop", name)?;
        }
        starter.lab.no_links()?;
    }
    Ok(())
}
