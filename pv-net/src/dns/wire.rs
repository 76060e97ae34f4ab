//! Questions as they come (RFC 1035, RFC 6891): what they ask for, or why they are none.

use super::name::{LowerName, wire_len};
pub use hickory_proto::op::ResponseCode;
use hickory_proto::op::{self, Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode};
pub use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

/// Bytes of a message's header.
pub const HEADER: usize = 12;
/// What fits into a datagram for who does not say more (RFC 1035 section 4.2.1).
pub const SMALL: usize = 512;
/// The largest datagram that is sent: it is in no fragments on any path (RFC 9715).
pub const LARGEST: usize = 1232;
/// Records that a question may have: EDNS and signatures. Each takes much more memory than bytes on the wire.
const MOST_RECORDS: u32 = 8;

/// A client's cookie, and the server's behind it (RFC 7873).
pub type Cookie = [u8; 16];

/// A question.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// All of it.
    pub message: &'a [u8],
    /// Its header.
    pub head: Metadata,
    /// What is asked, its letters as they came.
    pub asked: op::Query,
    /// What it is about, in lower case.
    pub name: LowerName,
    /// What EDNS says, where it is spoken.
    pub edns: Option<Edns>,
    /// The cookie that the answer has.
    pub cookie: Option<Cookie>,
}

/// Why a message is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoQuery {
    /// It is not answered: it is too short for that, or an answer itself.
    Silent,
    /// It is answered with this.
    Refused(ResponseCode),
}

impl<'a> Query<'a> {
    /// Reads a question.
    ///
    /// # Errors
    /// How it is answered when it is none.
    pub fn parse(message: &'a [u8]) -> Result<Self, NoQuery> {
        let mut decoder = BinDecoder::new(message);
        let Header { metadata: head, counts } = Header::read(&mut decoder).map_err(|_| NoQuery::Silent)?;
        if head.message_type == MessageType::Response {
            return Err(NoQuery::Silent);
        }
        if head.op_code != OpCode::Query {
            return Err(NoQuery::Refused(ResponseCode::NotImp));
        }
        let wrong = NoQuery::Refused(ResponseCode::FormErr);
        let HeaderCounts { queries, answers, authorities, additionals } = counts;
        let records = [answers, authorities, additionals].map(u32::from).iter().sum::<u32>();
        if queries != 1 || records > MOST_RECORDS {
            return Err(wrong);
        }
        let asked = op::Query::read(&mut decoder).map_err(|_| wrong)?;
        // A pointer in it could lead into the header only, which is another one in each message.
        if decoder.index() != HEADER + wire_len(asked.name()) + 4 {
            return Err(wrong);
        }
        let mut read = |count: u16, is_additional| {
            let read = Message::read_records(&mut decoder, count.into(), is_additional, OpCode::Query);
            read.map(|(_, edns, _)| edns).map_err(|_| wrong)
        };
        read(answers, false)?;
        read(authorities, false)?;
        let edns = read(additionals, true)?;
        let name = LowerName::new(asked.name());
        Ok(Self { message, head, asked, name, edns, cookie: None })
    }

    /// Type of the records that are asked for.
    #[must_use]
    pub fn rtype(&self) -> RecordType {
        self.asked.query_type()
    }

    /// Where the question ends in the message.
    #[must_use]
    pub fn question_end(&self) -> usize {
        HEADER + wire_len(self.asked.name()) + 4
    }

    /// The question as it was asked, its letters as they were.
    #[must_use]
    pub fn question(&self) -> &'a [u8] {
        &self.message[HEADER..self.question_end()]
    }

    /// Records of DNSSEC are wanted.
    #[must_use]
    pub fn wants_dnssec(&self) -> bool {
        self.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok)
    }

    /// Bytes that a datagram with the answer may have.
    #[must_use]
    pub fn datagram(&self) -> usize {
        self.edns.as_ref().map_or(SMALL, |e| usize::from(e.max_payload()).clamp(SMALL, LARGEST))
    }

    /// The header of an answer to it.
    #[must_use]
    pub fn answer_head(&self, code: ResponseCode) -> Metadata {
        let mut head = Metadata::response_from_request(&self.head);
        head.recursion_available = true;
        head.response_code = code;
        head
    }
}

/// The answer to a message that is no question: its header, with `code`. Nothing when it is not answered.
pub fn refuse(message: &[u8], code: ResponseCode, out: &mut Vec<u8>) {
    out.clear();
    let Ok(asked) = Header::read(&mut BinDecoder::new(message)) else { return };
    let mut metadata = Metadata::response_from_request(&asked.metadata);
    (metadata.recursion_available, metadata.checking_disabled) = (true, false);
    metadata.response_code = code;
    if (Header { metadata, counts: HeaderCounts::default() }).emit(&mut BinEncoder::new(out)).is_err() {
        out.clear();
    }
}
