//! Starts and stops containers by the runner, and sees to it that one that runs is in its pools.

use super::Api;
use super::view::{self, ContainerView};
use crate::command::{Action, AttachRequest};
use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, NetnsRef, RunStatus};
use crate::runner::client::strange;
use crate::runner::protocol::{Reply, Request};
use crate::snapshot::Snapshot;
use std::sync::Arc;

/// Does what is asked for, and returns the container's state afterwards.
///
/// # Errors
/// When the request asks for more than the action, no runner runs, or it refuses.
pub(super) async fn act(
    api: &Api,
    name: &ContainerName,
    action: Action,
    request: &AttachRequest,
) -> Result<ContainerView, Failure> {
    if *request != (AttachRequest { action: Some(action), ..AttachRequest::default() }) {
        let why = "\"action\": it stands alone in a request";
        return Err(Failure::new(Kind::Usage, why).help("send the action, and what is to be attached, each by itself"));
    }
    let before = first_process(&api.snapshot(), name);
    let order = match action {
        Action::Start => Request::Start { name: name.clone() },
        Action::Stop => Request::Stop { name: name.clone(), is_own: false },
        Action::Restart => Request::Restart { name: name.clone() },
    };
    let status = ask(api, &order).await?;
    let after = match status.pid {
        Some(pid) => {
            let after = api.snapshot();
            // Its hook has attached it before its first program ran. One that has no hook has no guard either.
            if first_process(&after, name) != Some(pid) {
                return Err(stop_unattached(api, name).await);
            }
            after
        }
        None => match before {
            // What was stopped may be another process: its run.json may have been changed since.
            Some(pid) if has_ended(api, name, pid).await => api.commands.ended(name.clone(), pid).await?,
            Some(_) | None => api.snapshot(),
        },
    };
    api.dns.follows(after.revision).await;
    // The runner tells this to the service too, perhaps later.
    let mut statuses = (*api.runner.statuses()).clone();
    statuses.all.insert(name.clone(), status);
    view::container(&after, &statuses, name)
}

async fn ask(api: &Api, request: &Request) -> Result<RunStatus, Failure> {
    match api.runner.ask(request).await? {
        Reply::Done(status) => Ok(status),
        _ => Err(strange()),
    }
}

/// Whether the runner says that a container's process has ended.
async fn has_ended(api: &Api, name: &ContainerName, pid: u32) -> bool {
    let look = Request::Look { name: name.clone(), pid: Some(pid) };
    matches!(api.runner.ask(&look).await, Ok(Reply::Looked { is_gone: true, .. }))
}

/// The process by which the container was attached.
fn first_process(snapshot: &Arc<Snapshot>, name: &ContainerName) -> Option<u32> {
    match snapshot.container(name)?.attached()?.record.netns {
        Some(NetnsRef::Pid(pid)) => Some(pid),
        _ => None,
    }
}

async fn stop_unattached(api: &Api, name: &ContainerName) -> Failure {
    let why = format!("container {name}: it has started without being attached");
    let failure = Failure::new(Kind::Internal, why).help("look at the hooks in its runtime's configuration");
    match ask(api, &Request::Stop { name: name.clone(), is_own: true }).await {
        Ok(_) => failure,
        Err(other) => failure.and(other),
    }
}
