//! The commands of the controller, and the handle by which others send them.

use crate::failure::{Failure, Kind};
use crate::ipam::LeaseKey;
use crate::kernel::broker::Broker;
use crate::kernel::errand::Errand;
use crate::kernel::netlink::Netns;
use crate::kernel::netns::NetnsError;
use crate::model::{ContainerName, IfName, Mac, NetnsRef, Terms};
use crate::plan::ReloadPlan;
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// How many commands may wait for the controller. Further senders wait until there is room.
const QUEUE: usize = 64;

/// The body of `PUT /containers/NAME`: an action alone, or what is attached. Without `run` and `pool`, the declared
/// `run.json` is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// A `run.json`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<serde_json::Value>,
    /// A short form of a `run.json` with just this pool.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// The file of the container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<std::path::PathBuf>,
    /// The id of a process in the container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Detach the container, which releases its leases, when none of its interfaces is there any more, as when its
    /// namespace is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub auto_detach: bool,
    /// Instead of all else: start the container, stop it, or both, by the runtime that its `run.json` names.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub action: Option<Action>,
    /// The name or the pool is from an annotation, which an image may bring along. Only pools with `annotations` accept
    /// that, and a declared container keeps the pools of its `run.json`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub annotated: bool,
}

/// What is done with a container by its runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Start it.
    Start,
    /// Stop it: it is asked to end, and killed after `stop_timeout`.
    Stop,
    /// Stop it if it runs, and start it.
    Restart,
}

/// The body of `PUT /containers/NAME/interfaces/INTERFACE`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfaceRequest {
    /// The pool that it is in.
    pub pool: String,
    /// Whether the container's default routes go through it; as in a `run.json` unless set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub default_route: Option<bool>,
    /// IPv4 address from the pool's subnet; a free one unless set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ipv4_address: Option<String>,
    /// IPv6 address from the pool's subnet; a free one unless set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ipv6_address: Option<String>,
    /// MAC; derived from the address unless set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_address: Option<String>,
}

/// An interface that is to be added to an attached container.
#[derive(Clone, Debug)]
pub struct AddInterface {
    /// The container.
    pub container: ContainerName,
    /// The interface's name inside it.
    pub interface: IfName,
    /// What it is to be.
    pub request: InterfaceRequest,
}

/// What the network on a pool's parent gives an interface from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readdress {
    /// The interface.
    pub key: LeaseKey,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses; it loses those that are not there.
    pub terms: Terms,
    /// Why it has none of a family.
    pub wrong: Option<String>,
    /// The lease in the book that this follows from.
    pub base: Terms,
}

/// What is done for an attach before the controller gets the command, so that a namespace that does not answer holds up
/// its own container only.
#[derive(Debug)]
pub struct Prepared {
    /// The namespace, as the request names it.
    pub reference: NetnsRef,
    /// The opened namespace, or why it cannot be opened.
    pub netns: Result<Netns, NetnsError>,
}

impl AttachRequest {
    async fn prepare(&self, broker: &Broker) -> Result<Prepared, Failure> {
        let reference = reference_of(self)?;
        let netns = broker.open(&reference).await;
        Ok(Prepared { reference, netns })
    }
}

fn reference_of(request: &AttachRequest) -> Result<NetnsRef, Failure> {
    match (&request.netns, request.pid) {
        (Some(path), None) => Ok(NetnsRef::Path(path.clone())),
        (None, Some(pid)) => Ok(NetnsRef::Pid(pid)),
        _ => Err(Failure::new(Kind::Usage, "the container's namespace: give either \"netns\" or \"pid\"")
            .help("pv-net attach NAME --netns /run/netns/NAME, or --pid PID")),
    }
}

/// Why an operation stopped before its end.
#[derive(Debug)]
pub enum Halt {
    /// It cannot be done.
    Failed(Failure),
    /// These errands must be done first, and may take long. The operation starts again with their results, and until then
    /// nothing is changed but what is so in any case.
    Needs(Vec<Errand>),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The result of a command: the snapshot that was published after it, so that the sender sees its effect.
pub type Outcome = Result<Arc<Snapshot>, Failure>;

/// The channel for the answer. If the sender has hung up, the command is carried out all the same.
pub type Answer = oneshot::Sender<Outcome>;

/// A command for the controller.
#[derive(Debug)]
pub enum Command {
    /// Attach a container.
    Attach {
        /// Its name.
        name: ContainerName,
        /// What is asked for.
        request: AttachRequest,
        /// Its namespace, opened.
        prepared: Result<Prepared, Failure>,
        /// The answer.
        answer: Answer,
    },
    /// Attach a declared container, because its namespace exists.
    AttachDeclared {
        /// Its name.
        name: ContainerName,
        /// Its namespace, opened.
        prepared: Prepared,
        /// The answer.
        answer: Answer,
    },
    /// Remove the links of a container whose first process has ended; its leases stay.
    Ended {
        /// Its name.
        name: ContainerName,
        /// That process.
        pid: u32,
        /// The answer.
        answer: Answer,
    },
    /// Detach a container and release its leases.
    Detach {
        /// Its name.
        name: ContainerName,
        /// The answer.
        answer: Answer,
    },
    /// Add an interface to an attached container.
    AttachInterface {
        /// The interface.
        add: AddInterface,
        /// The answer.
        answer: Answer,
    },
    /// Remove an interface from an attached container and release its lease.
    DetachInterface {
        /// The container.
        name: ContainerName,
        /// The interface's name inside it.
        interface: IfName,
        /// The answer.
        answer: Answer,
    },
    /// Note what the network gives an interface.
    Readdress {
        /// What it has now.
        new: Box<Readdress>,
        /// The answer.
        answer: Answer,
    },
    /// Read the configuration again and apply it.
    Reload {
        /// The answer.
        answer: Answer,
    },
    /// Tell what a reload would do.
    Plan {
        /// The answer.
        answer: oneshot::Sender<Result<ReloadPlan, Failure>>,
    },
    /// Note what a service reports.
    Report(Report),
    /// Remove everything that pv-net made, and end.
    Down {
        /// The answer.
        answer: Answer,
    },
}

/// A service's report to the controller; it gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A program of the device has bound a port of masquerade's range.
    PortTaken {
        /// IP protocol number.
        proto: u32,
        /// The port.
        port: u16,
    },
    /// The namespace of a declared container does not exist, so there is no reason for a condition about it.
    NamespaceGone {
        /// The container.
        name: ContainerName,
    },
    /// The condition of a service; `None` when it works again.
    Service {
        /// Its name.
        name: &'static str,
        /// The condition's text.
        condition: Option<String>,
    },
}

