//! The daemon put together: its two runtimes, who runs on which, and who gets what. The only file that knows both the
//! controller and what is around it.

use crate::api::{self, Api};
use crate::command::{self, Commands};
use crate::control::Controller;
use crate::daemon::{Daemon, Paths, RunLock};
use crate::events::{self, Bus};
use crate::failure::{Failure, Kind};
use crate::kernel::netlink;
use crate::services;
use crate::supervisor::Supervisor;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Threads that services and the API share.
const WORKERS: usize = 2;
/// Threads for what blocks: a sweep, a list of flows, a question to the policy.
const BLOCKING: usize = 4;
/// A stack of one of these threads. It is address space, not memory, but for what is used of it.
const STACK: usize = 1 << 20;
/// What may still run on them when the daemon ends: nothing that anybody waits for.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// Runs until SIGTERM, SIGINT or `down`. Stopping leaves the data plane working.
///
/// # Errors
/// When the daemon cannot start; or all that `down` could not remove.
pub fn run(paths: &Paths) -> Result<(), Failure> {
    paths.make()?;
    let _lock = RunLock::take(paths)?;
    raise_memlock();
    keep_arenas_few();
    let services = services_runtime().map_err(|e| internal("start the services' threads", &e))?;
    let control = Builder::new_current_thread().enable_all().build();
    let control = control.map_err(|e| internal("start the controller's runtime", &e))?;
    let ended = control.block_on(serve(paths, &services));
    services.shutdown_timeout(LAST_WAIT);
    ended
}

async fn serve(paths: &Paths, services: &Runtime) -> Result<(), Failure> {
    // Before anything is observed, so that no event between is missed.
    let kernel = netlink::watch()?;
    let daemon = Daemon::start(paths.clone()).await?;
    let listener = listen(paths).map_err(|e| internal(&format!("listen on {}", paths.socket().display()), &e))?;
    let signals = Signals::new().map_err(|e| internal("signals", &e))?;
    let (commands, queue) = command::channel();
    let bus = Bus::default();
    let stop = CancellationToken::new();
    let (controller, snapshots) = Controller::new(daemon, queue, kernel, bus.clone(), stop.clone());
    let mut supervisor = Supervisor::new(services.handle().clone(), commands.clone());
    let api = Api::new(snapshots.clone(), commands.clone(), bus.clone(), paths.config.clone());
    supervisor.start("api", move |stop| {
        let (listener, api) = (listener.try_clone(), api.clone());
        async move { api::serve(listener.map_err(|e| internal("the API's socket", &e))?, api, stop).await }
    });
    supervisor.start("events", {
        let (snapshots, commands) = (snapshots.clone(), commands.clone());
        move |stop| until(stop, events::forward(snapshots.clone(), commands.clone(), bus.clone()))
    });
    supervisor.start("sweep", move |stop| until(stop, services::sweep(snapshots.clone())));
    tokio::spawn(signals.obey(commands, stop));
    tracing::info!(socket = %paths.socket().display(), "ready");
    let ended = controller.run().await;
    supervisor.stop().await;
    remove_socket(paths);
    ended
}

/// A service that has nothing to finish: it ends where it is.
async fn until(stop: CancellationToken, service: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    stop.run_until_cancelled(service).await.unwrap_or(Ok(()))
}

fn services_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .thread_name("pv-net-service")
        .enable_all()
        .build()
}

fn internal(what: &str, e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}

/// What the device's service manager says.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn obey(mut self, commands: Commands, stop: CancellationToken) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => drop(tokio::spawn(reload(commands.clone()))),
                _ = self.terminate.recv() => stop.cancel(),
                _ = self.interrupt.recv() => stop.cancel(),
            }
        }
    }
}

async fn reload(commands: Commands) {
    match commands.reload().await {
        Ok(_) => tracing::info!("configuration reloaded"),
        Err(failure) => {
            for message in &failure.messages {
                tracing::error!(error = %message.error, "configuration not reloaded");
            }
        }
    }
}

fn listen(paths: &Paths) -> io::Result<UnixListener> {
    let socket = paths.socket();
    // The lock is ours, so a socket that is there is a dead daemon's.
    remove_socket(paths);
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
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

/// glibc gives each thread a heap of its own, and each keeps what it once had: one for the controller and one for all
/// others is enough for what is allocated here.
fn keep_arenas_few() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
