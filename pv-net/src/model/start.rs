//! How a container is started and stopped.

use super::{ContainerName, Sockets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Who starts a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// A person, or another program.
    #[default]
    Manual,
    /// pv-net, when its daemon has started.
    Auto,
}

/// A container that pv-net can start and stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startable {
    /// When that is done unasked.
    pub start: Start,
    /// What its runtime knows it by.
    pub runtime: RuntimeSpec,
    /// How long it may take to end when it is stopped, before it is killed.
    pub stop_timeout: Duration,
    /// Services of other containers that must be there before it starts, in lower case.
    pub requires: Vec<String>,
}

/// A container's runtime, and what that knows the container by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeSpec {
    /// LXC.
    Lxc(LxcSpec),
    /// A runtime with the command line of runc.
    Oci(OciSpec),
    /// A WebAssembly runtime.
    Wasm(WasmSpec),
}

/// A container of LXC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LxcSpec {
    /// LXC's directory of containers; that of this one is below it.
    pub path: PathBuf,
    /// The container's name in LXC.
    pub id: String,
}

/// A container of an OCI runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciSpec {
    /// The runtime: an absolute path, or a name that is looked for in the usual directories.
    pub program: PathBuf,
    /// The directory of its bundle.
    pub bundle: PathBuf,
    /// The container's id in the runtime.
    pub id: String,
    /// The runtime's directory of states; its own choice unless set.
    pub root: Option<PathBuf>,
}

/// A module that a WebAssembly runtime executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmSpec {
    /// The container's name: the runtime knows no other.
    pub name: ContainerName,
    /// The runtime: an absolute path, or a name that is looked for in the usual directories.
    pub program: PathBuf,
    /// Whose command line the runtime has.
    pub cli: WasmCli,
    /// The module or component.
    pub module: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, all of it.
    pub env: BTreeMap<String, String>,
    /// The user, and group, that the runtime's process has.
    pub user: u32,
    /// What the module may do with sockets.
    pub sockets: Sockets,
}

/// Command lines of WebAssembly runtimes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WasmCli {
    /// That of wasmtime, which is told by flags which sockets it grants (`wasi:sockets` 0.2).
    #[default]
    Wasmtime,
    /// That of WasmEdge, which grants all sockets (its own socket extension of WASI preview 1).
    Wasmedge,
}

impl WasmCli {
    /// The runtime's usual program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Wasmtime => "wasmtime",
            Self::Wasmedge => "wasmedge",
        }
    }
}

impl RuntimeSpec {
    /// What the runtime knows the container by.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Lxc(lxc) => &lxc.id,
            Self::Oci(oci) => &oci.id,
            Self::Wasm(wasm) => wasm.name.as_str(),
        }
    }
}

/// A program inside of a container that tells whether that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCommand {
    /// The program and its arguments; at least one word. No shell reads them.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// How a container's first process has ended, as far as that is known: the kernel tells it since 6.15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Ending {
    /// Its exit status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_status: Option<i32>,
    /// The signal that has ended it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
}

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It runs.
    Running,
    /// It is being started or stopped.
    Changing,
    /// It does not run: nobody has started it, it was stopped, or it has ended without an error.
    Stopped,
    /// It could not be started or stopped, or has ended with an error.
    Failed,
}

/// What is known of a container that pv-net can start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Whether it runs.
    pub state: RunState,
    /// Its first process, while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Seconds between the device's boot and the start of its first process, or the change to this state
    /// (`CLOCK_BOOTTIME`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_boot_secs: Option<u64>,
    /// How its first process has ended.
    #[serde(flatten)]
    pub ending: Ending,
    /// Why it has failed, or how it has ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

impl RunStatus {
    /// It runs as this process.
    #[must_use]
    pub fn running(pid: u32) -> Self {
        Self { pid: Some(pid), ..Self::new(RunState::Running) }
    }

    /// It is in this state, and no more is known.
    #[must_use]
    pub const fn new(state: RunState) -> Self {
        Self { state, pid: None, since_boot_secs: None, ending: Ending { exit_status: None, signal: None }, why: None }
    }

    /// It does not run, and nothing is wrong with that.
    #[must_use]
    pub const fn stopped() -> Self {
        Self::new(RunState::Stopped)
    }

    /// It does not run as it should.
    #[must_use]
    pub fn failed(why: String) -> Self {
        Self { why: Some(why), ..Self::new(RunState::Failed) }
    }
}
