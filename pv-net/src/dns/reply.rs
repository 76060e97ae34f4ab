//! Writes an answer. When it does not fit, records are left out and the header says so; the client then asks by TCP.

use super::wire::{LARGEST, Query, ResponseCode};
use hickory_proto::op::{Edns, Message, emit_message_parts};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::BinEncoder;

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// Its number (RFC 8914 section 5.2).
    pub code: u16,
    /// An explanation for people.
    pub text: &'static str,
}

impl Extended {
    /// Error `code` with an explanation.
    #[must_use]
    pub const fn new(code: u16, text: &'static str) -> Self {
        Self { code, text }
    }

    /// The error as an EDNS option.
    #[must_use]
    pub fn option(&self) -> EdnsOption {
        EdnsOption::Unknown(OPTION_EXTENDED, [&self.code.to_be_bytes(), self.text.as_bytes()].concat())
    }
}

pub(super) const OPTION_EXTENDED: u16 = 15;

/// The EDNS record of an answer to `query`; `None` when the client does not use EDNS.
pub(super) fn edns(query: &Query<'_>, code: ResponseCode, options: impl Iterator<Item = EdnsOption>) -> Option<Edns> {
    query.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST as u16).set_dnssec_ok(query.wants_dnssec()).set_rcode_high(code.high());
    let cookie = query.cookie.as_ref().map(|cookie| EdnsOption::Unknown(EdnsCode::Cookie.into(), cookie.to_vec()));
    cookie.into_iter().chain(options).for_each(|option| edns.options_mut().insert(option));
    Some(edns)
}

/// An answer that is being written.
pub(super) struct Reply {
    message: Message,
}

impl Reply {
    /// Begins an answer with the question as it was asked.
    pub fn new(query: &Query<'_>, code: ResponseCode) -> Self {
        let mut message = Message::response(query.head.id, query.head.op_code);
        message.metadata = query.answer_head(code);
        message.add_query(query.asked.clone());
        message.edns = edns(query, code, std::iter::empty());
        Self { message }
    }

    /// Begins an authoritative answer, from a zone of this server.
    pub fn authoritative(query: &Query<'_>, code: ResponseCode) -> Self {
        let mut reply = Self::new(query, code);
        reply.message.metadata.authoritative = true;
        reply
    }

    /// Adds an extended error, if the client uses EDNS.
    pub fn extend(&mut self, error: &Extended) {
        if let Some(edns) = &mut self.message.edns {
            edns.options_mut().insert(error.option());
        }
    }

    /// Adds a record to the answer section.
    pub fn answer(&mut self, name: Name, ttl: u32, data: RData) {
        self.message.add_answer(Record::from_rdata(name, ttl, data));
    }

    /// Adds a record to the authority section.
    pub fn authority(&mut self, name: Name, ttl: u32, data: RData) {
        self.message.add_authority(Record::from_rdata(name, ttl, data));
    }

    /// Adds a record to the additional section: data that the client will probably ask for next.
    pub fn additional(&mut self, name: Name, ttl: u32, data: RData) {
        self.message.add_additional(Record::from_rdata(name, ttl, data));
    }

    /// Whether the answer section has records.
    pub fn has_answers(&self) -> bool {
        !self.message.answers.is_empty()
    }

    /// Writes the answer to `out`, with at most `limit` bytes; nothing when not even the question fits.
    pub fn finish(mut self, limit: usize, out: &mut Vec<u8>) {
        if self.write(limit, out) {
            return;
        }
        // Additional records are optional, so leaving them out is no truncation.
        self.message.additionals.clear();
        if self.write(limit, out) {
            return;
        }
        self.message.answers.clear();
        self.message.authorities.clear();
        self.message.metadata.truncation = true;
        self.write(limit, out);
    }

    /// Writes the message; false when it does not fit.
    fn write(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        out.clear();
        let mut encoder = BinEncoder::new(out);
        encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
        let Message { metadata, queries, answers, authorities, additionals, edns, .. } = &self.message;
        let written = emit_message_parts(
            metadata,
            &mut queries.iter(),
            &mut answers.iter(),
            &mut authorities.iter(),
            &mut additionals.iter(),
            edns.as_ref(),
            None,
            &mut encoder,
        );
        match written {
            Ok(header) => header.truncation == metadata.truncation,
            Err(_) => {
                out.clear();
                false
            }
        }
    }
}
