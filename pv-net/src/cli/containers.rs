//! `containers`: the table, starting and stopping them, and what is done by their runtimes alone.

use super::Ended;
use super::args::ContainersCommand;
use super::client::call;
use super::direct;
use super::output::{escaped, pretty, say};
use super::table;
use crate::command::Action;
use crate::daemon::Paths;
use hyper::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// All containers, or one.
pub(super) async fn list(paths: &Paths, name: Option<String>, json: bool) -> Result<(), Ended> {
    let path = name.map_or_else(|| "/containers".to_owned(), |name| format!("/containers/{}", escaped(&name)));
    let value = call(paths, Method::GET, &path, None).await?;
    if json {
        say(&pretty(&value));
        return Ok(());
    }
    let all = value.as_array().map_or_else(|| std::slice::from_ref(&value), Vec::as_slice);
    let rows: Vec<Value> = all.iter().flat_map(interface_rows).collect();
    say(&table::render(table::CONTAINERS, &rows));
    for container in all {
        for condition in container["conditions"].as_array().into_iter().flatten() {
            let (name, text) = (&container["name"], condition.as_str().unwrap_or_default());
            say(&format!("{}: {text}", name.as_str().unwrap_or_default()));
        }
    }
    if all.iter().any(|container| container["runtime"]["state"] == "unknown") {
        say("unknown: the runner, which asks the runtimes, does not run or has not answered yet; its start: \
             systemctl start pv-net-runner, or pv-net runner");
    }
    Ok(())
}

/// A row for each interface, with the container's name and state.
fn interface_rows(container: &Value) -> Vec<Value> {
    let runtime = &container["runtime"];
    let runs = match (runtime["state"].as_str(), runtime["pid"].as_u64()) {
        (Some(state), Some(pid)) => json!(format!("{state} ({pid})")),
        (state, _) => json!(state),
    };
    let since = runtime["age_secs"].as_u64().map(table::age);
    let exit = match (runtime["exit_status"].as_i64(), runtime["signal"].as_i64()) {
        (Some(status), _) => json!(status),
        (None, Some(signal)) => json!(format!("signal {signal}")),
        (None, None) => Value::Null,
    };
    let head = json!({
        "container": container["name"], "state": container["state"], "runs": runs, "since": since, "exit": exit,
    });
    let interfaces = container["interfaces"].as_array().cloned().unwrap_or_default();
    if interfaces.is_empty() {
        return vec![head];
    }
    let merge = |mut interface: Value| {
        if let (Some(to), Some(from)) = (interface.as_object_mut(), head.as_object()) {
            to.extend(from.clone());
        }
        interface
    };
    interfaces.into_iter().map(merge).collect()
}

/// Starts or stops one, or does what needs only its runtime.
pub(super) async fn run(paths: &Paths, command: ContainersCommand, json: bool) -> Result<ExitCode, Ended> {
    let (name, action, done) = match command {
        ContainersCommand::Start { name } => (name, Action::Start, "started"),
        ContainersCommand::Stop { name } => (name, Action::Stop, "stopped"),
        ContainersCommand::Restart { name } => (name, Action::Restart, "restarted"),
        ContainersCommand::Exec { name, timeout, command } => {
            return direct::exec(paths, &name, command, timeout).await;
        }
        ContainersCommand::Wait { name, timeout } => {
            direct::wait(paths, &name, timeout, json)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    act(paths, &name, action, done, json).await?;
    Ok(ExitCode::SUCCESS)
}

async fn act(paths: &Paths, name: &str, action: Action, done: &str, json: bool) -> Result<(), Ended> {
    let path = format!("/containers/{}", escaped(name));
    let view = call(paths, Method::PUT, &path, Some(&json!({"action": action}))).await?;
    if json {
        say(&pretty(&view));
        return Ok(());
    }
    let addresses: Vec<&str> = match action {
        Action::Stop => Vec::new(),
        Action::Start | Action::Restart => {
            ["ipv4_address", "ipv6_address"].iter().filter_map(|k| view[k].as_str()).collect()
        }
    };
    let separator = if addresses.is_empty() { "" } else { ": " };
    say(&format!("container {name} {done}{separator}{}", addresses.join(", ")));
    Ok(())
}
