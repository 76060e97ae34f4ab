//! The server of one pool.

use super::sockets::Sockets;
use crate::dhcp6::metrics::Ended;
use crate::dhcp6::{Answer, Book, Held, Ignored, Metrics, Rates, Server, answer, wire};
use crate::ipam::LendError;
use crate::lease::{LeaseError, LeaseHandle};
use crate::model::PoolName;
use crate::snapshot::Snapshot;
use dhcproto::v6::{Encodable, Message};
use pv_net_common::Ip;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The longest message that is read, bytes. Clients send less than the smallest MTU.
const LONGEST: usize = 1500;
/// How often an address is chosen for one message. The lease book refuses an address that is reserved for a declared
/// container, which the service cannot see; then another one is chosen.
const TRIES: usize = 4;
/// How long an address that the book refused is not chosen again.
const TAKEN: Duration = Duration::from_secs(600);

/// What a server needs.
pub(super) struct PoolServer {
    pub duid: Arc<[u8]>,
    pub pool: PoolName,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub leases: LeaseHandle,
    pub metrics: Arc<Metrics>,
}

impl PoolServer {
    /// Answers for as long as the sockets work.
    pub async fn serve(self, sockets: Sockets) -> io::Result<()> {
        let (mut held, mut rates, mut buffer) = (Held::default(), Rates::default(), vec![0; LONGEST]);
        loop {
            let (len, from) = sockets.hear(&mut buffer).await?;
            let message = &buffer[..len];
            let kind = message.first().copied().unwrap_or_default();
            let ended = if !rates.take(*from.ip(), Instant::now()) {
                Ended::Limited
            } else {
                match self.reply(message, *from.ip(), &mut held).await {
                    Ok((reply, ended)) => match sockets.answer(&reply, *from.ip()) {
                        Ok(()) => ended,
                        // The client asks again.
                        Err(e) => {
                            tracing::debug!(pool = %self.pool, %from, error = %e, "DHCPv6 answer not sent");
                            Ended::Failed
                        }
                    },
                    Err(ended) => ended,
                }
            };
            self.metrics.count(kind, ended);
            // A socket that is never empty must not keep the thread from others.
            tokio::task::yield_now().await;
        }
    }

    /// The encoded reply to a message. Its leases are on disk.
    async fn reply(&self, message: &[u8], from: Ipv6Addr, held: &mut Held) -> Result<(Vec<u8>, Ended), Ended> {
        if !from.is_unicast_link_local() {
            return Err(Ended::Ignored);
        }
        let request = wire::read(message).ok_or(Ended::Ignored)?;
        for _ in 0..TRIES {
            let answered = self.decide(&request, from, held).map_err(|Ignored| Ended::Ignored)?;
            let Answer { reply, steps, ended } = answered;
            match self.leases.change(steps).await {
                Ok(_) => return reply.to_vec().map(|reply| (reply, ended)).map_err(|_| Ended::Failed),
                Err(LeaseError::Lend(LendError::Container { address, .. } | LendError::Client { address, .. })) => {
                    let IpAddr::V6(address) = address else { return Err(Ended::Failed) };
                    let now = Instant::now();
                    held.hold(address, None, now + TAKEN, now);
                }
                Err(e) => {
                    tracing::warn!(pool = %self.pool, %from, error = %e, "DHCPv6 lease not written");
                    return Err(Ended::Failed);
                }
            }
        }
        Err(Ended::Failed)
    }

    fn decide(&self, request: &Message, from: Ipv6Addr, held: &mut Held) -> Result<Answer, Ignored> {
        let snapshot = self.snapshots.borrow().clone();
        let pool = snapshot.device.pools.get(&self.pool).ok_or(Ignored)?;
        let (subnet, settings) = pool.v6.as_ref().zip(pool.dhcp6.as_ref()).ok_or(Ignored)?;
        // A container's link-local address is made of its MAC, and the source guard ensures both.
        let asks = |a: &&crate::model::Attachment| a.pool == self.pool && IpAddr::from(Ip::link_local(a.mac.0)) == from;
        let server = Server {
            duid: &self.duid,
            pool: &self.pool,
            net: subnet.net,
            settings,
            dns: pool.dns.as_ref().map(|_| subnet.gateway),
            domain: &snapshot.device.domain,
            container: snapshot.attached().flat_map(|(_, a)| &a.record.attachments).find(asks).map(|a| a.ipv6),
        };
        let (leases, clients) = (self.leases.all(), self.leases.clients().all());
        let book = Book { leases: &leases, clients: &clients, unix: unix(), now: Instant::now() };
        answer(&server, request, from, book, held)
    }
}

/// Seconds since 1970 (UTC).
#[expect(clippy::disallowed_types, reason = "a lease ends at a time that the next daemon knows too")]
fn unix() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
