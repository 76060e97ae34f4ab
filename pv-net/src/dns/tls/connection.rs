//! A connection to a server with TLS. Questions are sent as they come, and answered in any order (RFC 7766 section
//! 6.2.1.1).

use super::Lost;
use super::trust::{Distrust, Trust};
use bytes::{Buf, BufMut, BytesMut};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a connection may take to be made, with its handshake.
const CONNECT: Duration = Duration::from_secs(4);
/// How long sending a question may take.
const SEND: Duration = Duration::from_secs(4);
/// After how long a connection is given up on which questions wait and no answer comes: its way may be gone.
const DEAD: Duration = Duration::from_secs(5);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// After how long a connection takes no more questions. The server's certificate was checked at its begin, and may have
/// expired since, or its authority may not be trusted any more.
const LONGEST: Duration = Duration::from_secs(300);
/// For how long the server's kernel may leave what was sent unacknowledged, in milliseconds. A slow server acknowledges at
/// once; where nobody does, the way is gone, and there is time left to ask on a new connection.
const UNACKNOWLEDGED_MS: u32 = 1500;
/// Most questions of a connection that wait for their answers.
const MOST: usize = 512;

/// A question, and where its answer goes.
pub(super) struct Question {
    pub message: Vec<u8>,
    pub answer: oneshot::Sender<Result<Vec<u8>, Lost>>,
}

/// A question that was sent.
struct Waiting {
    id: [u8; 2],
    answer: oneshot::Sender<Result<Vec<u8>, Lost>>,
    since: Instant,
}

/// Makes a connection and asks `questions` on it, until it is idle or lost. Questions that are left get an error.
pub(super) async fn run(
    address: SocketAddr,
    name: Arc<str>,
    trust: Arc<Trust>,
    ca_file: Option<PathBuf>,
    mut questions: mpsc::Receiver<Question>,
) {
    let mut waiting = HashMap::new();
    let connected = timeout(CONNECT, connect(address, &name, &trust, ca_file)).await;
    let lost = match connected.unwrap_or(Err(Lost::Late)) {
        Ok(mut stream) => {
            let lost = converse(&mut stream, &mut questions, &mut waiting, LONGEST).await;
            tell(lost, &mut questions, waiting);
            // Tells the server that nothing was cut off. Nobody waits for that.
            let _ = timeout(SEND, stream.shutdown()).await;
            return;
        }
        Err(lost) => lost,
    };
    tell(lost, &mut questions, waiting);
}

/// Tells all whose questions are left that there is no answer.
fn tell(lost: Lost, questions: &mut mpsc::Receiver<Question>, waiting: HashMap<u16, Waiting>) {
    questions.close();
    while let Ok(question) = questions.try_recv() {
        let _ = question.answer.send(Err(lost));
    }
    waiting.into_values().for_each(|waiting| drop(waiting.answer.send(Err(lost))));
}

async fn connect(
    address: SocketAddr,
    name: &str,
    trust: &Trust,
    ca_file: Option<PathBuf>,
) -> Result<TlsStream<TcpStream>, Lost> {
    let config = trust.config(ca_file).await.map_err(Lost::Distrusted)?;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| Lost::Distrusted(Distrust::OtherName))?;
    let stream = TcpStream::connect(address).await.map_err(|e| Lost::Network(e.kind()))?;
    stream.set_nodelay(true).map_err(|e| Lost::Network(e.kind()))?;
    setsockopt(&stream, TcpUserTimeout, &UNACKNOWLEDGED_MS).map_err(|e| Lost::Network(io::Error::from(e).kind()))?;
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|e| Distrust::of(&e).map_or(Lost::Network(e.kind()), Lost::Distrusted))
}

