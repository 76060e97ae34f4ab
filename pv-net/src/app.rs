//! Puts the daemon together: its two runtimes, what runs on which, and which channels connect the parts. The only file
//! that knows both the controller and what is around it.

use crate::api::{self, Api};
use crate::command::{self, Commands};
use crate::control::Controller;
use crate::daemon::{Daemon, Paths, RunLock};
use crate::dhcp;
use crate::dhcp6;
use crate::dns::Dns;
use crate::events::{self, Bus};
use crate::failure::{Failure, Kind};
use crate::kernel::broker::Broker;
use crate::kernel::{netlink, privilege};
use crate::memory;
use crate::pantavisor::Revision;
use crate::ra;
use crate::runner::{self, client::Runner};
use crate::services::{self, Rejection};
use crate::supervisor::Supervisor;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Worker threads for the services and the API.
const WORKERS: usize = 2;
/// Threads for blocking work: a sweep, a list of flows, a question to the policy.
const BLOCKING: usize = 4;
/// Stack size of these threads, bytes. It is address space; only the part in use takes memory.
const STACK: usize = 1 << 20;
/// How long the end of the daemon waits for blocking work; nobody waits for its result any more.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// Runs until SIGTERM, SIGINT or `down`; `with_runner` starts a runner beside it, which goes on without it. After a
/// stop the data plane goes on working.
///
/// # Errors
/// When the daemon cannot start. After `down`: everything that could not be removed.
pub fn run(paths: &Paths, with_runner: bool) -> Result<(), Failure> {
    paths.make()?;
    let _lock = RunLock::take(paths)?;
    if with_runner {
        runner::start_beside(paths).map_err(|e| internal("start the runner", &e))?;
    }
    raise_limits();
    memory::keep_little();
    // Starting the broker needs more privileges than the daemon keeps, and both calls must come before a second thread.
    let broker = Broker::start().map_err(|e| internal("start the broker", &e))?;
    privilege::confine(privilege::DAEMON, &privilege::DAEMON_CALLS)
        .map_err(|e| Failure::new(Kind::Internal, format!("give up privileges: {e}")))?;
    let services = services_runtime().map_err(|e| internal("start the services' threads", &e))?;
    let control = Builder::new_current_thread().enable_all().build();
    let control = control.map_err(|e| internal("start the controller's runtime", &e))?;
    // Before anything of it is read: a later one is not to blame.
    let mut about = paths.running_revision();
    let ended = control.block_on(serve(paths, &services, broker, &mut about));
    if let (Err(failure), Some(revision)) = (&ended, &paths.revision) {
        control.block_on(report(revision, &about.unwrap_or_default(), failure));
    }
    services.shutdown_timeout(LAST_WAIT);
    ended
}

/// Tells Pantavisor why the daemon ends in the revision `about`, so that it can still be read after a rollback.
async fn report(revision: &Revision, about: &str, failure: &Failure) {
    if let Err(e) = revision.control().report(about, &failure.line()).await {
        tracing::warn!(error = %e, "Pantavisor is not told why this ends");
    }
}

