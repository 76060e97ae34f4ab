//! Questions by UDP. All waiting datagrams are read by one system call, and their answers sent by one.

use super::sockets::Audience;
use crate::dns::metrics::Ended;
use crate::dns::prepared::Prepared;
use crate::dns::share::Floods;
use crate::dns::wire::RecordType;
use crate::dns::{Asker, Dns, Now};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, recvmmsg, sendmmsg, sendto,
};
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

/// Most datagrams that are read by one call.
const BATCH: usize = 32;
/// So many answers are sent by one call: a client need not wait until all that were read are answered.
const SENT: usize = 8;
/// Longer questions are refused.
const LARGEST: usize = 2048;
/// So many full batches are answered before other tasks of this thread run.
const TURN: u32 = 4;

/// Answers questions on a socket as long as it works.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub(super) fn serve(socket: OwnedFd, audience: Audience, dns: Arc<Dns>) -> io::Result<impl Future<Output = ()>> {
    // SAFETY: the socket owns its descriptor, and is neither changed nor taken out.
    let socket = Arc::new(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?);
    Ok(async move {
        let mut server =
            Server { place: PLACES.fetch_add(1, Ordering::Relaxed), audience, dns, floods: Floods::default() };
        loop {
            let Ok(mut ready) = socket.readable().await else { return };
            let mut is_drained = false;
            for _ in 0..TURN {
                // Nothing is awaited while the thread's buffers are borrowed, so no other task finds them so.
                let received = LANE.with_borrow_mut(|lane| {
                    let received = ready.try_io(|socket| lane.receive(socket.get_ref()));
                    if let Ok(Ok(count)) = received {
                        lane.answer(count, &mut server, &socket);
                    }
                    received
                });
                match received {
                    Ok(Ok(count)) => is_drained = count < BATCH,
                    Ok(Err(e)) => tracing::debug!(error = %e, "no question read"),
                    Err(_) => is_drained = true,
                }
                if is_drained {
                    break;
                }
            }
            if is_drained {
                // What has come since is not missed: it makes the socket ready again.
                ready.clear_ready();
            } else {
                // Lets other tasks on this thread run, however many questions come.
                yield_now().await;
            }
        }
    })
}

thread_local! {
    /// One for all sockets of the thread, however many pools there are.
    static LANE: RefCell<Lane> = RefCell::new(Lane::new());
}

/// The number of the next socket.
static PLACES: AtomicU64 = AtomicU64::new(0);

/// What serves one socket.
struct Server {
    /// Its number, which is no other socket's.
    place: u64,
    audience: Audience,
    dns: Arc<Dns>,
    floods: Floods,
}

struct Lane {
    prepared: Prepared,
    buffers: Vec<[u8; LARGEST]>,
    /// For each question its length and sender; `None` when it was cut.
    came: Vec<Option<(usize, SocketAddr)>>,
    /// Buffers of answers, for reuse.
    answers: Vec<Vec<u8>>,
    peers: Vec<Option<SockaddrStorage>>,
}

impl Lane {
    fn new() -> Self {
        Self {
            prepared: Prepared::default(),
            buffers: vec![[0; LARGEST]; BATCH],
            came: Vec::with_capacity(BATCH),
            answers: vec![Vec::new(); SENT],
            peers: Vec::with_capacity(SENT),
        }
    }

    /// Reads the waiting datagrams.
    fn receive(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        self.came.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        // This has pointers, so it cannot be kept across an `await`.
        let mut headers = MultiHeaders::preallocate(BATCH, None);
        let read = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        for message in read {
            let is_whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
            let peer = message.address.as_ref().and_then(peer).filter(|_| is_whole);
            self.came.push(peer.map(|peer| (message.bytes, peer)));
        }
        Ok(self.came.len())
    }

    /// Answers the questions. Those for other servers are answered later, by tasks.
    fn answer(&mut self, count: usize, server: &mut Server, socket: &Arc<AsyncFd<OwnedFd>>) {
        let Server { place, audience, dns, floods } = server;
        let zone = dns.zone();
        self.prepared.follow(&zone);
        self.peers.clear();
        let (is_full, now, is_watched) = (count == BATCH, Instant::now(), dns.is_watched());
        for (buffer, came) in self.buffers.iter().zip(&self.came).take(count) {
            let Some((len, peer)) = came else { continue };
            if self.peers.len() == SENT {
                Self::send(&mut self.peers, &self.answers, socket.get_ref());
            }
            let (address, question) = (canonical(peer.ip()), &buffer[..*len]);
            // What is kept is told to nobody.
            let known = if is_watched { None } else { self.prepared.get(*place, address, question, now) };
            let client = if known.is_some() { None } else { audience.client(&zone, address) };
            let Some(part) = known.map(|known| known.part).or(client.map(|c| c.part())) else { continue };
            if !floods.may_ask(part, is_full, now) {
                dns.metrics.count(RecordType::ZERO, Ended::Limited);
                continue;
            }
            let out = &mut self.answers[self.peers.len()];
            if let Some(known) = known {
                dns.metrics.count(known.kind, known.ended);
                known.write(question, out);
                self.peers.push(Some(SockaddrStorage::from(*peer)));
                continue;
            }
            let Some(client) = client else { continue };
            match dns.now(&zone, Asker { client, address, is_datagram: true }, question, out) {
                Now::Reply(ended) => {
                    self.prepared.keep(*place, address, question, out, part, (ended, None));
                    self.peers.push(Some(SockaddrStorage::from(*peer)));
                }
                Now::Kept(ended, until) => {
                    self.prepared.keep(*place, address, question, out, part, (ended, Some(until)));
                    self.peers.push(Some(SockaddrStorage::from(*peer)));
                }
                Now::Silent => {}
                Now::Later(pending) => {
                    // A weak reference, since an open socket would keep receiving questions after it should be closed.
                    let (dns, socket, peer) = (dns.clone(), Arc::downgrade(socket), *peer);
                    tokio::spawn(async move {
                        let (answer, _) = dns.later(*pending).await;
                        let Some(socket) = socket.upgrade() else { return };
                        let to = SockaddrStorage::from(peer);
                        if let Err(e) = sendto(socket.as_raw_fd(), &answer, &to, MsgFlags::MSG_DONTWAIT) {
                            tracing::debug!(%peer, error = %e, "answer not sent");
                        }
                    });
                }
            }
        }
        Self::send(&mut self.peers, &self.answers, socket.get_ref());
    }

    /// Sends the answers to `peers`, and forgets these.
    fn send(peers: &mut Vec<Option<SockaddrStorage>>, answers: &[Vec<u8>], socket: &OwnedFd) {
        let mut at = 0;
        while at < peers.len() {
            let slices: Vec<[IoSlice<'_>; 1]> = answers[at..peers.len()].iter().map(|a| [IoSlice::new(a)]).collect();
            let none: [ControlMessage<'_>; 0] = [];
            let flags = MsgFlags::MSG_DONTWAIT;
            let mut headers = MultiHeaders::preallocate(slices.len(), None);
            let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &peers[at..], none, flags);
            at += match sent {
                Ok(sent) => sent.count().max(1),
                // The send buffer is full: clients that flood lose answers, and ask again.
                Err(Errno::EAGAIN) => break,
                // The first answer could not be sent, so it is skipped.
                Err(_) => 1,
            };
        }
        peers.clear();
    }
}

fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    debug_assert!(address.len() > 0);
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

pub(super) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}
