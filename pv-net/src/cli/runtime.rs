//! `lxc config`, `oci patch`, and the hooks that runtimes call.

use super::Ended;
use super::args::{HookCommand, LxcCommand, OciCommand};
use super::client::call;
use super::output::{done, escaped, say};
use crate::command::AttachRequest;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::model::ContainerKind;
use crate::runner::HOOK_ERRORS;
use crate::runner::launcher::{self, Launch};
use crate::runner::network::{Hooks, absolute, declared_for, failed};
use crate::runtime::oci::{self, Attach, State};
use crate::runtime::{InTheWay, lxc};
use hyper::Method;
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};

/// Most bytes of a state that a runtime writes, so that a wrong caller cannot use up the device's memory.
const MOST_STATE: u64 = 1 << 20;

impl From<InTheWay> for Ended {
    fn from(e: InTheWay) -> Self {
        Self::Failed(Failure::new(Kind::Usage, e.to_string()).help(e.help))
    }
}

/// `pv-net lxc`.
pub(super) fn lxc(paths: &Paths, command: LxcCommand, json: bool) -> Result<(), Ended> {
    let LxcCommand::Config { name, write } = command;
    let container = declared_for(paths, &name, ContainerKind::Lxc)?;
    let hooks = Hooks::of_this_program(paths)?;
    let Some(file) = write else {
        say(hooks.lxc_lines(&container).trim_end());
        return Ok(());
    };
    hooks.write_lxc(&container, &file)?;
    done(json, &format!("container {name}: its lines are in {}", file.display()));
    Ok(())
}

/// `pv-net oci`.
pub(super) fn oci(paths: &Paths, command: OciCommand, json: bool) -> Result<(), Ended> {
    let OciCommand::Patch { bundle, name, netns } = command;
    let kind = if netns.is_some() { ContainerKind::Netns } else { ContainerKind::Oci };
    let container = declared_for(paths, &name, kind)?;
    let netns = netns.map(absolute).transpose()?;
    let missing = Hooks::of_this_program(paths)?.patch_oci(&container, &bundle, netns.as_deref())?;
    if let Some(resolv_conf) = missing {
        let why = "its servers are not known while no daemon runs, or its pools have none";
        tracing::warn!("{}: not mounted: {why}", resolv_conf.display());
    }
    done(json, &format!("container {name}: its network is in {}", oci::file(&bundle).display()));
    Ok(())
}

/// `pv-net hook`. Its failure is written down for a runner that has started the container.
pub(super) async fn hook(paths: &Paths, command: HookCommand) -> Result<(), Ended> {
    let done = attach(paths, command).await;
    write_down(&done);
    done
}

/// Starts a program in a network namespace of its own, attached as a container.
pub(super) fn launch(paths: &Paths, launch: &Launch) -> Result<(), Ended> {
    let attach = |pid: u32| {
        let request = AttachRequest { pid: Some(pid), ..AttachRequest::default() };
        let path = format!("/containers/{}", escaped(&launch.name));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::new(Kind::Internal, format!("start: {e}")))?;
        runtime.block_on(call(paths, Method::PUT, &path, Some(&json!(request)))).map(drop)
    };
    let done = launcher::run(launch, attach);
    if !launch.is_waiting {
        write_down(&done);
    }
    done
}

/// Writes the failure of a start down, for a runner.
fn write_down(done: &Result<(), Ended>) {
    if let (Err(ended), Some(file)) = (done, std::env::var_os(HOOK_ERRORS)) {
        let text = match ended {
            Ended::Failed(failure) => failure.line(),
            Ended::NoDaemon(message) | Ended::TimeIsUp(message) => message.error.clone(),
        };
        // Only a file that is new: whatever is there already is not the runner's.
        let written =
            File::options().write(true).create_new(true).open(&file).and_then(|mut f| f.write_all(text.as_bytes()));
        if let Err(e) = written {
            tracing::warn!(file = %file.display(), error = %e, "not written why the container does not start");
        }
    }
}

async fn attach(paths: &Paths, command: HookCommand) -> Result<(), Ended> {
    let attach = match command {
        HookCommand::Lxc { name, more } => {
            let told = lxc::Told::read(|variable| std::env::var(variable).ok(), &more)?;
            Attach { name: name.unwrap_or(told.name), pid: told.pid, pool: None, annotated: false }
        }
        HookCommand::Oci { name } => {
            let mut text = String::new();
            let read = std::io::stdin().take(MOST_STATE).read_to_string(&mut text);
            read.map_err(|e| failed("the container's state", e))?;
            let state: State = serde_json::from_str(&text).map_err(|e| {
                failed("the container's state", e).help("let an OCI runtime call this: it writes the state")
            })?;
            match oci::attach(&state, name.as_deref())? {
                Some(attach) => attach,
                None => return Ok(()),
            }
        }
    };
    let request = AttachRequest {
        pid: Some(attach.pid),
        annotated: attach.annotated,
        // Nobody else would release the lease of a container that no run.json declares.
        auto_detach: attach.pool.is_some(),
        pool: attach.pool,
        ..AttachRequest::default()
    };
    let path = format!("/containers/{}", escaped(&attach.name));
    call(paths, Method::PUT, &path, Some(&json!(request))).await?;
    Ok(())
}