/// The handle for sending commands; cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
    broker: Broker,
}

/// The controller's end of the channel.
pub type Queue = mpsc::Receiver<Command>;

/// A queue, and the handle that fills it. `broker` opens namespaces.
#[must_use]
pub fn channel(broker: Broker) -> (Commands, Queue) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Commands { sender, broker }, queue)
}

fn stopping() -> Failure {
    Failure::new(Kind::Internal, "the daemon is stopping")
}

impl Commands {
    /// Whether the controller has ended, so that nobody takes commands any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Outcome {
        let (answer, wait) = oneshot::channel();
        self.sender.send(command(answer)).await.map_err(|_| stopping())?;
        wait.await.map_err(|_| stopping())?
    }

    /// Opens a network namespace.
    ///
    /// # Errors
    /// When it does not exist, is no network namespace or is the daemon's own; when opening takes too long, or the
    /// broker is gone.
    pub async fn open(&self, reference: &NetnsRef) -> Result<Netns, NetnsError> {
        self.broker.open(reference).await
    }

    /// Attaches a container.
    ///
    /// # Errors
    /// When the request is wrong or an operation fails. Nothing is changed then.
    pub async fn attach(&self, name: ContainerName, request: AttachRequest) -> Outcome {
        let prepared = request.prepare(&self.broker).await;
        self.attach_prepared(name, request, prepared).await
    }

    /// [`attach`](Self::attach) with an opened namespace.
    pub(crate) async fn attach_prepared(
        &self,
        name: ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Outcome {
        self.ask(|answer| Command::Attach { name, request, prepared, answer }).await
    }

    /// Attaches a declared container, unless it was detached by hand in this very namespace. A failure becomes a
    /// condition of the container.
    ///
    /// # Errors
    /// When the declaration is wrong or an operation fails. Nothing is changed then.
    pub async fn attach_declared(&self, name: ContainerName, prepared: Prepared) -> Outcome {
        self.ask(|answer| Command::AttachDeclared { name, prepared, answer }).await
    }

    /// Removes the links of a container whose first process `pid` has ended, unless it has been attached anew since. Its
    /// leases stay.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub async fn ended(&self, name: ContainerName, pid: u32) -> Outcome {
        self.ask(|answer| Command::Ended { name, pid, answer }).await
    }

    /// Detaches a container and releases its leases.
    ///
    /// # Errors
    /// When no container has the name, or the kernel refuses an operation.
    pub async fn detach(&self, name: ContainerName) -> Outcome {
        self.ask(|answer| Command::Detach { name, answer }).await
    }

    /// Adds an interface to an attached container.
    ///
    /// # Errors
    /// When the request is wrong or an operation fails. Nothing is changed then.
    pub async fn attach_interface(&self, add: AddInterface) -> Outcome {
        self.ask(|answer| Command::AttachInterface { add, answer }).await
    }

    /// Removes an interface from an attached container and releases its lease.
    ///
    /// # Errors
    /// When the container has no such interface or no other one, or the kernel refuses an operation.
    pub async fn detach_interface(&self, name: ContainerName, interface: IfName) -> Outcome {
        self.ask(|answer| Command::DetachInterface { name, interface, answer }).await
    }

    /// Gives an interface the addresses that the network has given it, and takes away those that are over.
    ///
    /// # Errors
    /// When somebody else has one of them, or an operation fails. The container then sends with none of them.
    pub async fn readdress(&self, new: Readdress) -> Outcome {
        let new = Box::new(new);
        self.ask(|answer| Command::Readdress { new, answer }).await
    }

    /// Reads the configuration again and applies it.
    ///
    /// # Errors
    /// Every error of the file, or the conflict with attached containers.
    pub async fn reload(&self) -> Outcome {
        self.ask(|answer| Command::Reload { answer }).await
    }

    /// Tells what a reload would do; changes nothing.
    ///
    /// # Errors
    /// The errors that the reload would have.
    pub async fn plan(&self) -> Result<ReloadPlan, Failure> {
        let (answer, wait) = oneshot::channel();
        self.sender.send(Command::Plan { answer }).await.map_err(|_| stopping())?;
        wait.await.map_err(|_| stopping())?
    }

    /// Removes everything that pv-net made, and ends the controller.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn down(&self) -> Outcome {
        self.ask(|answer| Command::Down { answer }).await
    }

    /// Sends a service's report. Does nothing when the controller has ended.
    pub async fn report(&self, report: Report) {
        let _ = self.sender.send(Command::Report(report)).await;
    }
}
