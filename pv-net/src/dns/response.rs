//! Answers of other servers. Records are passed on byte by byte, so that clients also get types and signatures that are
//! unknown here. Only each record's time to live is changed, and the EDNS record is left out, since it concerns
//! neighbours only (RFC 6891 section 6.2.1). Pure.

use super::reply::{OPTION_EXTENDED, edns};
use super::wire::{DNSClass, HEADER, Query, RecordType, ResponseCode};
use crate::model::NameServer;
use hickory_proto::op::{self, Header, HeaderCounts, MessageType, Metadata, OpCode};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder, Restrict};
use std::net::{IpAddr, Ipv4Addr};

/// How long an answer is kept at most, in seconds.
const LONGEST: u32 = 86_400;
/// The same for a negative answer (RFC 2308 section 5).
const LONGEST_NEGATIVE: u32 = 3600;
/// For how long a failure is kept, in seconds (RFC 9520 section 3.2).
const FAILED: u32 = 1;
/// How many bytes of an answer's extended errors are kept.
const MOST_EXTENDED: usize = 256;

/// Another server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    authoritative: bool,
    truncation: bool,
    authentic: bool,
    /// The response code, with the bits from EDNS.
    pub rcode: ResponseCode,
    /// The number of records in each section, without EDNS.
    counts: [u16; 3],
    /// Everything behind the question. It begins at the end of the question, whoever has asked.
    records: Box<[u8]>,
    /// The offsets of the times to live in `records`.
    ttls: Box<[u16]>,
    /// Extended errors, as EDNS options.
    extended: Box<[Box<[u8]>]>,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
    /// Whether the answer has private addresses.
    pub is_private: bool,
    /// Whether the server uses EDNS.
    pub has_edns: bool,
    /// The server, where that is known.
    pub server: Option<NameServer>,
}

/// The time to live of the records that are written.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// The original time to live: the answer has just come.
    All,
    /// The original time to live, less this age in seconds.
    Since(u32),
    /// This many seconds, for an answer that is not valid any more.
    Only(u32),
}

/// Why a message does not answer the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResponse {
    /// The message is not about the question; perhaps it is another one's answer.
    Other,
    /// The message is about the question, but cannot be read.
    Broken,
}

impl Response {
    /// Reads the answer to `query`, which was sent with this id.
    ///
    /// # Errors
    /// When the message does not answer the question, or cannot be read.
    pub fn parse(message: &[u8], query: &Query<'_>, id: u16) -> Result<Self, NoResponse> {
        let other = NoResponse::Other;
        let mut decoder = BinDecoder::new(message);
        let Header { metadata: head, counts } = Header::read(&mut decoder).map_err(|_| other)?;
        if head.message_type != MessageType::Response || head.op_code != OpCode::Query || head.id != id {
            return Err(other);
        }
        let mut found = Found { counts: [counts.answers, counts.authorities, counts.additionals], ..Found::default() };
        if is_bare_error(&head, counts) {
            // What EDNS says is of no use where the server has not read the question.
            found.counts = [0; 3];
        } else {
            // The header is another one in what is passed on: a name that a pointer leads into it is no name.
            let mut without_head = message.to_vec();
            without_head[..HEADER].fill(u8::MAX);
            let mut decoder = BinDecoder::new(&without_head).clone(HEADER as u16);
            let asked = op::Query::read(&mut decoder).map_err(|_| other)?;
            let same = asked.name() == query.asked.name()
                && (asked.query_type(), asked.query_class()) == (query.rtype(), query.asked.query_class());
            if counts.queries != 1 || !same || decoder.index() != query.question_end() {
                return Err(other);
            }
            let begin = decoder.index();
            if found.read(&mut decoder, query.rtype()).is_none() {
                if !head.truncation {
                    return Err(NoResponse::Broken);
                }
                // Servers may cut an answer anywhere (RFC 2181 section 9): all of it comes by TCP.
                found = Found { end: begin, ..Found::default() };
            }
        }
        let rcode = ResponseCode::from(found.high, head.response_code.low());
        Ok(Self {
            authoritative: head.authoritative,
            truncation: head.truncation,
            authentic: head.authentic_data,
            rcode,
            ttl: found.ttl(rcode),
            counts: found.counts,
            records: message.get(query.question_end()..found.end).unwrap_or_default().into(),
            ttls: found.ttls.into(),
            extended: found.extended.into(),
            is_private: found.is_private,
            has_edns: found.has_edns,
            server: None,
        })
    }

