//! What is seen of the service from outside: what would be answered, what it asks, and what it tells.

use super::{Dns, NO_REACHABLE, Now, Resolved, lock};
use crate::bus::Listener;
use crate::dns::metrics::Ended;
use crate::dns::name::Name;
use crate::dns::reply::Extended;
use crate::dns::show;
use crate::dns::tls::Distrusted;
use crate::dns::watched::Exchange;
use crate::dns::wire::{Query, RecordType};
use crate::dns::zone::Client;
use crate::model::NameServer;
use hickory_proto::op::{self, Edns, Message};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

impl Dns {
    /// The answer that `client` would get about `name`.
    pub async fn resolve(self: &Arc<Self>, client: Client, name: &Name, kind: RecordType) -> Resolved {
        let mut message = Message::new(0, op::MessageType::Query, op::OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(op::Query::query(name.clone(), kind)).set_edns(Edns::new());
        let message = message.to_vec().unwrap_or_default();
        let mut out = Vec::new();
        let limit = usize::from(u16::MAX);
        let (now, mut server) = match Query::parse(&message) {
            Ok(query) => self.answer(&self.zone(), &query, client, limit, &mut out),
            Err(_) => (Now::Silent, None),
        };
        let ended = match now {
            Now::Reply(ended) | Now::Kept(ended, _) => ended,
            Now::Silent => Ended::Malformed,
            Now::Later(pending) => {
                let ended;
                (out, ended, server) = self.fetched(*pending).await;
                ended
            }
        };
        Resolved { ended, server, shown: show::show(&out) }
    }

    /// The number of kept answers, their bytes, and the number of waiting questions.
    #[must_use]
    pub fn used(&self) -> (usize, usize, u32) {
        let (entries, bytes) = lock(&self.cache).used();
        (entries, bytes, lock(&self.shares).waiting())
    }

    /// The servers that were asked, each with the time that an answer takes, and its failures since the last answer.
    #[must_use]
    pub fn upstreams(&self) -> Vec<(NameServer, Option<Duration>, u32)> {
        lock(&self.servers).all().map(|(server, takes, failures)| (server.clone(), takes, failures)).collect()
    }

    /// Changes to the servers with TLS that cannot be trusted.
    #[must_use]
    pub fn distrusted(&self) -> watch::Receiver<Distrusted> {
        self.tls.distrusted()
    }

    /// Why no server was asked, if one of them cannot be trusted.
    pub(super) fn distrust_of(&self, servers: &[NameServer]) -> Option<Extended> {
        let distrusted = self.tls.distrusted();
        let all = distrusted.borrow();
        let (why, _) = servers.iter().find_map(|server| all.get(server))?;
        Some(Extended::new(NO_REACHABLE, why.text()))
    }

    /// A listener for questions that are answered from now on.
    #[must_use]
    pub fn watch(&self) -> Listener<Arc<Exchange>> {
        self.watched.listen()
    }

    /// How many questions those who watch have missed.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.watched.missed()
    }
}
