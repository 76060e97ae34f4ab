//! What a client is told by another server's answer, or for want of one.

use crate::dns::cache::Kept;
use crate::dns::metrics::Ended;
use crate::dns::reply::{Extended, Reply};
use crate::dns::response::{Left, Response};
use crate::dns::wire::{Query, ResponseCode};
use crate::dns::zone::Route;
use std::time::Instant;

/// The time to live of an old answer, as RFC 8767 section 4 recommends.
const STALE_TTL: u32 = 30;
const STALE: Extended = Extended::new(3, "no server answers now");
const BLOCKED: Extended = Extended::new(15, "a private address from outside: see dns.private_names");

/// Whether an answer is kept, whatever came before.
pub(super) const fn is_good(response: &Response) -> bool {
    matches!(response.rcode, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Tells that there is no answer, and why (RFC 8914).
pub(super) fn fail(query: &Query<'_>, code: ResponseCode, why: &Extended, limit: usize, out: &mut Vec<u8>) {
    let mut reply = Reply::new(query, code);
    reply.extend(why);
    reply.finish(limit, out);
}

/// Passes on an answer that has just come.
pub(super) fn show_response(
    response: &Response,
    query: &Query<'_>,
    route: &Route,
    limit: usize,
    out: &mut Vec<u8>,
) -> Ended {
    if response.is_private && !route.may_be_private {
        fail(query, ResponseCode::NoError, &BLOCKED, limit, out);
        return Ended::Blocked;
    }
    response.write(query, limit, Left::All, None, out);
    Ended::Upstream
}

/// Passes on an answer of the cache; with `ended` stale, one that is not valid any more.
pub(super) fn show_kept(
    kept: &Kept,
    query: &Query<'_>,
    route: &Route,
    limit: usize,
    ended: Ended,
    out: &mut Vec<u8>,
) -> Ended {
    let response = &kept.response;
    if response.is_private && !route.may_be_private {
        return show_response(response, query, route, limit, out);
    }
    if ended == Ended::Stale {
        response.write(query, limit, Left::Only(STALE_TTL), Some(STALE.option()), out);
    } else {
        response.write(query, limit, Left::Since(kept.age(Instant::now())), None, out);
    }
    ended
}
