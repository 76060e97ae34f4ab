//! Asks other servers, the next one also when one takes long.

use super::{Dns, is_good, lock};
use crate::dns::exchange::{self, NoAnswer};
use crate::dns::response::Response;
use crate::dns::wire::Query;
use crate::model::NameServer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

/// How long to wait for other servers. Clients repeat a question after five seconds.
pub(super) const PATIENCE: Duration = Duration::from_millis(4500);
/// How many times servers are asked for one question at most.
const ATTEMPTS: usize = 4;

impl Dns {
    /// Asks one server after the other, and the next one also when one takes long. The first good answer is used, else
    /// the last one.
    pub(super) async fn exchange(self: &Arc<Self>, message: &[u8], servers: &[NameServer]) -> Option<Response> {
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let order = lock(&self.servers).order(servers, begun);
        let mut turns = order.iter().cycle().take((order.len() * 2).clamp(3, ATTEMPTS));
        let mut running = JoinSet::new();
        let (mut asked, mut last): (Vec<(NameServer, Instant)>, _) = (Vec::new(), None);
        // When the next server is asked; `None` after the last one.
        let mut next = Some(begun);
        loop {
            let now = Instant::now();
            if now >= deadline {
                asked.iter().for_each(|(server, since)| lock(&self.servers).failed(server, *since, now));
                return last;
            }
            if next.is_some_and(|at| at <= now) {
                // No second round when a server has answered with an error: it would do so again a moment later.
                let again = asked.len() >= order.len() && last.is_some();
                next = turns.next().filter(|_| !again).map(|server| {
                    let (dns, message, asks) = (self.clone(), message.to_vec(), server.clone());
                    running.spawn(async move {
                        let answer = dns.ask(&message, &asks).await;
                        (asks, now, answer)
                    });
                    asked.push((server.clone(), now));
                    let round = asked.len().div_ceil(order.len());
                    now + lock(&self.servers).patience(server) * u32::try_from(round).unwrap_or(1)
                });
            }
            if running.is_empty() && next.is_none() {
                return last;
            }
            let done = tokio::select! {
                Some(Ok(done)) = running.join_next() => done,
                () = sleep_until(next.unwrap_or(deadline).min(deadline).into()) => continue,
            };
            let now = Instant::now();
            let (server, since, answer) = done;
            match answer {
                Ok(response) if is_good(&response) => {
                    let mut health = lock(&self.servers);
                    // Servers that were asked earlier and have not answered yet are asked later the next time.
                    for (slow, at) in asked.iter().filter(|(slow, at)| *slow != server && *at < since) {
                        health.failed(slow, *at, now);
                    }
                    let took = now.saturating_duration_since(since);
                    health.answered(&server, took, now);
                    self.metrics.upstream(took);
                    return Some(response);
                }
                Ok(response) => last = Some(response),
                Err(e) => tracing::debug!(%server, error = %e, "no answer"),
            }
            lock(&self.servers).failed(&server, since, now);
            next = next.map(|_| now);
        }
    }

    async fn ask(&self, message: &[u8], server: &NameServer) -> Result<Response, NoAnswer> {
        let Ok(query) = Query::parse(message) else { return Err(NoAnswer::Broken) };
        let mut answer = match &server.tls {
            Some(name) => exchange::encrypted(&query, server, name, &self.tls, self.zone().ca_file()).await?,
            None => exchange::ask(&query, server.address).await?,
        };
        answer.server = Some(server.clone());
        Ok(answer)
    }
}
