//! The daemon's side of the runner's socket.

use super::protocol::{Reply, Request, Told};
use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, RunStatus};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// What is known of the containers that can be started.
#[derive(Clone, Debug, Default)]
pub struct Statuses {
    /// The runner has told it, and is there.
    pub is_told: bool,
    /// The containers of which the runner knows.
    pub all: BTreeMap<ContainerName, RunStatus>,
}

/// The daemon's handle to the runner, which need not run; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runner {
    socket: Arc<PathBuf>,
    statuses: watch::Sender<Arc<Statuses>>,
}

impl Runner {
    /// The runner that listens at `socket`.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self { socket: Arc::new(socket), statuses: watch::Sender::default() }
    }

    /// What is known of the containers; nothing while no runner runs.
    #[must_use]
    pub fn statuses(&self) -> Arc<Statuses> {
        self.statuses.borrow().clone()
    }

    /// Notes what the runner has told of the containers; `None` when it is gone.
    pub fn note(&self, told: Option<BTreeMap<ContainerName, RunStatus>>) {
        let statuses = Statuses { is_told: told.is_some(), all: told.unwrap_or_default() };
        self.statuses.send_replace(Arc::new(statuses));
    }

    /// Sends a request, and waits for its answer.
    ///
    /// # Errors
    /// When no runner runs, or it refuses.
    pub async fn ask(&self, request: &Request) -> Result<Reply, Failure> {
        let mut lines = self.send(request).await?;
        reply(lines.next_line().await).and_then(|reply| reply.ok_or_else(hung_up))
    }

    /// The states of all containers, now and after each change.
    ///
    /// # Errors
    /// When no runner runs.
    pub async fn watch(&self) -> Result<Watch, Failure> {
        Ok(Watch(self.send(&Request::Watch).await?))
    }

    /// Asks for the automatic starts, which have begun when this returns.
    ///
    /// # Errors
    /// When no runner runs, or it refuses.
    pub async fn start_all(&self) -> Result<Starts, Failure> {
        let mut lines = self.send(&Request::Auto).await?;
        match reply(lines.next_line().await)? {
            Some(Reply::Begun) => Ok(Starts(lines)),
            Some(_) => Err(strange()),
            None => Err(hung_up()),
        }
    }

    async fn send(&self, request: &Request) -> Result<Lines<BufReader<UnixStream>>, Failure> {
        let unreachable = |e: std::io::Error| {
            let why = format!(
                "the runner, which starts and stops containers, cannot be reached: {}: {e}",
                self.socket.display()
            );
            Failure::new(Kind::Internal, why).help("start it with: systemctl start pv-net-runner, or pv-net runner")
        };
        let mut stream = UnixStream::connect(&*self.socket).await.map_err(unreachable)?;
        let mut line = serde_json::to_vec(request).map_err(|e| unreachable(e.into()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(unreachable)?;
        Ok(BufReader::new(stream).lines())
    }
}

/// Automatic starts that have begun.
pub struct Starts(Lines<BufReader<UnixStream>>);

impl Starts {
    /// Waits until they are over.
    ///
    /// # Errors
    /// When the runner ends before, or cannot do them.
    pub async fn over(mut self) -> Result<(), Failure> {
        match reply(self.0.next_line().await)? {
            Some(Reply::Over) => Ok(()),
            Some(_) => Err(strange()),
            None => Err(hung_up()),
        }
    }
}

/// The states of all containers as they change.
pub struct Watch(Lines<BufReader<UnixStream>>);

impl Watch {
    /// The next states; `None` when the runner has ended.
    ///
    /// # Errors
    /// When the runner refuses.
    pub async fn next(&mut self) -> Result<Option<BTreeMap<ContainerName, Told>>, Failure> {
        match reply(self.0.next_line().await)? {
            Some(Reply::All(all)) => Ok(Some(all)),
            Some(_) => Err(strange()),
            None => Ok(None),
        }
    }
}

fn hung_up() -> Failure {
    let failure = Failure::new(Kind::Internal, "the runner has ended before it has answered");
    failure.help("ask again when it runs: containers go on without it")
}

/// The answer is not one to the request.
#[must_use]
pub fn strange() -> Failure {
    Failure::new(Kind::Internal, "the runner's answer is not understood")
        .help("restart it if it is of another version: systemctl restart pv-net-runner")
}

fn reply(line: std::io::Result<Option<String>>) -> Result<Option<Reply>, Failure> {
    let Ok(Some(line)) = line else { return Ok(None) };
    match serde_json::from_str(&line) {
        Ok(Reply::Failed(refusal)) => Err(refusal.into()),
        Ok(reply) => Ok(Some(reply)),
        Err(_) => Err(strange()),
    }
}
