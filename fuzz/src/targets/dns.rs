//! DNS questions and answers: what is written can be read and means the same, and what is passed on is complete.

use bytes::BytesMut;
use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use pv_net::dns::answer::{Outcome, answer};
use pv_net::dns::response::{Left, Response};
use pv_net::dns::show::show;
use pv_net::dns::tls::frame;
use pv_net::dns::wire::{HEADER, NoQuery, Query, refuse};
use pv_net::dns::{Zone, name, resolv_conf};
use pv_net::snapshot::Snapshot;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

const DEVICE: &str =
    r#"{"network": {"pools": {"p": {"subnet": "10.0.3.0/24", "dns": {"zones": {"corp.example": ["10.9.0.53"]}}}}}}"#;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let device = Arc::new(pv_net::config::parse_device("device", DEVICE).expect("a device"));
    Zone::new(&Snapshot { device, ..Snapshot::default() })
});

/// Target `dns`. The input is read as a question, as an answer, as the counts and records of an answer behind a right
/// header and question, as a `resolv.conf`, as a name, and as a stream of messages.
pub fn check(input: &[u8]) {
    question(input);
    stream(input);
    let mut asked = Message::new(7, MessageType::Query, OpCode::Query);
    let name: Name = name::from_text("www.example").expect("a name").into();
    asked.add_query(hickory_proto::op::Query::query(name, RecordType::A)).set_edns(Edns::new());
    let asked = asked.to_vec().expect("a question");
    let query = Query::parse(&asked).expect("a question");
    response(&query, input);
    if let Some((counts, records)) = input.split_at_checked(8) {
        let head = [0, 7, 0x81, counts[0] & 0x7f, 0, 1, 0, counts[1], 0, counts[2], 0, counts[3]];
        response(&query, &[&head[..], query.question(), records].concat());
    }
    let text = String::from_utf8_lossy(input);
    for server in resolv_conf::servers(&text, |_| None) {
        assert_eq!(server.port(), 53);
    }
    if let Some(name) = name::from_text(&text) {
        assert!(name::wire_len(&name) <= 255);
    }
}

/// A stream's messages are the same however its bytes come, and nothing of it is lost.
fn stream(input: &[u8]) {
    let mut came = BytesMut::from(input);
    let whole: Vec<BytesMut> = std::iter::from_fn(|| frame(&mut came)).collect();
    let used: usize = whole.iter().map(|message| message.len() + 2).sum();
    assert_eq!(came, input[used..]);
    let (mut came, mut pieces) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(7) {
        came.extend_from_slice(piece);
        pieces.extend(std::iter::from_fn(|| frame(&mut came)));
    }
    assert_eq!((pieces, &came[..]), (whole, &input[used..]));
}

fn question(input: &[u8]) {
    let mut out = Vec::new();
    let query = match Query::parse(input) {
        Ok(query) => query,
        Err(NoQuery::Silent) => return,
        Err(NoQuery::Refused(code)) => {
            refuse(input, code, &mut out);
            assert_eq!((out.len(), &out[..2]), (HEADER, &input[..2]));
            return;
        }
    };
    let from: IpAddr = [10, 0, 3, 9].into();
    let client = ZONE.client(0, from).expect("in the pool");
    let limit = query.datagram();
    if let Outcome::Answered(_) = answer(&ZONE, client, &query, limit, &mut out) {
        assert!(out.len() <= limit && out.starts_with(&input[..2]));
        assert_eq!(&out[HEADER..query.question_end()], query.question());
        let read = Message::from_vec(&out).expect("an answer that can be read");
        assert_eq!(read.queries.len(), 1);
        assert_eq!(read.edns.is_some(), query.edns.is_some());
        assert!(!show(&out).status.is_empty());
    }
}

fn response(query: &Query<'_>, message: &[u8]) {
    let Ok(read) = Response::parse(message, query, 7) else { return };
    let mut out = Vec::new();
    read.write(query, usize::from(u16::MAX), Left::Since(3), None, &mut out);
    assert_eq!(&out[..2], &query.message[..2]);
    // What was passed on is an answer to the same question, and nothing is missing.
    let id = u16::from_be_bytes([out[0], out[1]]);
    let again = Response::parse(&out, query, id).expect("what was written");
    assert_eq!((again.rcode, again.is_cut(), again.is_private), (read.rcode, read.is_cut(), read.is_private));
    assert!(!show(&out).status.is_empty());
    // An answer for a small datagram fits into it, and says that it is truncated.
    read.write(query, 80, Left::Only(30), None, &mut out);
    assert!(out.len() <= 80);
    Message::from_vec(&out)
        .map(drop)
        .or_else(|_| (out.len() > query.question_end() + 11).then_some(()).ok_or(()))
        .expect("a question and EDNS");
    if let Ok(theirs) = Message::from_vec(message) {
        assert_eq!(theirs.metadata.response_code, read.rcode);
    }
}

/// Names and pieces of messages.
pub fn words() -> Vec<Vec<u8>> {
    let names =
        ["gateway.pv.local", "pv.local", "1.3.0.10.in-addr.arpa", "localhost", "www.corp.example", "www.example"];
    let names = names.map(|n| name::from_text(n).expect("a name").to_bytes().expect("bytes"));
    let pieces: [&[u8]; 7] = [
        &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &[0, 1, 0, 1],
        &[0, 28, 0, 1],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1],
        &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12],
        &[0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0],
        &[0, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22, 0, 0],
    ];
    names.into_iter().chain(pieces.map(<[u8]>::to_vec)).chain([b"nameserver 192.0.2.1\n".to_vec()]).collect()
}
