//! Starts the services, restarts one that fails or panics, and stops them all.

use crate::command::{Commands, Report};
use crate::failure::Failure;
use crate::kernel::panic_point;
use std::pin::Pin;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The pause before a failed service is restarted for the first time; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A service that has run this long counts as working: its condition ends, and its next pause is the first one again.
const SETTLED: Duration = Duration::from_secs(10);
/// How long services have to finish when the daemon stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs services on a tokio runtime.
pub struct Supervisor {
    runtime: Handle,
    commands: Commands,
    stop: CancellationToken,
    services: JoinSet<()>,
}

impl Supervisor {
    /// A supervisor that runs services on `runtime` and reports their conditions to `commands`.
    #[must_use]
    pub fn new(runtime: Handle, commands: Commands) -> Self {
        Self { runtime, commands, stop: CancellationToken::new(), services: JoinSet::new() }
    }

    /// Starts a service. `make` makes its future, now and after each failure; the token tells it to stop. It should
    /// then finish its present work; if that takes too long, it is dropped. A service that ends without being told has
    /// failed.
    pub fn start<M, S>(&mut self, name: &'static str, make: M)
    where
        M: Fn(CancellationToken) -> S + Send + 'static,
        S: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let make: Make = Box::new(move |stop| Box::pin(make(stop)));
        let service = keep(name, make, self.commands.clone(), self.stop.clone());
        self.services.spawn_on(service, &self.runtime);
    }

    /// Stops all services, and waits for them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.services.join_next().await.is_some() {} };
        if timeout(DRAIN, all).await.is_err() {
            tracing::debug!("a service did not end in time");
        }
    }
}

/// Makes a service's future. One type for all services, so that what keeps them running is compiled once.
type Make = Box<dyn Fn(CancellationToken) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + Send>;

/// Keeps one service running until it is to stop.
async fn keep(name: &'static str, make: Make, commands: Commands, stop: CancellationToken) {
    let report = async |condition| commands.report(Report::Service { name, condition }).await;
    let (mut pause, mut is_reported) = (FIRST_PAUSE, false);
    loop {
        // The service runs in a task of its own, so that a panic ends only that task. When this future is dropped, so
        // is the task.
        let mut task = JoinSet::new();
        let service = make(stop.clone());
        task.spawn(async move {
            panic_point::pass(name);
            service.await
        });
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = task.join_next() => ended,
            () = sleep(SETTLED) => {
                if std::mem::take(&mut is_reported) {
                    report(None).await;
                }
                task.join_next().await
            }
        };
        // Services end by themselves when the controller has, just before they are told to stop.
        if stop.is_cancelled() || commands.is_closed() {
            return;
        }
        let why = why(ended);
        tracing::error!(service = name, error = %why, "service failed: it is started anew");
        report(Some(format!("service {name}: {why}: it is started anew"))).await;
        is_reported = true;
        if begun.elapsed() >= SETTLED {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn why(ended: Option<Result<Result<(), Failure>, JoinError>>) -> String {
    match ended {
        Some(Ok(Err(failure))) => failure.line(),
        Some(Err(e)) if e.is_panic() => {
            let panic = e.into_panic();
            let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("it panicked: {}", text.unwrap_or_default())
        }
        _ => "it ended".to_owned(),
    }
}
