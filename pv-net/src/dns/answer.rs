//! Decides how a question is answered: from the device's own names, by a refusal, or by other servers. Pure.

use super::name::{self, LowerName, Name};
use super::reply::{Extended, Reply};
use super::reverse::Reverse;
use super::wire::{DNSClass, Query, RecordType, ResponseCode};
use super::zone::{Client, Route, TTL, Zone};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{NS, PTR};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Domains about which no outside server is asked: RFC 6761, RFC 6762, RFC 7686, RFC 8375, RFC 9462, RFC 9476.
static NEVER_OUTSIDE: LazyLock<Vec<LowerName>> = LazyLock::new(|| {
    let names = ["invalid", "local", "onion", "test", "alt", "home.arpa", "resolver.arpa"];
    names.into_iter().filter_map(name::from_text).collect()
});

/// The result for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered(Answered),
    /// Other servers must be asked.
    Upstream(Route),
}

/// The kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Records of the device's own names.
    Found,
    /// The name exists, but has no records of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// It was refused.
    Refused,
}

/// Answers `query` of `client` with at most `limit` bytes, unless other servers must be asked.
pub fn answer(zone: &Zone, client: Client, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) -> Outcome {
    let asked = Asked { zone, client, query };
    match asked.answer() {
        Ok((reply, answered)) => {
            reply.finish(limit, out);
            Outcome::Answered(answered)
        }
        Err(route) => Outcome::Upstream(route),
    }
}

/// A question, with its client and the names that it is about.
struct Asked<'a> {
    zone: &'a Zone,
    client: Client,
    query: &'a Query<'a>,
}

type Answer = (Reply, Answered);

