//! Starts the services, starts one anew that fails or panics, and ends them all.

use crate::command::{Commands, Report};
use crate::failure::Failure;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a service that failed waits before it is started anew; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A service that has run for so long works: its condition goes, and its next pause is the first one again.
const SETTLED: Duration = Duration::from_secs(10);
/// How long services have to end what they are at.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs services on a runtime.
pub struct Supervisor {
    runtime: Handle,
    commands: Commands,
    stop: CancellationToken,
    services: JoinSet<()>,
}

impl Supervisor {
    /// Services will run on `runtime`, and what is wrong with them goes to `commands`.
    #[must_use]
    pub fn new(runtime: Handle, commands: Commands) -> Self {
        Self { runtime, commands, stop: CancellationToken::new(), services: JoinSet::new() }
    }

    /// Starts a service. `make` makes it, now and after each failure, and is told when it is to end. It should then end
    /// what it is at; one that takes too long is dropped. One that ends unasked has failed.
    pub fn start<M, S>(&mut self, name: &'static str, make: M)
    where
        M: Fn(CancellationToken) -> S + Send + 'static,
        S: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let service = keep(name, make, self.commands.clone(), self.stop.clone());
        self.services.spawn_on(service, &self.runtime);
    }

    /// Ends all services, and waits for them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.services.join_next().await.is_some() {} };
        if timeout(DRAIN, all).await.is_err() {
            tracing::debug!("a service did not end in time");
        }
    }
}

/// Keeps one service running until it is to stop.
async fn keep<M, S>(name: &'static str, make: M, commands: Commands, stop: CancellationToken)
where
    M: Fn(CancellationToken) -> S,
    S: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let report = async |condition| commands.report(Report::Service { name, condition }).await;
    let (mut pause, mut is_reported) = (FIRST_PAUSE, false);
    loop {
        // A task of its own: a panic ends that one. It ends with this one.
        let mut task = JoinSet::new();
        task.spawn(make(stop.clone()));
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
        if stop.is_cancelled() {
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
