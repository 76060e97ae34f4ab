//! `lxc config`, `oci patch`, and the hooks that runtimes call.

use super::Ended;
use super::args::{HookCommand, LxcCommand, OciCommand};
use super::client::call;
use super::output::{done, escaped, say};
use crate::config::load;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::model::{Container, ContainerKind, ContainerName, NetworkMode};
use crate::runtime::oci::{self, Patch, State, Todo};
use crate::runtime::{Call, InTheWay, lxc};
use hyper::Method;
use serde_json::{Map, Value, json};
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
    let resolv_conf = resolv_conf(paths, &container.name);
    let lines = lxc::lines(&called, &container.name, &container.hostname, Some(&resolv_conf));
    let Some(file) = write else {
        say(lines.trim_end());
        return Ok(());
    };
    let text = load::text(&file).map_err(Failure::from)?;
    let placed = lxc::place(&text, &lines).map_err(|e| Failure::from_setting(&file, e))?;
    replace(&file, &text, &placed)?;
    done(json, &format!("container {name}: its lines are in {}", file.display()));
    Ok(())
}

/// `pv-net oci`.
pub(super) fn oci(paths: &Paths, command: OciCommand, json: bool) -> Result<(), Ended> {
    let OciCommand::Patch { bundle, name, netns } = command;
    let file = oci::file(&bundle);
    let text = load::text(&file).map_err(Failure::from)?;
    let config: Value = serde_json::from_str(&text).map_err(|e| failed(file.display(), e))?;
    let kind = if netns.is_some() { ContainerKind::Netns } else { ContainerKind::Oci };
    let container = declared(paths, &name, kind)?;
    let called = this_program(paths)?;
    let resolv_conf = resolv_conf(paths, &container.name);
    let patch = Patch {
        call: &called,
        name: &container.name,
        hostname: &container.hostname,
        // A runtime does not start a container with a mount whose source is not there.
        resolv_conf: resolv_conf.exists().then_some(&resolv_conf),
        netns: netns.as_deref(),
    };
    let patched = patch.apply(&config).map_err(|e| Failure::from_setting(&file, e))?;
    replace(&file, &text, &format!("{patched:#}\n"))?;
    if patch.resolv_conf.is_none() {
        let why = "its servers are not known while no daemon runs, or its pools have none";
        tracing::warn!("{}: not mounted: {why}", resolv_conf.display());
    }
    done(json, &format!("container {name}: its network is in {}", file.display()));
    Ok(())
}

/// `pv-net hook`.
pub(super) async fn hook(paths: &Paths, command: HookCommand) -> Result<(), Ended> {
    let (name, pid, pool) = match command {
        HookCommand::Lxc { name, .. } => {
            let told = lxc::Told::read(|variable| std::env::var(variable).ok())?;
            (name.unwrap_or(told.name), told.pid, None)
        }
        HookCommand::Oci { name } => {
            let mut text = String::new();
            let read = std::io::stdin().take(MOST_STATE).read_to_string(&mut text);
            read.map_err(|e| failed("the container's state", e))?;
            let state: State = serde_json::from_str(&text).map_err(|e| {
                failed("the container's state", e).help("let an OCI runtime call this: it writes the state")
            })?;
            match oci::todo(&state, name.as_deref())? {
                Todo::Attach { name, pid, pool } => (name, pid, pool),
                Todo::Detach { name } => {
                    let gone = call(paths, Method::DELETE, &format!("/containers/{}", escaped(&name)), None).await;
                    // A runtime may call the hook again, and a container that never got its network is none.
                    return match gone {
                        Err(Ended::Failed(failure)) if failure.kind == Kind::NotFound => Ok(()),
                        gone => gone.map(drop),
                    };
                }
                Todo::Nothing => return Ok(()),
            }
        }
    };
    let mut body = Map::from_iter([("pid".to_owned(), json!(pid))]);
    body.extend(pool.map(|pool| ("pool".to_owned(), json!(pool))));
    let path = format!("/containers/{}", escaped(&name));
    call(paths, Method::PUT, &path, Some(&Value::Object(body))).await?;
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
    let container = load::run(&file)?;
    let wrong = |why: String, help: &str| Err(failed(file.display(), why).help(help));
    if container.name != name {
        return wrong(format!("name: is {}", container.name), "give it the name of its directory");
    }
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
    let flags = if is_usual { Vec::new() } else { vec![format!("--run-dir={}", paths.run_dir.display())] };
    Ok(Call { program, flags })
}

fn resolv_conf(paths: &Paths, name: &ContainerName) -> PathBuf {
    paths.resolv_confs().join(format!("{name}.conf"))
}

/// Writes a file as a whole or not at all, with the permissions that it has.
fn replace(file: &Path, before: &str, after: &str) -> Result<(), Failure> {
    if before == after {
        return Ok(());
    }
    let written = || {
        // A link stays one: what it leads to is replaced.
        let file = file.canonicalize()?;
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".pv-net-new");
        let beside = file.with_file_name(name);
        std::fs::write(&beside, after)?;
        std::fs::set_permissions(&beside, std::fs::metadata(&file)?.permissions())?;
        std::fs::File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, &file)
    };
    written().map_err(|e| failed(file.display(), e))
}
