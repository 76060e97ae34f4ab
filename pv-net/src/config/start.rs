//! Checks how a container of a `run.json` is started and stopped.

use super::checker::Checker;
use super::raw;
use super::run::absolute;
use super::services::label;
use crate::model::{ContainerKind, ContainerName, LxcSpec, NetworkMode, OciSpec, RuntimeSpec, Start, Startable};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where LXC has its containers.
const LXC_PATH: &str = "/var/lib/lxc";
/// The OCI runtime unless another one is named.
const OCI_PROGRAM: &str = "runc";
/// Seconds that a container may take to end, unless set.
const STOP_TIMEOUT: u32 = 10;
/// Most of these.
const MOST_STOP_TIMEOUT: u32 = 3600;

/// How the container is started, when pv-net can do that. `requires` has the services that it needs.
pub(super) fn startable(
    c: &mut Checker,
    raw: &raw::Run,
    name: Option<&ContainerName>,
    kind: ContainerKind,
    mode: NetworkMode,
    requires: Vec<String>,
) -> Option<Startable> {
    let start = c.plain("start", &raw.start).copied().unwrap_or_default();
    let stop_timeout = stop_timeout(c, raw);
    if raw.runtime.is_none() {
        if start == Start::Auto {
            let help = "say how with \"runtime\", or leave out \"start\": somebody else starts it then";
            c.wrong("start", Some(&Value::from("auto")), "there is no \"runtime\" to start it", Some(help.to_owned()));
        }
        return None;
    }
    let section = c.section("runtime", &raw.runtime)?;
    if mode != NetworkMode::Pool {
        let help = "give the container interfaces in pools, or let somebody else start it";
        c.wrong("runtime", None, "pv-net starts only containers in pools", Some(help.to_owned()));
    }
    let id = c.text_with("runtime.id", &section.id, id);
    let program = c.text_with("runtime.program", &section.program, program);
    let bundle = c.text_with("runtime.bundle", &section.bundle, absolute);
    let root = c.text_with("runtime.root", &section.root, absolute);
    let lxc_path = c.text_with("runtime.lxcpath", &section.lxcpath, absolute);
    let id = id.or_else(|| name.map(ToString::to_string))?;
    let mut others = |fields: &[(&str, bool)], of: &str| {
        for (key, _) in fields.iter().filter(|(_, is_there)| *is_there) {
            let help = format!("only containers of type {of} have it");
            c.wrong(&format!("runtime.{key}"), None, "is not this runtime's", Some(help));
        }
    };
    let runtime = match kind {
        ContainerKind::Lxc => {
            let strange = [
                ("program", section.program.is_some()),
                ("bundle", section.bundle.is_some()),
                ("root", section.root.is_some()),
            ];
            others(&strange, "\"oci\"");
            RuntimeSpec::Lxc(LxcSpec { path: lxc_path.unwrap_or_else(|| LXC_PATH.into()), id })
        }
        ContainerKind::Oci => {
            others(&[("lxcpath", section.lxcpath.is_some())], "\"lxc\"");
            if section.bundle.is_none() {
                let help = "name the directory of an OCI bundle with \"bundle\"";
                c.wrong("runtime", None, "there is no \"bundle\"", Some(help.to_owned()));
            }
            let program = program.unwrap_or_else(|| OCI_PROGRAM.into());
            RuntimeSpec::Oci(OciSpec { program, bundle: bundle?, id, root })
        }
        ContainerKind::Wasm | ContainerKind::Netns => {
            let help = "leave it out, or set \"type\" \"lxc\" or \"oci\"";
            c.wrong("runtime", None, "this version starts no containers of this \"type\"", Some(help.to_owned()));
            return None;
        }
    };
    Some(Startable { start, runtime, stop_timeout, requires })
}

fn stop_timeout(c: &mut Checker, raw: &raw::Run) -> Duration {
    let secs = c.plain("stop_timeout", &raw.stop_timeout).copied().unwrap_or(STOP_TIMEOUT);
    if !(1..=MOST_STOP_TIMEOUT).contains(&secs) {
        let why = format!("is not between 1 and {MOST_STOP_TIMEOUT} seconds");
        c.wrong("stop_timeout", Some(&Value::from(secs)), why, None);
    }
    Duration::from_secs(secs.into())
}

/// Services that the container needs, from `services.required`.
pub(super) fn requires(c: &mut Checker, path: &str, service: &raw::RequiredService) -> Option<String> {
    c.text_with(path, &service.name, label)
}

/// A name that no runtime takes for an option or a path.
fn id(text: &str) -> Result<String, String> {
    text.parse::<ContainerName>().map(|name| name.to_string()).map_err(|e| e.to_string())
}

fn program(text: &str) -> Result<PathBuf, String> {
    if text.contains('/') {
        return absolute(text);
    }
    match Path::new(text).file_name() {
        Some(name) if !text.starts_with('-') && !text.contains('\0') => Ok(name.into()),
        _ => Err("is neither an absolute path nor the name of a program".to_owned()),
    }
}
