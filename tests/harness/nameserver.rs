//! A DNS server for tests: it gives fixed answers over UDP and TCP, and remembers the questions.

use crate::Namespace;
use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{NULL, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use pv_net::dns::name;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name.
    pub name: String,
    /// The type of the records.
    pub kind: u16,
    /// Whether it came by TCP.
    pub by_tcp: bool,
    /// The bits of DNSSEC: AD, CD, DO.
    pub bits: [bool; 3],
    /// Bytes of the message.
    pub len: usize,
}

/// A server on port 53 of some addresses.
///
/// It has `A` records for names in any domain, by their first label: `long` is 198.51.100.7 for an hour, `short` the
/// same for a second, `hot` for ten seconds. `private` is 10.9.9.9. `big` has 200 addresses, and TCP only gives all of
/// them. `signed` has a signature for clients that want it. `fails` gives SERVFAIL, and `never` gets no answer. A label
/// of `n` and a number is 198.51.100.7 too. `bye` is that as well, and a server with TLS closes the connection after it.
/// Other names do not exist.
#[derive(Clone, Debug, Default)]
pub struct Nameserver {
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

impl Nameserver {
    /// Starts the server; it ends with the process.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub fn start(ns: &Namespace, addresses: &[IpAddr]) -> Result<Self> {
        let server = Self::default();
        for address in addresses {
            let at = SocketAddr::new(*address, 53);
            let (listener, socket) = ns.run(|| {
                let listener = TcpListener::bind(at).with_context(|| at.to_string())?;
                Ok((listener, UdpSocket::bind(at).with_context(|| at.to_string())?))
            })?;
            let own = server.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((n, client)) = socket.recv_from(&mut buffer) {
                    if let Some(answer) = own.answer(&buffer[..n], false) {
                        let _ = socket.send_to(&answer, client);
                    }
                }
            });
            let own = server.clone();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut len = [0; 2];
                    if stream.read_exact(&mut len).is_err() {
                        continue;
                    }
                    let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
                    let read = stream.read_exact(&mut question);
                    if let Some(answer) = own.answer(&question, true).filter(|_| read.is_ok()) {
                        let len = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                        let _ = stream.write_all(&[&len.to_be_bytes()[..], &answer].concat());
                    }
                }
            });
        }
        Ok(server)
    }

    /// Starts a server that never answers: it only remembers questions that came by UDP.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn silent(ns: &Namespace, address: IpAddr) -> Result<Self> {
        let server = Self::default();
        let socket = ns.run(|| Ok(UdpSocket::bind((address, 53))?))?;
        let own = server.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((n, _)) = socket.recv_from(&mut buffer) {
                drop(own.answer(&buffer[..n], false));
            }
        });
        Ok(server)
    }

    /// Starts a server that is asked by TLS alone.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn encrypted(ns: &Namespace, at: SocketAddr, tls: &Arc<ServerConfig>) -> Result<Self> {
        let server = Self::default();
        let listener = ns.run(|| TcpListener::bind(at).with_context(|| at.to_string()))?;
        let (own, tls) = (server.clone(), tls.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (own, tls) = (own.clone(), tls.clone());
                std::thread::spawn(move || {
                    let Ok(connection) = ServerConnection::new(tls) else { return };
                    // An error is the end of the connection, also of one that the client does not want.
                    let _ = own.converse(StreamOwned::new(connection, stream));
                });
            }
        });
        Ok(server)
    }

    /// Answers one question after the other.
    fn converse(&self, mut stream: impl Read + Write) -> std::io::Result<()> {
        for number in 0.. {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            if number == 0 {
                self.connections.fetch_add(1, Ordering::Relaxed);
            }
            let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut question)?;
            if let Some(answer) = self.answer(&question, true) {
                let len = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                stream.write_all(&[&len.to_be_bytes()[..], &answer].concat())?;
                stream.flush()?;
            }
            if self.asked().last().is_some_and(|asked| asked.name.starts_with("bye.")) {
                break;
            }
        }
        Ok(())
    }

    /// How many connections by TLS had a question.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// All questions so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many questions were about a name.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.asked().iter().filter(|a| a.name == name).count()
    }

    fn answer(&self, message: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(message).ok()?;
        let question = asked.queries.first()?;
        let name = name::to_text(&question.name().to_lowercase());
        let wants_dnssec = asked.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        let bits = [asked.authentic_data, asked.checking_disabled, wants_dnssec];
        let seen = Asked { name: name.clone(), kind: question.query_type().into(), by_tcp, bits, len: message.len() };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        let first = name.split('.').next().unwrap_or_default();
        let numbered = first.strip_prefix('n').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let public = Ipv4Addr::new(198, 51, 100, 7);
        let (ttl, addresses): (u32, Vec<Ipv4Addr>) = match first {
            "never" => return None,
            "short" => (1, vec![public]),
            "hot" => (10, vec![public]),
            "private" => (3600, vec![Ipv4Addr::new(10, 9, 9, 9)]),
            "big" => (3600, (1..=200).map(|n| Ipv4Addr::new(198, 51, 100, n)).collect()),
            "long" | "signed" | "bye" => (3600, vec![public]),
            _ if numbered => (3600, vec![public]),
            _ => (3600, Vec::new()),
        };
        let mut answer = Message::response(asked.id, OpCode::Query);
        answer.metadata.recursion_desired = asked.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.checking_disabled = asked.checking_disabled;
        answer.metadata.authentic_data = first == "signed";
        answer.metadata.truncation = addresses.len() > 20 && !by_tcp;
        answer.metadata.response_code = match (first, addresses.is_empty()) {
            ("fails", _) => ResponseCode::ServFail,
            (_, true) => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        answer.add_query(question.clone());
        let record = |data| Record::from_rdata(question.name().clone(), ttl, data);
        if question.query_type() == RecordType::A && !answer.truncation {
            answer.add_answers(addresses.into_iter().map(|a| record(RData::A(a.into()))));
        }
        if first == "signed" && wants_dnssec {
            // Algorithm 8, three labels, times, the key's number, the root as signer, and a signature.
            let data = [&[0, 1, 8, 3], &[0x65; 14][..], &[0], &[7; 32]].concat();
            let signature = RData::Unknown { code: RecordType::RRSIG, rdata: NULL::with(data) };
            answer.add_answer(record(signature));
        }
        if answer.answers.is_empty() && !answer.truncation && first != "fails" {
            // The root's SOA: the negative answer is valid for a minute.
            let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 60);
            answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        }
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_dnssec_ok(wants_dnssec);
            answer.set_edns(edns);
        }
        answer.to_vec().ok()
    }
}
