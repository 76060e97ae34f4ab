//! The daemon's main loop: signals, link events, the clock, and the API beside them.

use super::{Daemon, Paths, RunLock, teardown};
use crate::api::{self, Shared};
use crate::failure::{Failure, Kind};
use crate::kernel::netlink;
use std::io;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Changes are acted on at once, but a storm of them takes no more than this part of the daemon's time: what comes in the
/// rest is acted on together.
const STORM_SHARE: u32 = 4;
/// The longest that a change waits for that.
const MAX_CALM: Duration = Duration::from_millis(200);

/// The first sweep measures the kernel's tick rate since the start: whoever asks the daemon at once does not wait for it.
const FIRST_SWEEP: Duration = Duration::from_secs(1);

/// Runs until SIGTERM, SIGINT or `down`. Stopping leaves the data plane working.
///
/// # Errors
/// When the daemon cannot start; or all that `down` could not remove.
pub async fn run(paths: Paths) -> Result<(), Failure> {
    paths.make()?;
    let _lock = RunLock::take(&paths)?;
    raise_memlock();
    let internal = |what: &str, e: io::Error| Failure::new(Kind::Internal, format!("{what}: {e}"));
    // Before anything is observed, so that no event between is missed.
    let mut links = netlink::watch()?;
    let daemon = Daemon::start(paths.clone()).await?;
    let listener = listen(&paths).map_err(|e| internal(&format!("listen on {}", paths.socket().display()), e))?;
    let shared = Shared::new(daemon);
    let mut down = shared.down_requests();
    tokio::spawn(api::serve(listener, shared.clone()));
    api::forward_events(&shared).await;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| internal("signals", e))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| internal("signals", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| internal("signals", e))?;
    let sweep_sooner = shared.daemon().await.sweep_sooner();
    let mut calm = tokio::time::Instant::now();
    let mut sweep = tokio::time::Instant::now() + FIRST_SWEEP;
    tracing::info!(socket = %paths.socket().display(), "ready");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(&shared).await,
            Some(event) = links.recv() => {
                tokio::time::sleep_until(calm).await;
                let mut daemon = shared.daemon().await;
                let begun = tokio::time::Instant::now();
                daemon.on_event(&event).await;
                // What came together is handled together.
                while let Ok(event) = links.try_recv() {
                    daemon.on_event(&event).await;
                }
                daemon.settle().await;
                calm = tokio::time::Instant::now() + (begun.elapsed() * STORM_SHARE).min(MAX_CALM);
            }
            () = tokio::time::sleep_until(sweep) => {
                let mut daemon = shared.daemon().await;
                let next = daemon.tick();
                daemon.refresh_policy().await;
                sweep = tokio::time::Instant::now() + next;
            }
            () = sweep_sooner.notified() => sweep = tokio::time::Instant::now(),
            Some(answer) = down.recv() => {
                let daemon = shared.daemon().await;
                let result = teardown(&paths).await;
                drop(daemon);
                // The client may have gone; the device is as it was all the same.
                let _ = answer.send(result.clone());
                // The answer must be written before the process ends.
                tokio::time::sleep(Duration::from_millis(50)).await;
                remove_socket(&paths);
                return result;
            }
        }
    }
    tracing::info!("stopping; the data plane goes on");
    remove_socket(&paths);
    Ok(())
}

async fn reload(shared: &Shared) {
    match shared.daemon().await.reload().await {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(failure) => {
            for message in &failure.messages {
                tracing::error!(error = %message.error, "configuration not reloaded");
            }
        }
    }
    api::forward_events(shared).await;
}

fn listen(paths: &Paths) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let socket = paths.socket();
    // The lock is ours, so a socket that is there is a dead daemon's.
    remove_socket(paths);
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn remove_socket(paths: &Paths) {
    if let Err(e) = std::fs::remove_file(paths.socket())
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %e, "socket not removed");
    }
}

/// Before kernel 5.11 maps count against this limit. Without CAP_SYS_RESOURCE it cannot be raised; later kernels do
/// not ask for it.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(e) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(error = %e, "RLIMIT_MEMLOCK not raised");
    }
}