    /// Whether the answer was truncated; TCP gives all of it.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.truncation
    }

    /// Bytes of memory that the answer uses.
    #[must_use]
    pub fn size(&self) -> usize {
        let extended: usize = self.extended.iter().map(|e| e.len() + size_of::<Box<[u8]>>()).sum();
        size_of::<Self>() + self.records.len() + self.ttls.len() * 2 + extended
    }

    /// Writes the answer for `query`, which asks the same question, with at most `limit` bytes. `more` is a further
    /// EDNS option for the answer.
    pub fn write(&self, query: &Query<'_>, limit: usize, left: Left, more: Option<EdnsOption>, out: &mut Vec<u8>) {
        let mut metadata = query.answer_head(self.rcode);
        // An answer that was kept is not the other server's own any more (RFC 1035 section 4.1.1).
        metadata.authoritative = self.authoritative && matches!(left, Left::All);
        metadata.truncation = self.truncation;
        // Only a client that asks for it gets this flag (RFC 6840 section 5.7).
        metadata.authentic_data = self.authentic && (query.wants_dnssec() || query.head.authentic_data);
        let extended = self.extended.iter().map(|data| EdnsOption::Unknown(OPTION_EXTENDED, data.to_vec()));
        let edns = edns(query, self.rcode, more.into_iter().chain(extended));
        let edns = edns.and_then(|edns| edns.to_bytes().ok());
        let mut edns = edns.unwrap_or_default();
        let mut counts = self.counts;
        let room = limit.saturating_sub(query.question_end());
        let mut records = &*self.records;
        if records.len() + edns.len() > room {
            (records, counts, metadata.truncation) = (&[], [0; 3], true);
        }
        if edns.len() > room {
            edns = Vec::new();
        }
        let counts = HeaderCounts {
            queries: 1,
            answers: counts[0],
            authorities: counts[1],
            additionals: counts[2] + u16::from(!edns.is_empty()),
        };
        out.clear();
        if (Header { metadata, counts }).emit(&mut BinEncoder::new(out)).is_err() {
            return out.clear();
        }
        out.extend_from_slice(query.question());
        let begin = out.len();
        out.extend_from_slice(records);
        for at in self.ttls.iter().filter(|_| !records.is_empty()) {
            let at = begin + usize::from(*at);
            let Some(place) = out.get_mut(at..at + 4) else { continue };
            let came = place.first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
            // The highest bit has no meaning (RFC 2181 section 8).
            let left = match left {
                Left::All if came <= i32::MAX as u32 => came,
                Left::Since(age) if came <= i32::MAX as u32 => came.saturating_sub(age),
                Left::All | Left::Since(_) => 0,
                Left::Only(ttl) => ttl,
            };
            place.copy_from_slice(&left.to_be_bytes());
        }
        out.extend_from_slice(&edns);
    }
}

/// Whether it is an error without the question, as of servers that cannot read it or do not want to.
fn is_bare_error(head: &Metadata, counts: HeaderCounts) -> bool {
    use ResponseCode::{FormErr, NotImp, Refused, ServFail};
    let HeaderCounts { queries, answers, authorities, additionals } = counts;
    let is_bare = (queries, answers, authorities) == (0, 0, 0) && additionals <= 1;
    is_bare && matches!(head.response_code, FormErr | NotImp | Refused | ServFail)
}

/// Skips the name that a record begins with. The library would follow its pointer, to what may be something else in the
/// message that is passed on: whose header, for one, is another.
fn skip_name(decoder: &mut BinDecoder<'_>) -> Option<()> {
    const POINTER: u8 = 0xc0;
    loop {
        let len = decoder.read_u8().ok()?.unverified();
        match len & POINTER {
            0 if len == 0 => return Some(()),
            0 => drop(decoder.read_slice(len.into()).ok()?),
            POINTER => {
                let to = u16::from_be_bytes([len & !POINTER, decoder.read_u8().ok()?.unverified()]);
                return (usize::from(to) >= HEADER).then_some(());
            }
            _ => return None,
        }
    }
}

/// The result of reading an answer.
#[derive(Default)]
struct Found {
    counts: [u16; 3],
    ttls: Vec<u16>,
    extended: Vec<Box<[u8]>>,
    high: u8,
    end: usize,
    has_edns: bool,
    is_private: bool,
    /// The shortest time to live in the answer section.
    shortest: Option<u32>,
    /// How long a negative answer is valid, from the SOA record.
    negative: Option<u32>,
    /// Whether the answer has a record of the requested type.
    is_positive: bool,
}

