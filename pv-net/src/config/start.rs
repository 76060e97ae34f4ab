//! Checks how a container of a `run.json` is started and stopped.

use super::checker::{Checker, join};
use super::raw;
use super::run::absolute;
use super::services::label;
use crate::model::{
    ContainerKind, ContainerName, LxcSpec, NetworkMode, OciSpec, RuntimeSpec, Sockets, Start, Startable, WasmCli,
    WasmSpec,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where LXC has its containers.
const LXC_PATH: &str = "/var/lib/lxc";
/// The OCI runtime unless another one is named.
const OCI_PROGRAM: &str = "runc";
/// The first of the users by which WebAssembly runtimes run, unless set. They end before 2^31, and systemd gives none of them
/// to anybody (systemd.io/UIDS-GIDS).
const FIRST_USER: u32 = 0x7000_0000;
/// Seconds that a container may take to end, unless set.
const STOP_TIMEOUT: u32 = 10;
/// Most of these.
const MOST_STOP_TIMEOUT: u32 = 3600;

/// What else is known of a container.
pub(super) struct How<'a> {
    /// Its type.
    pub kind: ContainerKind,
    /// How it is connected.
    pub mode: NetworkMode,
    /// The services that it needs.
    pub requires: Vec<String>,
    /// The only sockets that it may have.
    pub sockets: Option<&'a Sockets>,
}

/// How the container is started, when pv-net can do that.
pub(super) fn startable(
    c: &mut Checker,
    raw: &raw::Run,
    name: Option<&ContainerName>,
    how: How<'_>,
) -> Option<Startable> {
    let How { kind, mode, requires, sockets } = how;
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
    let wasm = wasm(c, section);
    let id = id.or_else(|| name.map(ToString::to_string))?;
    let of_wasm = [
        ("cli", section.cli.is_some()),
        ("module", section.module.is_some()),
        ("args", section.args.is_some()),
        ("env", section.env.is_some()),
        ("user", section.user.is_some()),
    ];
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
            others(&of_wasm, "\"wasm\"");
            RuntimeSpec::Lxc(LxcSpec { path: lxc_path.unwrap_or_else(|| LXC_PATH.into()), id })
        }
        ContainerKind::Oci => {
            others(&[("lxcpath", section.lxcpath.is_some())], "\"lxc\"");
            others(&of_wasm, "\"wasm\"");
            if section.bundle.is_none() {
                let help = "name the directory of an OCI bundle with \"bundle\"";
                c.wrong("runtime", None, "there is no \"bundle\"", Some(help.to_owned()));
            }
            let program = program.unwrap_or_else(|| OCI_PROGRAM.into());
            RuntimeSpec::Oci(OciSpec { program, bundle: bundle?, id, root })
        }
        ContainerKind::Wasm => {
            others(&[("lxcpath", section.lxcpath.is_some())], "\"lxc\"");
            others(&[("bundle", section.bundle.is_some()), ("root", section.root.is_some())], "\"oci\"");
            others(&[("id", section.id.is_some())], "\"lxc\" or \"oci\"");
            if section.module.is_none() {
                let help = "name the file of a WebAssembly module with \"module\"";
                c.wrong("runtime", None, "there is no \"module\"", Some(help.to_owned()));
            }
            let Wasm { cli, module, args, env, user } = wasm;
            let program = program.unwrap_or_else(|| cli.program().into());
            let (name, sockets) = (name?.clone(), sockets?.clone());
            let user = user.unwrap_or_else(|| own_user(&name));
            RuntimeSpec::Wasm(WasmSpec { name, program, cli, module: module?, args, env, user, sockets })
        }
        ContainerKind::Netns => {
            let help = "leave it out, or set \"type\" \"lxc\", \"oci\" or \"wasm\"";
            c.wrong("runtime", None, "this version starts no containers of this \"type\"", Some(help.to_owned()));
            return None;
        }
    };
    Some(Startable { start, runtime, stop_timeout, requires })
}

/// The fields of `runtime` for type `wasm`.
struct Wasm {
    cli: WasmCli,
    module: Option<PathBuf>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    user: Option<u32>,
}

fn wasm(c: &mut Checker, section: &raw::Runtime) -> Wasm {
    let cli = c.plain("runtime.cli", &section.cli).copied().unwrap_or_default();
    let module = c.text_with("runtime.module", &section.module, absolute);
    let mut args = Vec::new();
    for (i, field) in c.plain("runtime.args", &section.args).into_iter().flatten().enumerate() {
        args.extend(c.text_with(&format!("runtime.args[{i}]"), &Some(field.clone()), word));
    }
    let mut env = BTreeMap::new();
    for (name, field) in c.plain("runtime.env", &section.env).into_iter().flatten() {
        if !is_variable(name) {
            let help = "letters, digits and underscores, and no digit first".to_owned();
            c.wrong("runtime.env", Some(&Value::from(&**name)), "is no name of a variable", Some(help));
            continue;
        }
        let value = c.text_with(&join("runtime.env", name), &Some(field.clone()), word);
        env.extend(value.map(|value| (name.to_string(), value)));
    }
    let user = c.plain("runtime.user", &section.user).copied();
    let strange = match user {
        Some(0) => "a module may not be root",
        Some(u32::MAX) => "stands for no user",
        _ => "",
    };
    if !strange.is_empty() {
        let help = "name another one, or leave it out: the container has a user of its own then".to_owned();
        c.wrong("runtime.user", user.map(Value::from).as_ref(), strange, Some(help));
    }
    Wasm { cli, module, args, env, user }
}

/// A container's own user: the same at each start, and on each device.
fn own_user(name: &ContainerName) -> u32 {
    let hash = Sha256::digest(name.as_str());
    FIRST_USER | (u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) >> 4)
}

/// Whether a variable of the environment may have the name (POSIX.1, "Environment Variable Definition").
fn is_variable(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

/// An argument of a program.
pub(super) fn word(text: &str) -> Result<String, String> {
    if text.contains('\0') { Err("has a NUL character".to_owned()) } else { Ok(text.to_owned()) }
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
