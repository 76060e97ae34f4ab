//! Leases: what is written before a client is answered, and what ends them.

use super::super::message::Query;
use super::super::reply::{Given, Reply};
use super::super::{Now, Sent};
use super::{Act, MOST_PENDING, Origin, Outcome, Server, Silence, Writing, Written};
use crate::ipam::{ClientId, ClientLease};
use crate::lease::Step;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

impl Server {
    /// Whether somebody with another MAC has `address` by now, or is about to: who had it last may have come back since
    /// it was offered.
    pub(super) fn is_anothers(&self, address: Ipv4Addr, client: &ClientId, from: Origin, now: Now) -> bool {
        let holder = self.table.holder(address).filter(|holder| *holder != client);
        holder.is_some_and(|holder| {
            let lease = self.table.lease(holder);
            let is_live = lease.is_some_and(|l| !l.is_over(now.unix) && l.mac != Some(from.mac));
            is_live || self.writing.contains_key(holder)
        })
    }

    /// Writes a lease of `address`.
    pub(super) fn grant(&mut self, client: ClientId, address: Ipv4Addr, query: Query, from: Origin, now: Now) -> Act {
        if self.writing.len() >= MOST_PENDING {
            return Act::Silent(Silence::Busy);
        }
        if !self.table.may_have_more(&self.config, &client, from, now) {
            return Act::Silent(Silence::PortLimit);
        }
        let time = self.time(&query);
        let lease = Arc::new(ClientLease {
            pool: self.config.pool.clone(),
            client: client.clone(),
            address: IpAddr::V4(address),
            mac: Some(query.mac),
            hostname: self.hostname(&query, &client),
            port: Some(from.port),
            expires: now.unix + u64::from(time),
        });
        let old = self.table.lease(&client);
        if let Some(left) = old.and_then(|old| old.left_instead_of(&lease, now.unix)) {
            self.table.seen(&client, from.port);
            return Act::Send(self.ack(&query, &lease, left));
        }
        // It counts at once, and the address is offered to nobody else while the lease is written.
        self.table.hold_for_write(&client, address, from, now);
        let other = self.table.holder(address).filter(|holder| **holder != client);
        let ends: Vec<ClientId> = other.cloned().into_iter().collect();
        let ended = ends.iter().filter_map(|client| self.table.lease(client)).map(|lease| Step::End(lease.key()));
        let steps = ended.chain([Step::Lend(lease.clone())]).collect();
        let is_new = self.table.lease(&client).is_none_or(|old| old.is_over(now.unix) || old.address != lease.address);
        let writing = Writing { time, query: Some(query), lease: Some(lease), ends, is_new };
        self.writing.insert(client.clone(), writing);
        Act::Write(client, steps)
    }

    /// The lease book has answered what was to be written for a client.
    pub fn written(&mut self, client: &ClientId, outcome: Outcome, now: Now) -> Written {
        let nothing = Written { reply: None, is_new: None };
        let Some(Writing { time, query, lease, ends, is_new }) = self.writing.remove(client) else {
            return nothing;
        };
        match outcome {
            Outcome::Failed => {
                self.table.not_written(client, now);
                nothing
            }
            Outcome::Done => {
                let given = lease.as_ref().map(|lease| lease.address);
                for client in &ends {
                    // He may have got another address since this was sent to the lease book.
                    let has_another = |lease: &Arc<ClientLease>| given.is_some_and(|given| lease.address != given);
                    if !self.table.lease(client).is_some_and(has_another) {
                        match given {
                            Some(_) => self.table.forget(client),
                            None => self.table.ended(client),
                        }
                    }
                }
                let Some(lease) = lease else { return nothing };
                self.table.granted(lease.clone());
                let reply = query.map(|query| self.ack(&query, &lease, time));
                Written { reply, is_new: Some(lease).filter(|_| is_new) }
            }
            Outcome::Taken => {
                if let Some(IpAddr::V4(address)) = lease.map(|lease| lease.address) {
                    self.table.conflict(&self.config, address, None, now);
                }
                self.table.drop_offer(client);
                Written { reply: query.map(|query| Reply::refuse(&self.config, &query)), is_new: None }
            }
        }
    }

    /// The answer to a request. `time` is that of the request: the clock may have jumped since.
    fn ack(&self, query: &Query, lease: &ClientLease, time: u32) -> Reply {
        let IpAddr::V4(address) = lease.address else { return Reply::refuse(&self.config, query) };
        let hostname = lease.hostname.as_deref();
        let given = Given { address, time: Some(time), hostname, has_default_route: true };
        Reply::give(Sent::Ack, &self.config, query, &given)
    }

    /// Somebody else uses what a client was given.
    pub(super) fn decline(&mut self, client: ClientId, query: &Query, from: Origin, now: Now) -> Act {
        if query.server.is_some_and(|server| server != self.config.server) {
            return Act::Silent(Silence::OtherServer);
        }
        let is_own = query.requested.is_some() && query.requested == self.table.address(&client);
        let (Some(address), true) = (query.requested, is_own && self.is_from_holder(&client, from)) else {
            return Act::Silent(Silence::Unknown);
        };
        self.table.conflict(&self.config, address, Some(from.port), now);
        let steps = self.table.lease(&client).map(|lease| Step::End(lease.key())).into_iter().collect();
        let ends = vec![client.clone()];
        let writing = Writing { time: 0, query: None, lease: None, ends, is_new: false };
        self.writing.insert(client.clone(), writing);
        Act::Write(client, steps)
    }

    /// A client needs its address no more. It is kept for it, until somebody else needs it.
    pub(super) fn release(&mut self, client: ClientId, query: &Query, from: Origin, now: Now) -> Act {
        if query.server.is_some_and(|server| server != self.config.server) {
            return Act::Silent(Silence::OtherServer);
        }
        let lease = self.table.lease(&client).filter(|lease| lease.address == IpAddr::V4(query.ciaddr));
        let Some(lease) = lease.filter(|_| self.is_from_holder(&client, from)) else {
            return Act::Silent(Silence::Unknown);
        };
        if lease.is_over(now.unix) {
            return Act::Silent(Silence::Done);
        }
        let lease = Arc::new(ClientLease { expires: now.unix, port: Some(from.port), ..ClientLease::clone(lease) });
        let steps = vec![Step::Lend(lease.clone())];
        let ends = Vec::new();
        let writing = Writing { time: 0, query: None, lease: Some(lease), ends, is_new: false };
        self.writing.insert(client.clone(), writing);
        Act::Write(client, steps)
    }

    /// Whether the message is from who has the client's lease. Everybody on a bridge can hear a MAC and use it, so a lease
    /// ends by the port alone by which it was got.
    fn is_from_holder(&self, client: &ClientId, from: Origin) -> bool {
        self.table.lease(client).is_some_and(|lease| from.is_holder(lease))
    }
}
