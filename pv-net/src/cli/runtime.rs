//! `lxc config`, `oci patch`, and the hooks that runtimes call.

use super::Ended;
use super::args::{HookCommand, LxcCommand, OciCommand};
use super::client::call;
use super::output::{done, escaped, say};
use super::replace::Replaced;
use crate::command::AttachRequest;
use crate::config::load;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::model::{Container, ContainerKind, ContainerName, NetworkMode};
use crate::runtime::oci::{self, Attach, Patch, State};
use crate::runtime::{Call, InTheWay, lxc};
use hyper::Method;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of a state that a runtime writes, so that a wrong caller cannot use up the device's memory.
const MOST_STATE: u64 = 1 << 20;

impl From<InTheWay> for Ended {
    fn from(e: InTheWay) -> Self {
        Self::Failed(Failure::new(Kind::Usage, e.to_string()).help(e.help))
    }
}

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, format!("{what}: {why}"))
}

/// `pv-net lxc`.
pub(super) fn lxc(paths: &Paths, command: LxcCommand, json: bool) -> Result<(), Ended> {
    let LxcCommand::Config { name, write } = command;
    let container = declared(paths, &name, ContainerKind::Lxc)?;
    let called = this_program(paths)?;
    let resolv_conf = resolv_conf(paths, &container.name)?;
    let lines = lxc::lines(&called, &container.name, &container.hostname, Some(&resolv_conf));
    let Some(file) = write else {
        say(lines.trim_end());
        return Ok(());
    };
    let config = Replaced::read(&file)?;
    let placed = lxc::place(config.text(), &lines).map_err(|e| Failure::from_setting(&file, e))?;
    config.with(&placed)?;
    done(json, &format!("container {name}: its lines are in {}", file.display()));
    Ok(())
}

/// `pv-net oci`.
pub(super) fn oci(paths: &Paths, command: OciCommand, json: bool) -> Result<(), Ended> {
    let OciCommand::Patch { bundle, name, netns } = command;
    let file = oci::file(&bundle);
    let bundled = Replaced::read(&file)?;
    let config: Value = serde_json::from_str(bundled.text()).map_err(|e| failed(file.display(), e))?;
    let kind = if netns.is_some() { ContainerKind::Netns } else { ContainerKind::Oci };
    let container = declared(paths, &name, kind)?;
    let called = this_program(paths)?;
    let resolv_conf = resolv_conf(paths, &container.name)?;
    let netns = netns.map(absolute).transpose()?;
    let patch = Patch {
        call: &called,
        name: &container.name,
        hostname: &container.hostname,
        resolv_conf: &resolv_conf,
        has_resolv_conf: resolv_conf.exists(),
        netns: netns.as_deref(),
    };
    let patched = patch.apply(&config).map_err(|e| Failure::from_setting(&file, e))?;
    bundled.with(&format!("{patched:#}\n"))?;
    if !patch.has_resolv_conf {
        let why = "its servers are not known while no daemon runs, or its pools have none";
        tracing::warn!("{}: not mounted: {why}", resolv_conf.display());
    }
    done(json, &format!("container {name}: its network is in {}", file.display()));
    Ok(())
}

/// `pv-net hook`.
pub(super) async fn hook(paths: &Paths, command: HookCommand) -> Result<(), Ended> {
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

impl Failure {
    fn from_setting(file: &Path, e: InTheWay) -> Self {
        failed(file.display(), &e).help(e.help)
    }
}

/// A container that is declared for this way of starting it.
fn declared(paths: &Paths, name: &str, kind: ContainerKind) -> Result<Container, Failure> {
    let name: ContainerName = name.parse().map_err(|e| failed(format!("container {name:?}"), e))?;
    let file = paths.containers.join(name.as_str()).join("run.json");
    if !file.exists() {
        let why = format!("it is not declared: there is no {}", file.display());
        return Err(failed(format!("container {name}"), why)
            .help("write its run.json there, or name the directory with --containers"));
    }
    let container = load::declared_run(&file, &name, paths.form())?;
    let wrong = |why: String, help: &str| Err(failed(file.display(), why).help(help));
    if container.kind != kind {
        let text = json!(kind).as_str().unwrap_or_default().to_owned();
        return wrong("type: another one starts this container".to_owned(), &format!("set \"type\": \"{text}\""));
    }
    if container.mode != NetworkMode::Pool {
        return wrong(
            "network.mode: the container is in no pool".to_owned(),
            "give it interfaces, or leave its runtime's configuration as it is",
        );
    }
    Ok(container)
}

fn this_program(paths: &Paths) -> Result<Call, Failure> {
    let program = std::env::current_exe().map_err(|e| failed("this program", e))?;
    let is_usual = paths.run_dir == Path::new(super::args::RUN_DIR);
    let run_dir = absolute(paths.run_dir.clone())?;
    let flags = if is_usual { Vec::new() } else { vec![format!("--run-dir={}", run_dir.display())] };
    Ok(Call { program, flags })
}

fn resolv_conf(paths: &Paths, name: &ContainerName) -> Result<PathBuf, Failure> {
    absolute(paths.resolv_confs().join(format!("{name}.conf")))
}

/// A path for files that are read in another working directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|e| failed(path.display(), e))
}
