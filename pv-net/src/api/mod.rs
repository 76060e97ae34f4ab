//! The API: HTTP/1.1 and JSON over a Unix socket. Handlers carry requests to the daemon and back; they decide nothing.

mod events;
mod metrics;
mod openapi;
mod routes;

pub use events::{BindEventView, DropEventView, EventView, forward_events};
pub use routes::ErrorView as ErrorBody;

use crate::daemon::Daemon;
use crate::failure::Failure;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, MutexGuard, broadcast, mpsc, oneshot};

/// What waits for the answer to `down`.
pub type DownAnswer = oneshot::Sender<Result<(), Failure>>;

/// Events that a slow reader may be behind before it misses some.
const EVENT_BACKLOG: usize = 256;

/// The daemon, shared between the API and the main loop.
#[derive(Clone)]
pub struct Shared {
    daemon: Arc<Mutex<Daemon>>,
    down: mpsc::Sender<DownAnswer>,
    down_requests: Arc<std::sync::Mutex<Option<mpsc::Receiver<DownAnswer>>>>,
    events: broadcast::Sender<EventView>,
    forwarding: Arc<std::sync::atomic::AtomicBool>,
}

impl Shared {
    /// Shares `daemon`.
    #[must_use]
    pub fn new(daemon: Daemon) -> Self {
        let (down, requests) = mpsc::channel(1);
        Self {
            daemon: Arc::new(Mutex::new(daemon)),
            down,
            down_requests: Arc::new(std::sync::Mutex::new(Some(requests))),
            events: broadcast::channel(EVENT_BACKLOG).0,
            forwarding: Arc::default(),
        }
    }

    /// The daemon, for one operation.
    pub async fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().await
    }

    /// Requests to take everything down; the main loop takes the receiver, once.
    ///
    /// # Panics
    /// When it is taken twice.
    #[must_use]
    pub fn down_requests(&self) -> mpsc::Receiver<DownAnswer> {
        let taken = self.down_requests.lock().map(|mut r| r.take());
        taken.ok().flatten().expect("the main loop alone takes it")
    }
}

/// Serves the API until the process ends.
pub async fn serve(listener: UnixListener, shared: Shared) {
    if let Err(e) = axum::serve(listener, routes::router(shared)).await {
        tracing::error!(error = %e, "the API ended");
    }
}
