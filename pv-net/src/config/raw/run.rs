//! The form of `run.json`.

use crate::config::field::{Field, Section};
use crate::config::raw::Selector;
use crate::model::{ContainerKind, NetworkMode, Start, WasmCli};
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A container's configuration, `run.json`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub struct Run {
    /// `service-manifest-run@1`.
    #[serde(rename = "#spec")]
    pub spec: Option<Field<String>>,
    /// The container's name.
    pub name: Option<Field<String>>,
    /// Who starts the container; `netns` (somebody else) unless set.
    pub r#type: Option<Field<ContainerKind>>,
    /// The file of the container's network namespace, for type `netns`; `/run/netns/NAME` unless set.
    pub netns: Option<Field<String>>,
    /// Who starts the container: pv-net when its daemon has started (`auto`), or somebody else (`manual`); `manual` unless
    /// set.
    pub start: Option<Field<Start>>,
    /// The runtime by which pv-net starts and stops the container, for types `lxc`, `oci` and `wasm`.
    pub runtime: Option<Field<Runtime>>,
    /// Seconds that the container may take to end when it is stopped, before it is killed: 1 to 3600; 10 unless set.
    pub stop_timeout: Option<Field<u32>>,
    /// The container's network.
    pub network: Option<Field<RunNetwork>>,
    /// Services that the container needs.
    pub services: Option<Field<Services>>,
    /// How to tell that the container works.
    pub health_check: Option<Field<HealthCheck>>,
    /// What to do when the container fails.
    pub auto_recovery: Option<Field<AutoRecovery>>,
    /// Fields that are none.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Map<String, Value>,
}

impl Section for Run {
    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }

    fn schema() -> &'static Schema {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| schemars::schema_for!(Run));
        &SCHEMA
    }
}

section! {
    /// What a runtime knows a container by.
    Runtime {
        /// The container's name in the runtime; the container's name unless set.
        id: String,
        /// For type `lxc`: LXC's directory of containers; `/var/lib/lxc` unless set.
        lxcpath: String,
        /// For types `oci` and `wasm`: the runtime, an absolute path or a name such as `crun`; `runc` or that of `cli`
        /// unless set.
        program: String,
        /// For type `oci`: the directory of the bundle, an absolute path.
        bundle: String,
        /// For type `oci`: the runtime's directory of states; its own choice unless set.
        root: String,
        /// For type `wasm`: whose command line the runtime has; `wasmtime` unless set.
        cli: WasmCli,
        /// For type `wasm`: the file of the module or component, an absolute path.
        module: String,
        /// For type `wasm`: the module's arguments.
        args: Vec<Field<String>>,
        /// For type `wasm`: the module's environment.
        env: BTreeMap<String, Field<String>>,
        /// For type `wasm`: the number of the user, and of the group, by which the runtime runs; one of the
        /// container's own unless set.
        user: u32,
    }
}

section! {
    /// A container's network.
    RunNetwork {
        /// How the container is connected; `pool` unless set.
        mode: NetworkMode,
        /// Short for one interface `eth0` with the default route; beside `interfaces`, the pool of those without one.
        pool: String,
        /// Host name of the container; the container's name unless set.
        hostname: String,
        /// Further names of the container in the device's DNS domain.
        aliases: Vec<Field<String>>,
        /// Published ports: `[ADDRESS:]PORTS:PORTS[/tcp|/udp][@INTERFACE]`. They lead to the interface with the default
        /// route unless another one is named, as in `8080:80/tcp@eth1`.
        ports: Vec<Field<String>>,
        /// For type `wasm`: the sockets that the program may have; none unless set.
        sockets: Sockets,
        /// The container's interfaces.
        interfaces: Vec<Field<Interface>>,
    }
}

section! {
    /// The sockets that a program may have. All other packets to the container, and from it, are refused; replies pass.
    Sockets {
        /// Ports of the container that others reach, such as `tcp/80` or `udp/5000-5010`; published ones must be among
        /// them.
        listen: Vec<Field<String>>,
        /// Whom it reaches.
        connect: Vec<Field<Peer>>,
        /// Whether it finds names, by the name servers of its pools; not unless set.
        resolve: bool,
    }
}

section! {
    /// Whom a program reaches.
    Peer {
        /// The receivers.
        to: Selector,
        /// Their ports, such as `tcp/5432`, or `tcp` for all.
        ports: Vec<Field<String>>,
    }
}

section! {
    /// One interface.
    Interface {
        /// Name inside the container, 1 to 15 characters; `eth0`, `eth1`, … unless set.
        name: String,
        /// The pool it is in.
        pool: String,
        /// Whether the default routes go through it. Unless an interface claims that of a family, the first one with the
        /// family has it that does not say `false`.
        default_route: bool,
        /// IPv4 address from the pool's subnet; a free one unless set.
        ipv4_address: String,
        /// IPv6 address from the pool's subnet; a free one unless set.
        ipv6_address: String,
        /// MAC, such as `02:00:0a:00:03:07`; derived from the address unless set.
        mac_address: String,
    }
}

section! {
    /// Services that a container needs.
    Services {
        /// The required services.
        required: Vec<Field<RequiredService>>,
    }
}

section! {
    /// A service that a container needs.
    RequiredService {
        /// The service; with `start` `auto`, a container that offers it is started first.
        name: String,
        /// What it is reached by.
        r#type: String,
        /// Where the container finds it.
        target: String,
    }
}

section! {
    /// How to tell that a container works.
    HealthCheck {
        /// `http`, `tcp` or `exec`.
        r#type: HealthType,
        /// URL, or `HOST:PORT`.
        endpoint: String,
        /// The program of an `exec` check, and its arguments. No shell reads them.
        command: Vec<Field<String>>,
        /// Seconds between two checks.
        interval: u32,
        /// Seconds that a check may take: 1 to 3600; 30 unless set.
        timeout: u32,
        /// Failures in a row that make it unhealthy.
        retries: u32,
        /// Seconds after the start in which failures do not count.
        start_period: u32,
    }
}

/// Kinds of health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthType {
    /// An HTTP request.
    Http,
    /// A connection.
    Tcp,
    /// A command.
    Exec,
}

section! {
    /// What to do when a container fails.
    AutoRecovery {
        /// When to restart it.
        r#type: RecoveryType,
        /// Restarts before it is given up.
        maximum_retry_count: u32,
        /// Seconds before the first restart.
        retry_delay: u32,
        /// What the delay is multiplied by after each.
        backoff_factor: f64,
        /// Seconds of working after which the count starts anew.
        reset_window: u32,
        /// What happens when it is given up.
        escalate_to: Escalation,
    }
}

/// When to restart a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryType {
    /// Never.
    No,
    /// Whenever it ends.
    Always,
    /// When it ends with an error.
    OnFailure,
    /// Whenever it ends, unless a person stopped it.
    UnlessStopped,
}

/// What happens when a container is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Escalation {
    /// Nothing.
    None,
    /// The device reboots.
    Reboot,
}