/// Runs the daemon. A failure is one of the revision of Pantavisor that is put into `about`.
async fn serve(paths: &Paths, services: &Runtime, broker: Broker, about: &mut Option<String>) -> Result<(), Failure> {
    // A signal that comes while the daemon starts is kept, and obeyed afterwards.
    let signals = Signals::new().map_err(|e| internal("signals", &e))?;
    // Watching begins before anything is observed, so that no event in between is missed.
    let kernel = netlink::watch()?;
    let daemon = Daemon::start(paths.clone(), broker.clone()).await?;
    let leases = daemon.leases();
    let listener = listen(paths).map_err(|e| internal(&format!("listen on {}", paths.socket().display()), &e))?;
    let (commands, queue) = command::channel(broker.clone());
    let bus = Bus::default();
    let stop = CancellationToken::new();
    let (controller, snapshots) = Controller::new(daemon, queue, kernel, bus.clone(), stop.clone());
    let mut supervisor = Supervisor::new(services.handle().clone(), commands.clone());
    let dns = Arc::new(Dns::new(paths.resolv_conf.clone()));
    let (advertised, leased) = (Arc::new(ra::Metrics::default()), Arc::new(dhcp6::Metrics::default()));
    let dhcp = Arc::new(dhcp::Metrics::default());
    let counted = (dns.clone(), advertised.clone(), leased.clone(), dhcp.clone());
    let config = paths.config.clone();
    let runner = Runner::at(paths.runner_socket());
    let api =
        Api::new(snapshots.clone(), commands.clone(), bus.clone(), config, counted, leases.clone(), runner.clone());
    supervisor.start("api", move |stop| {
        let (listener, api) = (listener.try_clone(), api.clone());
        async move { api::serve(listener.map_err(|e| internal("the API's socket", &e))?, api, stop).await }
    });
    supervisor.start("events", {
        let (snapshots, commands, bus) = (snapshots.clone(), commands.clone(), bus.clone());
        move |stop| until(stop, events::forward(snapshots.clone(), commands.clone(), bus.clone()))
    });
    supervisor.start("dhcp", {
        let (snapshots, commands, leases) = (snapshots.clone(), commands.clone(), leases.clone());
        let service =
            move || services::dhcp(snapshots.clone(), commands.clone(), leases.clone(), dhcp.clone(), bus.clone());
        move |stop| until(stop, service())
    });
    supervisor.start("dhcp_client", {
        let (snapshots, commands) = (snapshots.clone(), commands.clone());
        move |stop| until(stop, services::dhcp_client(snapshots.clone(), commands.clone()))
    });
    supervisor.start("declared", {
        let (snapshots, commands) = (snapshots.clone(), commands.clone());
        move |stop| until(stop, services::declared(snapshots.clone(), commands.clone()))
    });
    supervisor.start("dns", {
        let (snapshots, commands, files) = (snapshots.clone(), commands.clone(), paths.resolv_confs());
        let leases = leases.clone();
        let service =
            move || services::dns(snapshots.clone(), commands.clone(), dns.clone(), leases.clone(), files.clone());
        move |stop| until(stop, service())
    });
    supervisor.start("dhcp6", {
        let (snapshots, commands, duid) = (snapshots.clone(), commands.clone(), paths.dhcp6_duid());
        let with = move || services::Dhcp6 {
            snapshots: snapshots.clone(),
            commands: commands.clone(),
            leases: leases.clone(),
            metrics: leased.clone(),
            duid: duid.clone(),
        };
        move |stop| until(stop, services::dhcp6(with()))
    });
    supervisor.start("ra", {
        let (snapshots, commands) = (snapshots.clone(), commands.clone());
        move |stop| services::ra(snapshots.clone(), commands.clone(), advertised.clone(), stop)
    });
    supervisor.start("resolved", {
        let (snapshots, commands, file) = (snapshots.clone(), commands.clone(), paths.resolved());
        move |stop| until(stop, services::resolved(snapshots.clone(), commands.clone(), file.clone()))
    });
    supervisor.start("memory", {
        let snapshots = snapshots.clone();
        move |stop| until(stop, services::memory(snapshots.clone()))
    });
    supervisor.start("runner", {
        let (snapshots, commands, dir) = (snapshots.clone(), commands.clone(), paths.run_dir.clone());
        let has_begun = tokio::sync::watch::Sender::new(false);
        let with = move || services::Follow {
            snapshots: snapshots.clone(),
            commands: commands.clone(),
            runner: runner.clone(),
            dir: dir.clone(),
            has_begun: has_begun.clone(),
            known: BTreeMap::new(),
        };
        move |stop| until(stop, services::runner(with()))
    });
    let rejection = Rejection { why: Arc::new(OnceLock::new()), stop: stop.clone() };
    if let Some(revision) = paths.revision.clone() {
        let (snapshots, commands, rejection) = (snapshots.clone(), commands.clone(), rejection.clone());
        let with = services::Pantavisor { revision, snapshots, commands, rejection };
        supervisor.start("pantavisor", move |stop| until(stop, services::pantavisor(with.clone())));
    }
    supervisor.start("sweep", {
        let snapshots = snapshots.clone();
        move |stop| until(stop, services::sweep(snapshots.clone()))
    });
    tokio::spawn(signals.obey(commands, stop.clone()));
    let is_alone = tokio::spawn(async move {
        broker.ended().await;
        stop.cancel();
    });
    tracing::info!(socket = %paths.socket().display(), "ready");
    let ended = controller.run().await;
    supervisor.stop().await;
    remove_socket(paths);
    if let Some((revision, why)) = rejection.why.get() {
        *about = Some(revision.clone());
        return Err(why.clone());
    }
    *about = snapshots.borrow().of_revision.as_deref().map(str::to_owned);
    if is_alone.is_finished() { Err(left_alone()) } else { ended }
}

/// A service that has nothing to finish: it is dropped when it is to stop.
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

/// The error when the broker has ended. The daemon has no privileges left to start another one; a new daemon has.
fn left_alone() -> Failure {
    let why = "the broker has ended, without which no namespace can be entered";
    Failure::new(Kind::Internal, why).help("start pv-net again: what is attached works meanwhile")
}

fn internal(what: &str, e: &io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{what}: {e}"))
}

/// Signals of the device's service manager.
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
    // This daemon holds the lock, so an existing socket is a dead daemon's.
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

/// Before kernel 5.11 maps count against RLIMIT_MEMLOCK. Raising it takes CAP_SYS_RESOURCE; later kernels ignore it.
fn raise_limits() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    // Each attach that waits for its turn holds some open files.
    let files = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(e) = files {
        tracing::debug!(error = %e, "RLIMIT_NOFILE not raised");
    }
    if let Err(e) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(error = %e, "RLIMIT_MEMLOCK not raised");
    }
}
