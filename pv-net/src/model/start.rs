//! How a container is started and stopped.

use serde::{Deserialize, Serialize};
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

impl RuntimeSpec {
    /// What the runtime knows the container by.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Lxc(lxc) => &lxc.id,
            Self::Oci(oci) => &oci.id,
        }
    }
}