impl Found {
    /// Reads the records, of an answer to a question for records of type `asked`; the decoder stands behind the question.
    fn read(&mut self, decoder: &mut BinDecoder<'_>, asked: RecordType) -> Option<()> {
        let begin = decoder.index();
        for section in 0..3 {
            for number in 0..self.counts[section] {
                let at = decoder.index();
                skip_name(decoder)?;
                let is_root = decoder.index() == at + 1;
                let kind = RecordType::read(decoder).ok()?;
                let class = decoder.read_u16().ok()?.unverified();
                let place = decoder.index() - begin;
                let ttl = decoder.read_u32().ok()?.unverified();
                let len = decoder.read_u16().ok()?.unverified();
                let data = decoder.read_slice(len.into()).ok()?.unverified();
                // By itself: what is said of it must not depend on what is changed elsewhere.
                let mut inside = BinDecoder::new(data);
                if kind == RecordType::OPT {
                    if section != 2 || !is_root {
                        return None;
                    }
                    self.edns(data, ttl)?;
                    // Records behind the EDNS record are dropped, since pointers to them would not be right any more.
                    self.end = at;
                    self.counts[section] = number;
                    return Some(());
                }
                // The question was about IN, and some clients do not look at the class of an answer.
                if class != u16::from(DNSClass::IN) {
                    return None;
                }
                self.ttls.push(u16::try_from(place).ok()?);
                let mut is_inside = || has_private(kind, &mut inside, len);
                match section {
                    0 => {
                        self.shortest = Some(self.shortest.map_or(ttl, |t| t.min(ttl)));
                        self.is_positive |= kind == asked || asked == RecordType::ANY;
                        self.is_private |= is_inside();
                    }
                    1 if kind == RecordType::SOA => {
                        let minimum = data.last_chunk().map(|m| u32::from_be_bytes(*m));
                        self.negative = minimum.map(|m| m.min(ttl)).or(self.negative);
                    }
                    _ => {}
                }
            }
        }
        self.end = decoder.index();
        Some(())
    }

    /// Reads the options of an EDNS record (RFC 6891 section 6.1.2). The library would read those too that are of no
    /// interest here, and refuse the answer for what it does not like in them.
    fn edns(&mut self, mut options: &[u8], ttl: u32) -> Option<()> {
        self.has_edns = true;
        [self.high, ..] = ttl.to_be_bytes();
        let mut room = MOST_EXTENDED;
        while let Some(([code @ .., high, low], rest)) = options.split_first_chunk::<4>() {
            let (data, next) = rest.split_at_checked(u16::from_be_bytes([*high, *low]).into())?;
            if *code == OPTION_EXTENDED.to_be_bytes()
                && let Some(left) = room.checked_sub(data.len())
            {
                self.extended.push(data.into());
                room = left;
            }
            options = next;
        }
        options.is_empty().then_some(())
    }

    /// How long the answer may be kept; 0 when it does not tell.
    fn ttl(&self, code: ResponseCode) -> u32 {
        let short = |ttl: u32| if ttl > i32::MAX as u32 { 0 } else { ttl };
        match code {
            ResponseCode::NoError if self.is_positive => short(self.shortest.unwrap_or(0)).min(LONGEST),
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let negative = short(self.negative.unwrap_or(0)).min(LONGEST_NEGATIVE);
                self.shortest.map_or(negative, |ttl| short(ttl).min(negative))
            }
            _ => FAILED,
        }
    }
}

/// Whether a record contains a private address: its own, or one that a client may use in place of the name's (RFC 9460
/// section 7.3). Hints that cannot be read count as private.
fn has_private(kind: RecordType, inside: &mut BinDecoder<'_>, len: u16) -> bool {
    if !matches!(kind, RecordType::A | RecordType::AAAA | RecordType::SVCB | RecordType::HTTPS) {
        return false;
    }
    let hints = |svcb: &SVCB| {
        svcb.svc_params.iter().any(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|a| is_private(a.0.into())),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|a| is_private(a.0.into())),
            _ => false,
        })
    };
    match RData::read(inside, kind, Restrict::new(len)) {
        Ok(RData::A(address)) => is_private(address.0.into()),
        Ok(RData::AAAA(address)) => is_private(address.0.into()),
        Ok(RData::SVCB(svcb)) => hints(&svcb),
        Ok(RData::HTTPS(https)) => hints(&https.0),
        _ => true,
    }
}

/// Whether an address belongs to this device or its networks, so that no name outside should have it.
#[must_use]
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || first == 0
                || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            let words = ip.segments();
            // A translated IPv6 address (RFC 6052 section 2.1) counts as the IPv4 address in it.
            let inside = (words[..6] == [0x64, 0xff9b, 0, 0, 0, 0])
                .then(|| Ipv4Addr::from_bits(u32::from(words[6]) << 16 | u32::from(words[7])));
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().or(inside).is_some_and(|ip| is_private(ip.into()))
        }
    }
}
