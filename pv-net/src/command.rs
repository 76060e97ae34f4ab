//! What the controller is asked for, and the handle that others ask it by.

use crate::failure::{Failure, Kind};
use crate::kernel::netns::{self, Netns, NetnsError};
use crate::model::{ContainerName, NetnsRef};
use crate::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for the controller; who has more to ask waits with it.
const QUEUE: usize = 64;

/// What `PUT /containers/NAME` takes. Without `run` and `pool`, the declared `run.json` is used.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// A `run.json`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<serde_json::Value>,
    /// Short for a `run.json` with this pool.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// A file that is the container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub netns: Option<std::path::PathBuf>,
    /// A process in the container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
}

/// What is done for an attach before the controller is asked: a namespace that does not answer holds up its own container
/// only.
#[derive(Debug)]
pub struct Prepared {
    /// The container's namespace, as the request names it.
    pub reference: NetnsRef,
    /// The same, open.
    pub netns: Result<Netns, NetnsError>,
}

impl AttachRequest {
    async fn prepare(&self) -> Result<Prepared, Failure> {
        let reference = reference_of(self)?;
        let netns = netns::open_aside(&reference).await;
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

/// How a command ended: with the snapshot that was published after it, so that who asked sees what was done.
pub type Outcome = Result<Arc<Snapshot>, Failure>;

/// Where the answer goes. Who hung up gets none, and the command is carried out all the same.
pub type Answer = oneshot::Sender<Outcome>;

/// What the controller does.
#[derive(Debug)]
pub enum Command {
    /// Attach a container.
    Attach {
        /// Its name.
        name: ContainerName,
        /// How.
        request: AttachRequest,
        /// Its namespace.
        prepared: Result<Prepared, Failure>,
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
    /// Read the configuration again.
    Reload {
        /// The answer.
        answer: Answer,
    },
    /// Take note of what a service saw.
    Report(Report),
    /// Remove everything that pv-net made, and end.
    Down {
        /// The answer.
        answer: Answer,
    },
}

/// What a service tells the controller; nobody waits for what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A program of the device has bound a port of masquerade's range.
    PortTaken {
        /// IP protocol number.
        proto: u32,
        /// The port.
        port: u16,
    },
    /// What is wrong with a service; none when it works again.
    Service {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        condition: Option<String>,
    },
}

/// Asks the controller; cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
}

/// The controller's end of the queue.
pub type Queue = mpsc::Receiver<Command>;

/// A queue, and the handle that fills it.
#[must_use]
pub fn channel() -> (Commands, Queue) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Commands { sender }, queue)
}

fn stopping() -> Failure {
    Failure::new(Kind::Internal, "the daemon is stopping")
}

impl Commands {
    async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Outcome {
        let (answer, wait) = oneshot::channel();
        self.sender.send(command(answer)).await.map_err(|_| stopping())?;
        wait.await.map_err(|_| stopping())?
    }

    /// Attaches a container.
    ///
    /// # Errors
    /// Whatever is wrong; nothing is changed then.
    pub async fn attach(&self, name: ContainerName, request: AttachRequest) -> Outcome {
        let prepared = request.prepare().await;
        self.attach_prepared(name, request, prepared).await
    }

    /// The same with its namespace at hand.
    pub(crate) async fn attach_prepared(
        &self,
        name: ContainerName,
        request: AttachRequest,
        prepared: Result<Prepared, Failure>,
    ) -> Outcome {
        self.ask(|answer| Command::Attach { name, request, prepared, answer }).await
    }

    /// Detaches a container and releases its leases.
    ///
    /// # Errors
    /// When there is none of that name, or the kernel refuses.
    pub async fn detach(&self, name: ContainerName) -> Outcome {
        self.ask(|answer| Command::Detach { name, answer }).await
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// Every error of the file, or what is at odds with attached containers.
    pub async fn reload(&self) -> Outcome {
        self.ask(|answer| Command::Reload { answer }).await
    }

    /// Removes everything and ends the controller.
    ///
    /// # Errors
    /// All that could not be removed.
    pub async fn down(&self) -> Outcome {
        self.ask(|answer| Command::Down { answer }).await
    }

    /// Tells what a service saw. When the controller has ended there is nobody to tell.
    pub async fn report(&self, report: Report) {
        let _ = self.sender.send(Command::Report(report)).await;
    }
}
