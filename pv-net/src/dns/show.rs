//! Shows an answer as people read it: its records as in zone files (RFC 1035 section 5). Pure.

use super::name;
use super::reply::OPTION_EXTENDED;
use super::wire::{RecordType, ResponseCode};
use hickory_proto::op::{Header, Message};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// An answer as people read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The response code: `NOERROR`, `NXDOMAIN`, …
    pub status: String,
    /// Records of the answer section.
    pub records: Vec<Line>,
    /// The text of the extended error.
    pub why: Option<String>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name that has the record.
    pub name: String,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// Its type.
    pub kind: String,
    /// Its data.
    pub data: String,
}

/// A type by its name, such as `AAAA` or `TYPE65`.
#[must_use]
pub fn type_of(word: &str) -> Option<RecordType> {
    let word = word.to_ascii_uppercase();
    word.parse().ok().or_else(|| Some(RecordType::from(word.strip_prefix("TYPE")?.parse::<u16>().ok()?)))
}

/// The name of a type.
#[must_use]
pub fn type_name(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

/// The name of a response code, as `dig` prints it.
#[must_use]
pub fn status(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

/// The answer in `message`. When its records cannot be read, only the response code is shown.
#[must_use]
pub fn show(message: &[u8]) -> Shown {
    let Ok(read) = Message::from_vec(message) else {
        let head = Header::read(&mut BinDecoder::new(message));
        let status = head.map(|head| status(head.response_code)).unwrap_or_default();
        return Shown { status, why: Some("its records cannot be read".to_owned()), ..Shown::default() };
    };
    let line = |r: &hickory_proto::rr::Record| Line {
        name: name::to_text(&r.name),
        ttl: r.ttl,
        kind: type_name(r.record_type()),
        data: data(&r.data),
    };
    let option = read.edns.as_ref().and_then(|e| e.option(EdnsCode::Unknown(OPTION_EXTENDED)));
    Shown {
        status: status(read.response_code),
        records: read.answers.iter().map(line).collect(),
        why: option.and_then(extended),
    }
}

fn extended(option: &EdnsOption) -> Option<String> {
    let EdnsOption::Unknown(_, data) = option else { return None };
    let (code, text) = data.split_first_chunk()?;
    let text = String::from_utf8_lossy(text);
    Some(if text.is_empty() { format!("extended error {}", u16::from_be_bytes(*code)) } else { text.into_owned() })
}

/// The data of a record as text. Strings are quoted, since they may have spaces and control characters.
fn data(data: &RData) -> String {
    match data {
        RData::TXT(text) => {
            let words = text.txt_data.iter().map(|word| format!("\"{}\"", word.escape_ascii()));
            words.collect::<Vec<_>>().join(" ")
        }
        RData::Unknown { rdata, .. } => {
            let bytes = &rdata.anything;
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("\\# {} {hex}", bytes.len()).trim_end().to_owned()
        }
        other => other.to_string(),
    }
}
