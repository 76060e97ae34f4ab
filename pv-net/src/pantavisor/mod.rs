//! Pantavisor: which revision of the device runs, and its control socket (HTTP/1.1 over a Unix socket).
//!
//! Requests and answers are those of `docs/reference/pantavisor-commands.md` and `docs/reference/pvcontrol.md` in the
//! repository `pantavisor/pantavisor` on GitHub, and of the files `ctrl/ctrl_*_ep.c` there. What the documents and the
//! code say differently is read either way.

pub mod message;
#[cfg(test)]
mod tests;

pub use message::{Action, Listed};

use crate::model::ContainerName;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long Pantavisor may take for an answer. It stops a container before it answers, which may take it many seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take for an answer about what it knows.
const SOON: Duration = Duration::from_secs(5);
/// The longest answer that is read, bytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// The longest value of device metadata, bytes (`CTRL_USRMETA_MAX_DATA` in `ctrl/ctrl_devmeta_ep.c`).
const LONGEST_VALUE: usize = 4096;
/// The key of device metadata that says why a revision's network is not ready.
const ERROR_KEY: &str = "pv-net.error";

/// A revision of Pantavisor from which the configuration is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its directory; Pantavisor keeps a symbolic link `trails/current` to that of the running one.
    pub dir: PathBuf,
    /// Pantavisor's control socket.
    pub control: PathBuf,
}

impl Revision {
    /// The revision's name, such as `7` or `locals/lab`: the target of the symbolic link, or the path of a directory
    /// that is none. `None` while there is no link: Pantavisor removes it before it makes the next one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let target = match std::fs::read_link(&self.dir) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => self.dir.clone(),
        };
        // Earlier versions of Pantavisor make a link with an absolute path.
        let text = target.display().to_string();
        Some(text.rsplit_once("/trails/").map_or(text.as_str(), |(_, name)| name).to_owned())
    }

    /// The client of the control socket.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { socket: self.control.clone() }
    }
}

/// Why Pantavisor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens on its control socket.
    #[error("Pantavisor cannot be reached: {}: {source}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There was no answer, or half of one.
    #[error("{request}: {why}")]
    Broken {
        /// The request.
        request: String,
        /// What happened.
        why: String,
    },
    /// It has refused the request.
    #[error("{request}: {why} ({status})")]
    Refused {
        /// The request.
        request: String,
        /// The status of the answer.
        status: StatusCode,
        /// Its text.
        why: String,
    },
}

/// The client of Pantavisor's control socket. Every request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// A client of the socket at this path, in a container usually `/pantavisor/pv-ctrl`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The containers of the running revision. This takes the role `mgmt`.
    ///
    /// # Errors
    /// When Pantavisor does not answer, refuses, or answers something else.
    pub async fn containers(&self) -> Result<Vec<Listed>, ControlError> {
        let bytes = self.ask(Method::GET, "/containers", "", SOON).await?;
        message::list(&bytes).map_err(|why| broken("GET /containers", why))
    }

    /// Starts, stops or restarts a container. This takes the role `mgmt`, and a container whose restart policy is
    /// `container`.
    ///
    /// # Errors
    /// When Pantavisor does not answer, or refuses.
    pub async fn act(&self, name: &ContainerName, action: Action) -> Result<(), ControlError> {
        let body = message::action(action);
        self.ask(Method::PUT, &format!("/containers/{name}"), &body, PATIENCE).await.map(drop)
    }

    /// Tells that the container which asks is ready. Any container may.
    ///
    /// # Errors
    /// When Pantavisor does not answer; or refuses, since the container's status goal is not `READY`.
    pub async fn ready(&self) -> Result<(), ControlError> {
        self.ask(Method::POST, "/signal", &message::ready(), SOON).await.map(drop)
    }

    /// Notes in the device's metadata why a revision's network is not ready; it outlives a rollback. This takes the role
    /// `mgmt`.
    ///
    /// # Errors
    /// When Pantavisor does not answer, or refuses.
    pub async fn report(&self, revision: &str, why: &str) -> Result<(), ControlError> {
        let value = message::value(revision, why, LONGEST_VALUE);
        self.ask(Method::PUT, &format!("/device-meta/{ERROR_KEY}"), &value, SOON).await.map(drop)
    }

    /// Removes what [`report`](Self::report) has noted about this revision. What is noted about another one stays: it is
    /// why that one was not kept.
    ///
    /// # Errors
    /// When Pantavisor does not answer, or refuses.
    pub async fn forget(&self, revision: &str) -> Result<(), ControlError> {
        let bytes = self.ask(Method::GET, "/device-meta", "", SOON).await?;
        if !message::is_about(&bytes, ERROR_KEY, revision) {
            return Ok(());
        }
        self.ask(Method::DELETE, &format!("/device-meta/{ERROR_KEY}"), "", SOON).await.map(drop)
    }

    /// Sends one request, and gives the body of its answer.
    async fn ask(&self, method: Method, path: &str, body: &str, patience: Duration) -> Result<Bytes, ControlError> {
        let request = format!("{method} {path}");
        let answer = timeout(patience, self.exchange(method, path, body, &request)).await;
        let (status, bytes) = answer.map_err(|_| broken(&request, format!("no answer in {patience:?}")))??;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(ControlError::Refused { request, status, why: message::error(&bytes) })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: &str,
        request: &str,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ControlError::Unreachable { socket: self.socket.clone(), source })?;
        let broken = |e: hyper::Error| broken(request, e.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let message = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("connection", "close")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_owned())))
            .map_err(|e| self::broken(request, e.to_string()))?;
        let response = sender.send_request(message).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        Ok((status, body.map_err(|e| self::broken(request, e.to_string()))?.to_bytes()))
    }
}

fn broken(request: &str, why: String) -> ControlError {
    ControlError::Broken { request: request.to_owned(), why }
}
