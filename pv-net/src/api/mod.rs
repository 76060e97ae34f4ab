//! The API: HTTP/1.1 and JSON over a Unix socket. Reads take the newest snapshot and the maps, and never wait for the
//! controller. Changes are commands to the controller.

mod action;
mod error;
mod events;
mod extract;
mod metrics;
mod openapi;
mod routes;
mod view;

pub use error::ErrorView;
pub use view::{
    ContainerView, FlowView, LeaseView, PoolView, PortView, ResolveView, RuleView, StatusView, VerdictQuery,
    VerdictView,
};

use crate::command::Commands;
use crate::dhcp;
use crate::dns::Dns;
use crate::events::Bus;
use crate::failure::{Failure, Kind};
use crate::lease::LeaseHandle;
use crate::runner::client::Runner;
use crate::snapshot::Snapshot;
use crate::{dhcp6, ra};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What handlers need; cheap to clone.
#[derive(Clone)]
pub struct Api {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    bus: Bus,
    /// Path of the configuration file, for answers that name it.
    config: Arc<PathBuf>,
    probe: view::Probe,
    dns: Arc<Dns>,
    advertised: Arc<ra::Metrics>,
    leased: Arc<dhcp6::Metrics>,
    leases: LeaseHandle,
    dhcp: Arc<dhcp::Metrics>,
    runner: Runner,
    /// Cancelled when the API is to stop.
    stop: CancellationToken,
}

impl Api {
    /// An API that reads `snapshots` and sends changes to `commands`.
    #[must_use]
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        commands: Commands,
        bus: Bus,
        config: PathBuf,
        counted: (Arc<Dns>, Arc<ra::Metrics>, Arc<dhcp6::Metrics>, Arc<dhcp::Metrics>),
        leases: LeaseHandle,
        runner: Runner,
    ) -> Self {
        let (dns, advertised, leased, dhcp) = counted;
        let (config, probe, stop) = (Arc::new(config), view::Probe::default(), CancellationToken::new());
        Self { snapshots, commands, bus, config, probe, dns, advertised, leased, leases, dhcp, runner, stop }
    }

    /// The newest snapshot.
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

/// Serves the API until it is to stop; requests under way are still answered.
///
/// # Errors
/// When the listening socket cannot be used.
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
