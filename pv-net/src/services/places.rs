//! What services on the pools' bridges have in common: a task for each bridge, tries that failed, and the condition
//! about them.

use crate::command::{Commands, Report};
use crate::model::PoolName;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

/// How long to wait before a bridge that failed is tried again.
pub(super) const AGAIN: Duration = Duration::from_millis(250);
/// The same for a bridge that nothing is connected to.
const WHILE_ALONE: Duration = Duration::from_secs(1);
/// Failed tries before there is a condition: the link-local address appears a moment after the bridge.
const QUIET: u32 = 8;

/// A pool, on the link that it has now.
pub(super) type Place = (PoolName, u32);

/// The tries of a service to have sockets on its bridges, and the condition about those that failed.
pub(super) struct Tries {
    service: &'static str,
    text: &'static str,
    commands: Commands,
    told: Option<String>,
    failed: u32,
}

impl Tries {
    /// Those of the service `service`, whose condition begins with `text`. A condition of an earlier run ends.
    pub async fn new(service: &'static str, text: &'static str, commands: Commands) -> Self {
        commands.report(Report::Service { name: service, condition: None }).await;
        Self { service, text, commands, told: None, failed: 0 }
    }

    /// Notes which bridges have no socket, each with the reason if it is an error. Returns how long to wait before they
    /// are tried again; `None` when all have one.
    pub async fn note(&mut self, lost: &[Option<String>]) -> Option<Duration> {
        let failed: Vec<&str> = lost.iter().flatten().map(String::as_str).collect();
        self.failed = if failed.is_empty() { 0 } else { self.failed.saturating_add(1) };
        let condition = (self.failed > QUIET).then(|| format!("{}: {}", self.text, failed.join("; ")));
        if condition != self.told {
            self.commands.report(Report::Service { name: self.service, condition: condition.clone() }).await;
            self.told = condition;
        }
        let pause = match self.failed {
            0 => WHILE_ALONE,
            failed => AGAIN * failed.min(4 * QUIET).div_ceil(QUIET),
        };
        (!lost.is_empty()).then_some(pause)
    }
}

/// Waits until a task of `served` has ended, and removes it. Returns its place, and what it ended with.
pub(super) async fn ended<P: Clone + Ord, S, T: 'static>(
    served: &mut BTreeMap<P, S>,
    task: impl Fn(&mut S) -> &mut JoinSet<T>,
) -> (P, Option<Result<T, JoinError>>) {
    let first = |cx: &mut Context<'_>| {
        let ended = served.iter_mut().find_map(|(place, served)| match task(served).poll_join_next(cx) {
            Poll::Ready(ended) => Some((place.clone(), ended)),
            Poll::Pending => None,
        });
        ended.map_or(Poll::Pending, Poll::Ready)
    };
    let (place, ended) = poll_fn(first).await;
    served.remove(&place);
    (place, ended)
}

/// Waits as [`ended`] does. Returns why the place is not served any more.
pub(super) async fn lost<S>(
    served: &mut BTreeMap<Place, S>,
    task: impl Fn(&mut S) -> &mut JoinSet<std::io::Result<()>>,
) -> String {
    let ((pool, _), ended) = ended(served, task).await;
    match ended {
        Some(Ok(Err(e))) => format!("pool {pool}: {e}"),
        Some(Err(e)) => format!("pool {pool}: {e}"),
        _ => format!("pool {pool}"),
    }
}
