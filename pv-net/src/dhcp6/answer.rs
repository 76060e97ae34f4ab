//! The reply to a client's message: whether there is one, and what is in it beside addresses.

use super::associations::{Talk, Want, status};
use super::fqdn;
use super::metrics::Ended;
pub use super::server::{Ignored, Server};
use super::table::Table;
use crate::dhcp::{Now, Origin};
use crate::dns::name;
use crate::lease::Step;
use dhcproto::v6::{DhcpOption, DhcpOptions, Message, MessageType, NtpSuboption, OptionCode, Status};
use std::ops::RangeInclusive;

/// The length of a DUID (RFC 8415 section 11.1): a type, and 1 to 128 octets.
const DUID: RangeInclusive<usize> = 3..=130;

/// The answer to a message.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Message,
    /// What must be in the lease book before the reply is sent.
    pub steps: Vec<Step>,
    /// For the counters.
    pub ended: Ended,
}

/// Answers a message that came in a frame of `from`.
///
/// # Errors
/// [`Ignored`] for what is not for this server, or not as RFC 8415 section 16 has it, and while a lease of the client is
/// being written.
pub fn answer(
    server: &Server<'_>,
    request: &Message,
    from: Origin,
    table: &mut Table,
    now: Now,
) -> Result<Answer, Ignored> {
    let opts = request.opts();
    let kind = request.msg_type();
    let duid = match (opts.get(OptionCode::ClientId), kind) {
        (Some(DhcpOption::ClientId(duid)), _) if DUID.contains(&duid.len()) => Some(duid.as_slice()),
        // An information request need not identify the client (RFC 8415 section 18.2.6).
        (None, MessageType::InformationRequest) => None,
        _ => return Err(Ignored),
    };
    let names_us = match (opts.get(OptionCode::ServerId), kind) {
        (Some(DhcpOption::ServerId(id)), _) if id != server.duid => return Err(Ignored),
        (id, _) => id.is_some(),
    };
    let must = matches!(kind, MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline);
    let must_not = matches!(kind, MessageType::Solicit | MessageType::Confirm | MessageType::Rebind);
    if must && !names_us || must_not && names_us {
        return Err(Ignored);
    }
    let mut talk = Talk::new(server, duid.unwrap_or_default(), from, table, now).named(fqdn::said(opts));
    let mut out = vec![DhcpOption::ServerId(server.duid.to_vec())];
    out.extend(duid.map(|duid| DhcpOption::ClientId(duid.to_vec())));
    let mut ended = Ended::Answered;
    let reply_kind = match kind {
        MessageType::Solicit => {
            let is_rapid = opts.get(OptionCode::RapidCommit).is_some();
            let associations = talk.associations(opts, if is_rapid { Want::Lease } else { Want::Offer })?;
            if talk.given == 0 {
                ended = Ended::NoAddress;
            }
            out.extend(associations.into_iter().map(DhcpOption::IANA));
            if is_rapid {
                out.push(DhcpOption::RapidCommit);
            }
            if is_rapid { MessageType::Reply } else { MessageType::Advertise }
        }
        MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            let want = if kind == MessageType::Request { Want::Lease } else { Want::Keep };
            let associations = talk.associations(opts, want)?;
            if talk.given == 0 {
                ended = Ended::NoAddress;
            }
            out.extend(associations.into_iter().map(DhcpOption::IANA));
            MessageType::Reply
        }
        MessageType::Confirm => {
            out.push(status(talk.confirm(opts)?));
            MessageType::Reply
        }
        MessageType::Release | MessageType::Decline => {
            let unknown = talk.end(opts, kind == MessageType::Decline)?;
            out.extend(unknown.into_iter().map(DhcpOption::IANA));
            out.push(status(Status::Success));
            MessageType::Reply
        }
        MessageType::InformationRequest if opts.get(OptionCode::IANA).is_none() => MessageType::Reply,
        _ => return Err(Ignored),
    };
    let steps = std::mem::take(&mut talk.steps);
    if !matches!(kind, MessageType::Confirm | MessageType::Release | MessageType::Decline) {
        out.extend(server.told(opts, kind == MessageType::InformationRequest));
    }
    let mut reply = Message::new_with_id(reply_kind, request.xid());
    reply.set_opts(out.into_iter().collect());
    Ok(Answer { reply, steps, ended })
}

impl Server<'_> {
    /// The options that the client asks for (RFC 8415 section 21.7). `is_all`: it asks for nothing else.
    fn told(&self, request: &DhcpOptions, is_all: bool) -> Vec<DhcpOption> {
        let asked = match request.get(OptionCode::ORO) {
            Some(DhcpOption::ORO(list)) => list.opts.as_slice(),
            _ => &[],
        };
        let mut told = Vec::new();
        if let Some(server) = self.dns.filter(|_| asked.contains(&OptionCode::DomainNameServers)) {
            told.push(DhcpOption::DomainNameServers(vec![server]));
        }
        if self.dns.is_some()
            && asked.contains(&OptionCode::DomainSearchList)
            && let Some(domain) = name::from_text(self.domain)
        {
            told.push(DhcpOption::DomainSearchList(vec![domain.into()]));
        }
        if !self.settings.ntp.is_empty() && asked.contains(&OptionCode::NtpServer) {
            let servers = self.settings.ntp.iter().map(|server| NtpSuboption::ServerAddress(*server));
            told.push(DhcpOption::NtpServer(servers.collect()));
        }
        if is_all {
            // When the client asks again (RFC 8415 section 21.23): at least ten minutes.
            told.push(DhcpOption::InformationRefreshTime(self.settings.lease_secs.max(600)));
        }
        told
    }
}
