//! Asks other servers by UDP, and by TCP when the answer was truncated. An answer is accepted if it comes from the
//! asked server, to the port and with the id that were chosen for this question only, and is about this question (RFC
//! 5452).

use super::response::{NoResponse, Response};
use super::wire::{LARGEST, Query, ResponseCode};
use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How many messages that do not answer the question may arrive on its port. More of them are a guessing attack.
const STRANGE: usize = 16;
/// The size of the largest datagram that is read.
const DATAGRAM: usize = 4096;

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// An error of the network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer cannot be read.
    #[error("its answer cannot be read")]
    Broken,
    /// Too many messages did not answer the question: somebody tries to forge the answer.
    #[error("too many messages that are no answer")]
    Strange,
}

fn number() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// The message to another server for this question.
fn outgoing(query: &Query<'_>, id: u16, has_edns: bool) -> io::Result<Vec<u8>> {
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
    message.to_vec().map_err(io::Error::other)
}

/// Asks `server`.
///
/// # Errors
/// When no valid answer comes, or when the network fails.
pub async fn ask(query: &Query<'_>, server: SocketAddr) -> Result<Response, NoAnswer> {
    let response = datagram(query, server, true).await?;
    // The server does not know EDNS (RFC 6891 section 7).
    let is_old = matches!(response.rcode, ResponseCode::FormErr | ResponseCode::NotImp) && !response.has_edns;
    let response = if is_old { datagram(query, server, false).await? } else { response };
    if response.is_cut() { stream(query, server, !is_old).await } else { Ok(response) }
}

async fn datagram(query: &Query<'_>, server: SocketAddr, has_edns: bool) -> Result<Response, NoAnswer> {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket for this question only. The kernel chooses a random port, and a connected socket receives from this
    // server only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = number()?;
    socket.send(&outgoing(query, id, has_edns)?).await?;
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
    let message = outgoing(query, id, has_edns)?;
    let framed = [&(message.len() as u16).to_be_bytes(), &*message].concat();
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Response::parse(&answer, query, id).map_err(|_| NoAnswer::Broken)
}
