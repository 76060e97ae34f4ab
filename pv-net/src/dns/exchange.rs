//! Asks other servers by UDP, and by TCP when the answer was truncated; or by TLS alone. An answer is accepted if it
//! comes from the asked server, to the port and with the id that were chosen for this question only, and is about this
//! question (RFC 5452).

use super::response::{NoResponse, Response};
use super::tls::{Connections, Lost};
use super::wire::{LARGEST, Query, ResponseCode};
use crate::model::NameServer;
use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How many messages that do not answer the question may arrive on its port. More of them are a guessing attack.
const STRANGE: usize = 16;
/// The size of the largest datagram that is read.
const DATAGRAM: usize = 4096;
/// Encrypted questions have a multiple of this many bytes, so that their length does not tell the name (RFC 8467).
const BLOCK: usize = 128;
const OPTION_PADDING: u16 = 12;
/// Bytes of an option besides its data.
const OPTION_HEAD: usize = 4;

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// An error of the network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error("its answer cannot be read")]
    Broken,
    /// There was no answer by TLS.
    #[error("{0}")]
    Tls(#[from] Lost),
    /// Too many messages did not answer the question: somebody tries to forge the answer.
    #[error("too many messages that are no answer")]
    Strange,
}

fn number() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// The message to another server for this question; `is_padded` has an effect with EDNS only.
fn outgoing(query: &Query<'_>, id: u16, has_edns: bool, is_padded: bool) -> io::Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // The server is always asked whether DNSSEC validation succeeded, since the cached answer may be for other clients
    // too.
    message.metadata.authentic_data = true;
    message.metadata.checking_disabled = query.head.checking_disabled;
    message.add_query(query.asked.clone());
    if has_edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST as u16).set_dnssec_ok(query.wants_dnssec());
        message.set_edns(edns);
    }
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let Some(edns) = message.edns.as_mut().filter(|_| is_padded) else { return Ok(bytes) };
    let len = (bytes.len() + OPTION_HEAD).next_multiple_of(BLOCK) - bytes.len() - OPTION_HEAD;
    edns.options_mut().insert(EdnsOption::Unknown(OPTION_PADDING, vec![0; len]));
    message.to_vec().map_err(io::Error::other)
}

/// Asks `server`.
///
/// # Errors
/// When no valid answer comes, or when the network fails.
pub async fn ask(query: &Query<'_>, server: SocketAddr) -> Result<Response, NoAnswer> {
    let response = datagram(query, server, true).await?;
    let is_old = is_old(&response);
    let response = if is_old { datagram(query, server, false).await? } else { response };
    if response.is_cut() { stream(query, server, !is_old).await } else { Ok(response) }
}

/// Asks `server` by TLS, whose certificate must be for `name`.
///
/// # Errors
/// When the server cannot be reached or trusted, or gives no valid answer.
pub async fn encrypted(
    query: &Query<'_>,
    server: &NameServer,
    name: &Arc<str>,
    tls: &Connections,
    ca_file: Option<&Path>,
) -> Result<Response, NoAnswer> {
    // Nobody else can answer on the connection, so the number need not be a secret.
    let id = 0;
    let ask = async |has_edns| {
        let answer = tls.ask(server, name, ca_file, &outgoing(query, id, has_edns, true)?).await?;
        Response::parse(&answer, query, id).map_err(|_| NoAnswer::Broken)
    };
    let response = ask(true).await?;
    if is_old(&response) { ask(false).await } else { Ok(response) }
}

/// Whether the server does not know EDNS (RFC 6891 section 7).
const fn is_old(response: &Response) -> bool {
    matches!(response.rcode, ResponseCode::FormErr | ResponseCode::NotImp) && !response.has_edns
}

async fn datagram(query: &Query<'_>, server: SocketAddr, has_edns: bool) -> Result<Response, NoAnswer> {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for this question only. The kernel chooses a random port, and a connected socket receives from this
    // server only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = number()?;
    socket.send(&outgoing(query, id, has_edns, false)?).await?;
    let mut buffer = [0; DATAGRAM];
    for _ in 0..STRANGE {
        let len = socket.recv(&mut buffer).await?;
        match Response::parse(&buffer[..len], query, id) {
            Ok(response) => return Ok(response),
            Err(NoResponse::Broken) => return Err(NoAnswer::Broken),
            Err(NoResponse::Other) => {}
        }
    }
    Err(NoAnswer::Strange)
}

async fn stream(query: &Query<'_>, server: SocketAddr, has_edns: bool) -> Result<Response, NoAnswer> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let id = number()?;
    let message = outgoing(query, id, has_edns, false)?;
    let framed = [&(message.len() as u16).to_be_bytes(), &*message].concat();
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Response::parse(&answer, query, id).map_err(|_| NoAnswer::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op;
    use hickory_proto::rr::RecordType;

    #[test]
    fn encrypted_questions_have_few_lengths() {
        for len in 1..200 {
            let labels = "a"
                .repeat(len)
                .into_bytes()
                .chunks(50)
                .map(|l| String::from_utf8_lossy(l).into_owned())
                .collect::<Vec<_>>();
            let name = crate::dns::name::from_text(&labels.join(".")).expect("a name");
            let mut asked = Message::new(7, MessageType::Query, OpCode::Query);
            asked.add_query(op::Query::query(name.into(), RecordType::A));
            let asked = asked.to_vec().expect("a question");
            let query = Query::parse(&asked).expect("a question");
            let padded = outgoing(&query, 0, true, true).expect("a message");
            assert!(
                padded.len().is_multiple_of(BLOCK) && padded.len() < asked.len() + 11 + 4 + BLOCK,
                "{len}: {}",
                padded.len()
            );
            assert!(Query::parse(&padded).is_ok());
            assert!(outgoing(&query, 0, true, false).expect("a message").len() < asked.len() + 12);
        }
    }
}