/// Sends questions and receives answers. Returns why it cannot go on; `Closed` when the connection was idle. After
/// `longest`, or when nobody can ask any more, it takes no more questions, and goes on until those that it has are
/// answered.
async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    questions: &mut mpsc::Receiver<Question>,
    waiting: &mut HashMap<u16, Waiting>,
    longest: Duration,
) -> Lost {
    let (mut came, mut last_id, mut last_came) = (BytesMut::new(), 0_u16, Instant::now());
    let (mut is_ending, ends) = (false, Instant::now() + longest);
    loop {
        if is_ending && waiting.is_empty() {
            return Lost::Closed;
        }
        // Whoever has asked may have given up. A server need not answer everything, as long as something comes.
        waiting.retain(|_, waiting| !waiting.answer.is_closed() || waiting.since.elapsed() < DEAD);
        let oldest = waiting.values().map(|waiting| waiting.since).min();
        let until = oldest.map_or(last_came + IDLE, |since| since.max(last_came) + DEAD);
        tokio::select! {
            question = questions.recv(), if !is_ending && waiting.len() < MOST => {
                let Some(Question { message, answer }) = question else {
                    is_ending = true;
                    continue;
                };
                let Some((id, rest)) = message.split_first_chunk::<2>() else { continue };
                while { last_id = last_id.wrapping_add(1); waiting.contains_key(&last_id) } {}
                let mut framed = Vec::with_capacity(message.len() + 2);
                framed.put_u16(u16::try_from(message.len()).unwrap_or(u16::MAX));
                framed.put_u16(last_id);
                framed.put_slice(rest);
                waiting.insert(last_id, Waiting { id: *id, answer, since: Instant::now() });
                let send = async {
                    stream.write_all(&framed).await?;
                    stream.flush().await
                };
                match timeout(SEND, send).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Lost::Closed,
                    Err(_) => return Lost::Late,
                }
            }
            read = stream.read_buf(&mut came) => {
                if !matches!(read, Ok(1..)) {
                    return Lost::Closed;
                }
                while let Some(message) = frame(&mut came) {
                    let Some((id, rest)) = message.split_first_chunk::<2>() else { continue };
                    let Some(Waiting { id, answer, .. }) = waiting.remove(&u16::from_be_bytes(*id)) else { continue };
                    let _ = answer.send(Ok([&id, rest].concat()));
                    last_came = Instant::now();
                }
            }
            // Those who come now make a new connection; what is in the queue already is asked here.
            () = sleep_until(ends.into()), if !questions.is_closed() => questions.close(),
            () = sleep_until(until.into()) => {
                return if waiting.is_empty() { Lost::Closed } else { Lost::Late };
            }
        }
    }
}

/// Takes the next whole message out of what came by a stream (RFC 1035 section 4.2.2). What is kept is never larger
/// than one message and one read.
pub fn frame(came: &mut BytesMut) -> Option<BytesMut> {
    let (len, rest) = came.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len));
    if rest.len() < len {
        return None;
    }
    came.advance(2);
    Some(came.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_come() {
        let mut came = BytesMut::new();
        let mut found = Vec::new();
        for byte in [0, 3, b'a', b'b', b'c', 0, 0, 0, 1, b'd', 0, 2, b'e'] {
            came.put_u8(byte);
            found.extend(std::iter::from_fn(|| frame(&mut came)).map(|message| message.to_vec()));
        }
        assert_eq!(found, [&b"abc"[..], b"", b"d"]);
        assert_eq!(came, &[0, 2, b'e'][..]);
    }

    #[tokio::test]
    async fn an_old_connection_answers_what_it_was_asked_and_takes_no_more() {
        let (mut near, mut far) = tokio::io::duplex(4096);
        let (questions, mut queue) = mpsc::channel(4);
        let longest = Duration::from_millis(50);
        let served = tokio::spawn(async move { converse(&mut near, &mut queue, &mut HashMap::new(), longest).await });
        let (answer, answered) = oneshot::channel();
        assert!(questions.send(Question { message: vec![0, 9, 1, 2], answer }).await.is_ok());
        let mut came = [0; 6];
        far.read_exact(&mut came).await.expect("the question");
        questions.closed().await;
        far.write_all(&came).await.expect("the answer");
        assert_eq!(answered.await, Ok(Ok(vec![0, 9, 1, 2])));
        assert_eq!(served.await.expect("no panic"), Lost::Closed);
    }
}
