//! `containers`: the table, and starting and stopping them.

use super::Ended;
use super::args::ContainersCommand;
use super::client::call;
use super::output::{escaped, pretty, say};
use super::table;
use crate::command::Action;
use crate::daemon::Paths;
use hyper::Method;
use serde_json::{Value, json};

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
    Ok(())
}

/// A row for each interface, with the container's name and state.
fn interface_rows(container: &Value) -> Vec<Value> {
    let runtime = &container["runtime"];
    let runs = match (runtime["state"].as_str(), runtime["pid"].as_u64()) {
        (Some(state), Some(pid)) => json!(format!("{state} ({pid})")),
        (state, _) => json!(state),
    };
    let head = json!({"container": container["name"], "state": container["state"], "runs": runs});
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

/// Starts or stops one.
pub(super) async fn act(paths: &Paths, command: ContainersCommand, json: bool) -> Result<(), Ended> {
    let (name, action, done) = match command {
        ContainersCommand::Start { name } => (name, Action::Start, "started"),
        ContainersCommand::Stop { name } => (name, Action::Stop, "stopped"),
        ContainersCommand::Restart { name } => (name, Action::Restart, "restarted"),
    };
    let path = format!("/containers/{}", escaped(&name));
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