impl Asked<'_> {
    fn answer(&self) -> Result<Answer, Route> {
        let Self { zone, client, query } = *self;
        if let Some(code) = refused(query) {
            return Ok((Reply::new(query, code), Answered::Refused));
        }
        if zone.domain.zone_of(&query.name) {
            return Ok(self.own());
        }
        if query.name.is_localhost() {
            return Ok(self.localhost());
        }
        let (route, is_named) = zone.route(client, &query.name);
        if let Some(reverse) = Reverse::parse(&query.name)
            && let Some(answer) = self.reverse(reverse, is_named)
        {
            return Ok(answer);
        }
        let never = NEVER_OUTSIDE.iter().find(|domain| domain.zone_of(&query.name));
        // A name of one label does not exist outside, and the question would only tell others what is looked for here.
        let is_address = query.rtype().is_ip_addr() || matches!(query.rtype(), RecordType::HTTPS | RecordType::SVCB);
        let is_bare = is_address && name::labels(&query.name) == 1;
        if !is_named && (never.is_some() || is_bare) {
            return Ok(self.nowhere(never));
        }
        if !query.head.recursion_desired {
            let mut reply = Reply::new(query, ResponseCode::Refused);
            reply.extend(&Extended::new(20, "not a name of this device, and recursion is not wanted"));
            return Ok((reply, Answered::Refused));
        }
        Err(route)
    }

    /// The answer about a name that is nowhere: in `domain`, which exists on this device alone, or of one label. A name
    /// above the device's own domain does exist (RFC 8020), and no zone is claimed that others have names in.
    fn nowhere(&self, domain: Option<&LowerName>) -> Answer {
        let is_above = self.query.name.zone_of(&self.zone.domain);
        let code = if is_above { ResponseCode::NoError } else { ResponseCode::NXDomain };
        match domain.map(|domain| name::labels(domain)) {
            Some(apex) if apex == name::labels(&self.query.name) => self.apex(),
            Some(apex) => self.negative(apex, code),
            None if is_above => (Reply::new(self.query, code), Answered::NoData),
            None => (Reply::new(self.query, code), Answered::NoName),
        }
    }

    /// The name with the letters' case as it was asked.
    fn name(&self) -> Name {
        self.query.asked.name().clone()
    }

    fn asks_for(&self, kind: RecordType) -> bool {
        matches!(self.query.rtype(), asked if asked == kind || asked == RecordType::ANY)
    }

    fn gateways(&self) -> &[IpAddr] {
        self.zone.pool(self.client).map(|p| p.gateways.as_slice()).unwrap_or_default()
    }

    /// The answer about a name in the device's domain.
    fn own(&self) -> Answer {
        let Self { zone, client, query } = *self;
        let apex = name::labels(&zone.domain);
        if name::labels(&query.name) == apex {
            return self.apex();
        }
        if query.name == zone.gateway {
            return self.addresses(self.gateways().iter().copied());
        }
        if let Some(answer) = self.service() {
            return answer;
        }
        match zone.look_up(client, &query.name) {
            Some(all) => self.addresses(all),
            None if zone.is_above(client, &query.name) => self.negative(apex, ResponseCode::NoError),
            None => self.negative(apex, ResponseCode::NXDomain),
        }
    }

    /// The answer about a service: where it is, and which protocol it has. `None` when only its addresses are asked
    /// for.
    fn service(&self) -> Option<Answer> {
        let Self { zone, client, query } = *self;
        let (is_record, offers) = zone.offers(client, &query.name);
        let mut reply = Reply::authoritative(query, ResponseCode::NoError);
        let mut told = BTreeSet::new();
        for offer in offers {
            if is_record && self.asks_for(RecordType::SRV) {
                reply.answer(self.name(), TTL, offer.srv());
                for ip in zone.addresses_of(client, offer).filter(|ip| told.insert(*ip)) {
                    reply.additional(Name::from(&offer.target), TTL, address(ip));
                }
            }
            if query.rtype() == RecordType::TXT || (is_record && query.rtype() == RecordType::ANY) {
                reply.answer(self.name(), TTL, offer.txt());
            }
        }
        if reply.has_answers() {
            return Some((reply, Answered::Found));
        }
        let is_seen = is_record && zone.look_up(client, &query.name).is_some();
        is_seen.then(|| self.negative(name::labels(&zone.domain), ResponseCode::NoError))
    }

    /// The answer about the name of a zone of this device.
    fn apex(&self) -> Answer {
        let mut reply = Reply::authoritative(self.query, ResponseCode::NoError);
        if self.asks_for(RecordType::SOA) {
            reply.answer(self.name(), TTL, self.zone.soa());
        }
        if self.asks_for(RecordType::NS) {
            let gateway = Name::from(&self.zone.gateway);
            reply.answer(self.name(), TTL, RData::NS(NS(gateway.clone())));
            for ip in self.gateways() {
                reply.additional(gateway.clone(), TTL, address(*ip));
            }
        }
        if reply.has_answers() {
            return (reply, Answered::Found);
        }
        self.negative(name::labels(&self.query.name), ResponseCode::NoError)
    }

    /// The addresses of `all` that have the requested type. The answer is without records if there are none.
    fn addresses(&self, all: impl Iterator<Item = IpAddr>) -> Answer {
        let mut reply = Reply::authoritative(self.query, ResponseCode::NoError);
        let kind = |ip: &IpAddr| if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        for ip in all.filter(|ip| self.asks_for(kind(ip))) {
            reply.answer(self.name(), TTL, address(ip));
        }
        if reply.has_answers() {
            return (reply, Answered::Found);
        }
        self.negative(name::labels(&self.zone.domain), ResponseCode::NoError)
    }

    /// A negative answer from the zone whose name is the last `apex` labels of the question's name. It has the zone's
    /// SOA record, which says how long others may keep the answer (RFC 2308).
    fn negative(&self, apex: usize, code: ResponseCode) -> Answer {
        let mut reply = Reply::authoritative(self.query, code);
        reply.authority(self.name().trim_to(apex), TTL, self.zone.soa());
        (reply, if code == ResponseCode::NXDomain { Answered::NoName } else { Answered::NoData })
    }

    /// The answer about `localhost` (RFC 6761 section 6.3).
    fn localhost(&self) -> Answer {
        let mut reply = Reply::authoritative(self.query, ResponseCode::NoError);
        match self.query.rtype() {
            RecordType::A => reply.answer(self.name(), TTL, address(Ipv4Addr::LOCALHOST.into())),
            RecordType::AAAA => reply.answer(self.name(), TTL, address(Ipv6Addr::LOCALHOST.into())),
            _ => return self.negative(1, ResponseCode::NoError),
        }
        (reply, Answered::Found)
    }

    /// The answer about a reverse name, when the address is in a pool, or when it means something else on each device
    /// and no server is configured for it (`is_named`).
    fn reverse(&self, reverse: Reverse, is_named: bool) -> Option<Answer> {
        let Self { zone, client, query } = *self;
        let bits = match (zone.network_of(reverse.net), reverse.local_zone()) {
            (Some(prefix), local) => local.unwrap_or(prefix),
            (None, Some(bits)) if !is_named => bits,
            (None, _) => return None,
        };
        let found = reverse.address().and_then(|ip| zone.name_of(client, ip));
        if let Some(found) = found
            && self.asks_for(RecordType::PTR)
        {
            let mut reply = Reply::authoritative(query, ResponseCode::NoError);
            reply.answer(self.name(), TTL, RData::PTR(PTR(Name::from(found))));
            return Some((reply, Answered::Found));
        }
        let apex = Reverse::labels_of(reverse.net.is_ipv4(), bits);
        if name::labels(&query.name) == apex {
            return Some(self.apex());
        }
        let is_above = name::labels(&query.name) < apex;
        let exists = is_above || found.is_some() || (!reverse.is_strange && zone.has_in(client, reverse.net));
        Some(self.negative(apex, if exists { ResponseCode::NoError } else { ResponseCode::NXDomain }))
    }
}

/// The error code for a question that is not answered, if so.
fn refused(query: &Query<'_>) -> Option<ResponseCode> {
    if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    match query.rtype() {
        RecordType::OPT => Some(ResponseCode::FormErr),
        // Types that are about more than one name, such as zone transfers.
        kind if (251..255).contains(&u16::from(kind)) => Some(ResponseCode::Refused),
        _ if query.asked.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
        _ => None,
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    }
}
