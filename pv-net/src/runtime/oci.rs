//! OCI runtimes: a bundle's `config.json`, and the state that hooks are told (the runtime specification, 1.0 and later).
//!
//! The file is changed as JSON, not by types of the specification: what this version of them does not know would be
//! lost.

use super::{Call, InTheWay};
use crate::model::ContainerName;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The annotation with the name by which pv-net knows the container; its id unless given.
pub const NAME: &str = "pv-net.name";
/// The annotation that puts a container which no `run.json` declares into a pool.
pub const POOL: &str = "pv-net.pool";
/// When the hook is called: the namespace is there, and the container's program not yet.
const STAGE: &str = "createRuntime";
/// Where the container's `resolv.conf` is mounted.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HELP: &str = "name the directory of an OCI bundle, as `runc spec` makes one";

/// What a bundle is changed to.
#[derive(Clone, Debug)]
pub struct Patch<'a> {
    /// How hooks call pv-net.
    pub call: &'a Call,
    /// The container.
    pub name: &'a ContainerName,
    /// Its host name.
    pub hostname: &'a str,
    /// Mounted as its `/etc/resolv.conf` in place of whatever else is mounted there, if it is there.
    pub resolv_conf: &'a Path,
    /// Whether the file is there. A runtime starts no container with a mount whose source is not.
    pub has_resolv_conf: bool,
    /// A namespace that is there before the container starts. Without one the runtime makes the namespace, and hooks
    /// attach the container.
    pub netns: Option<&'a Path>,
}

impl Patch<'_> {
    /// The `config.json` of a bundle with the container's network in it. Once more gives the same again.
    ///
    /// # Errors
    /// For what is no configuration of a container on Linux, and for a network namespace that is another's.
    pub fn apply(&self, config: &Value) -> Result<Value, InTheWay> {
        let mut config = config.clone();
        let all = object(&mut config, "config.json")?;
        if !all.contains_key("ociVersion") {
            return Err(wrong("config.json", "there is no ociVersion in it"));
        }
        self.namespace(all)?;
        self.hooks(all)?;
        // A runtime refuses a host name without a namespace for it; in one that is there already it would rename whatever
        // else lives in that.
        let linux = object(all.entry("linux").or_insert_with(|| json!({})), "linux")?;
        let mut has_uts = array(linux, "namespaces", "linux.namespaces")?.iter();
        let has_uts = has_uts.any(|ns| ns["type"] == "uts" && ns.get("path").is_none());
        if has_uts {
            all.insert("hostname".to_owned(), json!(self.hostname));
        }
        let mounts = array(all, "mounts", "mounts")?;
        let path = self.resolv_conf;
        mounts.retain(|mount| {
            let is_own = mount["source"].as_str().is_some_and(|source| Path::new(source) == path);
            mount["destination"] != RESOLV_CONF || !(is_own || self.has_resolv_conf)
        });
        if self.has_resolv_conf {
            let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
            mounts.push(json!({"destination": RESOLV_CONF, "type": "bind", "source": path, "options": options}));
        }
        Ok(config)
    }

    fn namespace(&self, all: &mut Map<String, Value>) -> Result<(), InTheWay> {
        let linux = object(all.entry("linux").or_insert_with(|| json!({})), "linux")?;
        let namespaces = array(linux, "namespaces", "linux.namespaces")?;
        let wanted = match self.netns {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        };
        match namespaces.iter_mut().find(|ns| ns["type"] == "network") {
            None => namespaces.push(wanted),
            Some(has) => {
                let path = has.get("path").and_then(Value::as_str);
                if let Some(path) = path.filter(|path| self.netns != Some(Path::new(path))) {
                    return Err(InTheWay {
                        what: "linux.namespaces".to_owned(),
                        why: format!("the network namespace is {path:?}"),
                        help: "attach that one (pv-net attach NAME --netns FILE), or remove its path",
                    });
                }
                *has = wanted;
            }
        }
        Ok(())
    }

    fn hooks(&self, all: &mut Map<String, Value>) -> Result<(), InTheWay> {
        let hooks = object(all.entry("hooks").or_insert_with(|| json!({})), "hooks")?;
        let has = array(hooks, STAGE, "hooks.createRuntime")?;
        has.retain(|hook| !is_own(hook));
        if self.netns.is_none() {
            let flags = self.call.flags.iter().map(String::as_str);
            let name = self.name.as_str();
            let args: Vec<&str> = ["pv-net"].into_iter().chain(flags).chain(["hook", "oci", name]).collect();
            has.push(json!({"path": self.call.program, "args": args}));
        }
        if has.is_empty() {
            hooks.remove(STAGE);
        }
        if hooks.is_empty() {
            all.remove("hooks");
        }
        Ok(())
    }
}

/// Whether an earlier call put the hook there.
fn is_own(hook: &Value) -> bool {
    let args: Vec<&str> = hook["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    args.first() == Some(&"pv-net") && args.windows(2).any(|two| two == ["hook", "oci"])
}

fn wrong(what: &str, why: &str) -> InTheWay {
    InTheWay { what: what.to_owned(), why: why.to_owned(), help: HELP }
}

fn object<'v>(value: &'v mut Value, what: &str) -> Result<&'v mut Map<String, Value>, InTheWay> {
    value.as_object_mut().ok_or_else(|| wrong(what, "is not an object"))
}

fn array<'v>(of: &'v mut Map<String, Value>, key: &str, what: &str) -> Result<&'v mut Vec<Value>, InTheWay> {
    of.entry(key).or_insert_with(|| json!([])).as_array_mut().ok_or_else(|| wrong(what, "is not an array"))
}

/// The state that a runtime writes to a hook's standard input.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct State {
    /// The container's id in the runtime.
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: String,
    /// The container's first process; none once it has stopped.
    #[serde(default)]
    pub pid: u32,
    /// Annotations of its `config.json`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Whom a hook is to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Its name.
    pub name: String,
    /// The id of a process in its namespace.
    pub pid: u32,
    /// The pool; its `run.json` says unless given.
    pub pool: Option<String>,
    /// Whether an annotation has named it or its pool. An image may bring annotations along.
    pub annotated: bool,
}

/// Whom the hook is to attach for a container in this state; nobody once it has stopped, since the daemon sees by itself
/// that a namespace is gone. `name` is the one that the hook was given.
///
/// # Errors
/// For a state in which there is no namespace yet.
pub fn attach(state: &State, name: Option<&str>) -> Result<Option<Attach>, InTheWay> {
    if state.status == "stopped" {
        return Ok(None);
    }
    if state.pid == 0 {
        return Err(InTheWay {
            what: format!("container {}", state.id),
            why: format!("it is {}, and has no process", state.status),
            help: "let the runtime call this as a hook of stage createRuntime",
        });
    }
    let annotation = |key: &str| state.annotations.get(key).map(String::as_str);
    let named = annotation(NAME).filter(|_| name.is_none());
    let pool = annotation(POOL).map(str::to_owned);
    Ok(Some(Attach {
        name: name.or(named).unwrap_or_else(|| short(&state.id)).to_owned(),
        pid: state.pid,
        annotated: named.is_some() || pool.is_some(),
        pool,
    }))
}

/// An id as a name. Those of podman have 64 digits, one more than a label in DNS; it shows the first twelve itself.
fn short(id: &str) -> &str {
    const LABEL: usize = 63;
    const SHOWN: usize = 12;
    if id.len() > LABEL { id.get(..SHOWN).unwrap_or(id) } else { id }
}

/// The file of a bundle's configuration.
#[must_use]
pub fn file(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}
