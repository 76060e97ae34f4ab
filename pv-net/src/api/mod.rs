//! The API: HTTP/1.1 and JSON over a Unix socket. What is read comes from the newest snapshot and the maps, and waits
//! for nobody; what changes something is a command to the controller.

mod error;
mod events;
mod metrics;
mod openapi;
mod routes;
mod view;

pub use error::ErrorView;
pub use view::{
    ContainerView, FlowView, LeaseView, PoolView, PortView, RuleView, StatusView, VerdictQuery, VerdictView,
};

use crate::command::Commands;
use crate::events::Bus;
use crate::failure::{Failure, Kind};
use crate::snapshot::Snapshot;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What handlers have; cheap to clone.
#[derive(Clone)]
pub struct Api {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    bus: Bus,
    /// The file of the rules, for answers that name it.
    config: Arc<PathBuf>,
    probe: view::Probe,
    /// The API is to end.
    stop: CancellationToken,
}

impl Api {
    /// An API that reads `snapshots` and asks by `commands`.
    #[must_use]
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, commands: Commands, bus: Bus, config: PathBuf) -> Self {
        let (config, probe) = (Arc::new(config), view::Probe::default());
        Self { snapshots, commands, bus, config, probe, stop: CancellationToken::new() }
    }

    /// The device as it is.
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

/// Serves the API until it is to end: then what was asked is still answered.
///
/// # Errors
/// When the socket is none.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    api: Api,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(Kind::Internal, format!("the API's socket: {e}"));
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let router = routes::router(Api { stop: stop.clone(), ..api });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.map_err(failed)
}
