//! Questions by TCP (RFC 7766). A connection may have several questions at a time, each answered when its answer is
//! there. Idle connections are closed, and the number of connections is limited for each client. When there are too many in
//! all, the client with the most loses its oldest one, so that some clients cannot take all of them.

use super::sockets::Audience;
use super::udp::canonical;
use crate::dns::{Asker, Dns, Now, Whose};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Most connections of one client, and of all. Together with [`WAITING`] this limits the memory for clients that do not
/// read their answers (64 KiB an answer).
const OF_ONE: usize = 32;
const OF_ALL: usize = 512;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// How long the transfer of one question or one answer may take.
const UNDER_WAY: Duration = Duration::from_secs(5);
/// Most questions of a connection that wait for their answers.
const WAITING: usize = 4;
/// Longer questions are refused.
const LARGEST: usize = 4096;
const HEADER: usize = 12;
/// How long no connection is accepted after the process ran out of files.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of each client.
#[derive(Debug, Default)]
pub(super) struct Connections {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// The connections of each client, the oldest one first.
    of: HashMap<Whose, VecDeque<Held>>,
    last: u64,
}

/// A connection of a client.
#[derive(Debug)]
struct Held {
    number: u64,
    address: IpAddr,
    stop: CancellationToken,
}

/// Ends the oldest connection of the address with the most, if that has more than `address`. All hosts of a pool that are
/// no containers are one client here, so that one of them cannot keep the others from asking.
fn make_room(own: &mut VecDeque<Held>, address: IpAddr) -> bool {
    let count = |of: IpAddr| own.iter().filter(|held| held.address == of).count();
    let most = own.iter().map(|held| held.address).max_by_key(|of| count(*of));
    let Some(most) = most.filter(|most| count(*most) > count(address)) else { return false };
    let oldest = own.iter().position(|held| held.address == most).and_then(|at| own.remove(at));
    oldest.inspect(|held| held.stop.cancel()).is_some()
}

/// A counted connection; dropping this ends the count.
struct Counted {
    all: Arc<Connections>,
    whose: Whose,
    number: u64,
    /// Cancelled when another client needs the place.
    stop: CancellationToken,
}

impl Connections {
    /// Each change under the lock is complete, so the counts are valid even after a panic.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_more(self: &Arc<Self>, whose: Whose, address: IpAddr) -> Option<Counted> {
        let Counts { all, of, last } = &mut *self.counts();
        let mut own = of.get(&whose).map_or(0, VecDeque::len);
        if own >= OF_ONE {
            // A container has several addresses, and one share.
            let is_shared = matches!(whose, Whose::Others(_));
            if !is_shared || !of.get_mut(&whose).is_some_and(|own| make_room(own, address)) {
                return None;
            }
            *all -= 1;
            own -= 1;
        }
        if *all >= OF_ALL {
            let most = of.values_mut().max_by_key(|theirs| theirs.len()).filter(|theirs| theirs.len() > own + 1)?;
            most.pop_front()?.stop.cancel();
            *all -= 1;
        }
        *all += 1;
        *last += 1;
        let (number, stop) = (*last, CancellationToken::new());
        of.entry(whose).or_default().push_back(Held { number, address, stop: stop.clone() });
        Some(Counted { all: self.clone(), whose, number, stop })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Counts { all, of, .. } = &mut *self.all.counts();
        let Some(own) = of.get_mut(&self.whose) else { return };
        // One that was ended for another client is not counted any more.
        if let Some(at) = own.iter().position(|held| held.number == self.number) {
            own.remove(at);
            *all -= 1;
        }
        if own.is_empty() {
            of.remove(&self.whose);
        }
    }
}

/// Accepts connections as long as the socket works.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub(super) fn serve(
    socket: OwnedFd,
    audience: Audience,
    dns: Arc<Dns>,
    connections: Arc<Connections>,
) -> io::Result<impl Future<Output = ()>> {
    let listener = TcpListener::from_std(StdListener::from(socket))?;
    Ok(async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::debug!(error = %e, "no connection accepted");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let address = canonical(peer.ip());
            let zone = dns.zone();
            let client = audience.client(&zone, address);
            // The client is not in the pool, or has too many connections: the connection is closed at once.
            let Some(counted) = client.and_then(|client| connections.one_more(client.whose(), address)) else {
                continue;
            };
            let (dns, audience) = (dns.clone(), audience.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = converse(stream, address, audience, dns) => {}
                    () = counted.stop.cancelled() => {}
                }
            });
        }
    })
}

