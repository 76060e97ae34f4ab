//! `pv-net pantavisor`: containers by Pantavisor's control socket, without the daemon.

use super::args::PantavisorCommand;
use super::output::{done, pretty, say};
use super::table::{self, Column};
use crate::failure::{Failure, Kind};
use crate::model::ContainerName;
use crate::pantavisor::{Action, Control, ControlError};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::path::Path;

const COLUMNS: &[Column] = &[
    ("CONTAINER", "name"),
    ("GROUP", "group"),
    ("STATUS", "status"),
    ("GOAL", "status_goal"),
    ("RESTART POLICY", "restart_policy"),
];

/// Runs a command on the socket at this path.
pub(super) async fn run(socket: &Path, command: PantavisorCommand, json: bool) -> Result<(), Failure> {
    let control = Control::new(socket);
    let (name, action, did) = match command {
        PantavisorCommand::List => {
            let all: Vec<Value> = control.containers().await.map_err(failure)?.iter().map(|c| json!(c)).collect();
            say(&if json { pretty(&Value::from(all)) } else { table::render(COLUMNS, &all) });
            return Ok(());
        }
        PantavisorCommand::Start { name } => (name, Action::Start, "started"),
        PantavisorCommand::Stop { name } => (name, Action::Stop, "stopped"),
        PantavisorCommand::Restart { name } => (name, Action::Restart, "restarted"),
    };
    let name: ContainerName =
        name.parse().map_err(|e| Failure::new(Kind::Usage, format!("container {name:?}: {e}")))?;
    control.act(&name, action).await.map_err(|e| failure(e).about(format!("container {name}")))?;
    done(json, &format!("container {name}: {did}"));
    Ok(())
}

fn failure(e: ControlError) -> Failure {
    let (kind, help) = match &e {
        ControlError::Unreachable { .. } => (Kind::Internal, Some("name Pantavisor's control socket with --pv-ctrl")),
        ControlError::Broken { .. } => (Kind::Internal, None),
        ControlError::Refused { status: StatusCode::NOT_FOUND, .. } => {
            (Kind::NotFound, Some("pv-net pantavisor list shows the containers"))
        }
        ControlError::Refused { .. } => {
            let help = "this takes the role \"mgmt\", and a container whose restart policy is \"container\"";
            (Kind::Conflict, Some(help))
        }
    };
    let failure = Failure::new(kind, e.to_string());
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}