async fn converse(stream: TcpStream, address: IpAddr, audience: Audience, dns: Arc<Dns>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (read, write) = stream.into_split();
    let (answers, queue) = mpsc::channel(WAITING);
    // When the client asks nothing more, its questions are still answered. When answers cannot be sent, nothing more is
    // read.
    let write = write_all(write, queue);
    let read = read_all(read, answers, address, &audience, &dns);
    tokio::pin!(write);
    tokio::select! {
        () = &mut write => return,
        () = read => {}
    }
    write.await;
}

async fn read_all(
    mut read: OwnedReadHalf,
    answers: mpsc::Sender<Vec<u8>>,
    address: IpAddr,
    audience: &Audience,
    dns: &Arc<Dns>,
) {
    let mut question = Vec::new();
    loop {
        // Room for the answer is reserved before the question is read.
        let Ok(room) = answers.clone().reserve_owned().await else { return };
        if timeout(IDLE, read_one(&mut read, &mut question)).await.is_err() || question.is_empty() {
            return;
        }
        let zone = dns.zone();
        let Some(client) = audience.client(&zone, address) else { return };
        let mut answer = Vec::new();
        match dns.now(&zone, Asker { client, address, is_datagram: false }, &question, &mut answer) {
            Now::Reply(_) | Now::Kept(..) => drop(room.send(answer)),
            Now::Silent => return,
            Now::Later(pending) => {
                let dns = dns.clone();
                tokio::spawn(async move { room.send(dns.later(*pending).await.0) });
            }
        }
    }
}

/// Reads a question; it is empty at the end of the stream or on an error.
async fn read_one(read: &mut OwnedReadHalf, question: &mut Vec<u8>) {
    question.clear();
    let Ok(first) = read.read_u8().await else { return };
    let rest = async {
        let len = usize::from(u16::from_be_bytes([first, read.read_u8().await?]));
        if !(HEADER..=LARGEST).contains(&len) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        question.resize(len, 0);
        read.read_exact(question).await
    };
    if !matches!(timeout(UNDER_WAY, rest).await, Ok(Ok(_))) {
        question.clear();
    }
}

async fn write_all(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(answer) = queue.recv().await {
        let Ok(len) = u16::try_from(answer.len()) else { return };
        let framed = [&len.to_be_bytes(), &*answer].concat();
        if !matches!(timeout(UNDER_WAY, write.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_clients_cannot_take_all_connections() {
        let all = Arc::<Connections>::default();
        let take = |n| all.one_more(Whose::Container(n), [10, 0, 3, 2].into());
        let mut held: Vec<Counted> =
            (0..16).flat_map(|n| std::iter::from_fn(move || Some(n)).take(OF_ONE)).filter_map(take).collect();
        assert_eq!((held.len(), all.counts().all), (OF_ALL, OF_ALL));
        assert!(take(3).is_none(), "more than one client may have");
        let ended =
            |held: &[Counted]| held.iter().filter(|c| c.stop.is_cancelled()).map(|c| c.number).collect::<Vec<_>>();
        held.extend(take(99));
        assert_eq!((held.len(), ended(&held).len(), all.counts().all), (OF_ALL + 1, 1, OF_ALL));
        assert_eq!(ended(&held)[0] % OF_ONE as u64, 1, "not its oldest one");
        // The new client may have as many as each of the others.
        held.extend(std::iter::from_fn(|| take(99)).take(100));
        let own = all.counts().of[&Whose::Container(99)].len();
        assert!((29..OF_ONE).contains(&own), "{own}");
        assert_eq!(all.counts().all, OF_ALL);
        drop(held);
        assert!(all.counts().all == 0 && all.counts().of.is_empty());
    }

    #[test]
    fn one_host_of_a_pool_cannot_take_the_connections_of_all_that_are_no_containers() {
        let all = Arc::<Connections>::default();
        let take = |n: u8| all.one_more(Whose::Others(1), [10, 0, 3, n].into());
        let held: Vec<Counted> = std::iter::from_fn(|| take(9)).take(100).collect();
        assert_eq!(held.len(), OF_ONE);
        let other = take(10).expect("another host's");
        let ended: Vec<_> = held.iter().filter(|c| c.stop.is_cancelled()).map(|c| c.number).collect();
        assert_eq!((ended, other.stop.is_cancelled()), (vec![held[0].number], false));
        assert_eq!(all.counts().all, OF_ONE);
        assert_eq!(all.counts().of[&Whose::Others(1)].len(), OF_ONE);
        assert!(take(9).is_none(), "who has the most");
        // Each has as many as the other, and none is ended for more.
        let more: Vec<Counted> = std::iter::from_fn(|| take(10)).take(100).collect();
        assert_eq!(more.len() + 1, OF_ONE / 2);
        drop((held, other, more));
        assert!(all.counts().all == 0 && all.counts().of.is_empty());
    }
}
