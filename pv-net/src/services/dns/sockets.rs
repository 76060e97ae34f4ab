//! A socket for each gateway address that answers, bound to its pool's bridge alone, and one for the device's own programs,
//! bound to loopback. So the link tells who asks, and port 53 stays free for others on other links.

use super::lanes::Lanes;
use super::{tcp, udp};
use crate::dns::{Client, Dns, PORT, Zone};
use crate::model::PoolName;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

const BACKLOG: i32 = 128;
/// Receive buffer of a UDP socket, bytes.
const WAITING: usize = 1 << 20;

/// Loopback's index, in each network namespace.
const LOOPBACK: u32 = 1;

/// Who can ask on a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Audience {
    /// Whoever is in a pool.
    Pool(PoolName),
    /// The device's own programs.
    Device,
}

impl Audience {
    /// Who asks by `address`; `None` when nobody there can have it: an answer would go who knows where.
    pub fn client(&self, zone: &Zone, address: IpAddr) -> Option<Client> {
        match self {
            Self::Pool(name) => zone.client(zone.number(name)?, address),
            Self::Device => zone.on_device().map(|_| zone.device()),
        }
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Device => f.write_str("network.dns_on_device"),
        }
    }
}

/// An address and the link that questions to it come by: a gateway's, on the link that its pool has now, or loopback's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    audience: Audience,
    link: u32,
    address: IpAddr,
}

/// The sockets, each with the tasks that serve it.
pub(super) struct Sockets {
    dns: Arc<Dns>,
    connections: Arc<tcp::Connections>,
    lanes: Lanes,
    served: BTreeMap<Place, JoinSet<()>>,
}

impl Sockets {
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(dns: Arc<Dns>) -> io::Result<Self> {
        Ok(Self { dns, connections: Arc::default(), lanes: Lanes::new()?, served: BTreeMap::new() })
    }

    /// Opens and closes sockets to match `zone`. Returns what could not be opened, and why.
    pub fn follow(&mut self, zone: &Zone) -> Vec<String> {
        let mut wanted = Vec::new();
        for pool in zone.pools().iter().filter(|p| p.answers) {
            let Some(link) = pool.link else { continue };
            let audience = Audience::Pool(pool.name.clone());
            let place = |address: &IpAddr| Place { audience: audience.clone(), link, address: *address };
            wanted.extend(pool.gateways.iter().map(place));
        }
        wanted.extend(zone.on_device().map(|address| Place { audience: Audience::Device, link: LOOPBACK, address }));
        // Sockets that are not wanted any more, or whose task has ended, are closed first, so that new ones can have
        // their addresses.
        self.served.retain(|place, tasks| tasks.try_join_next().is_none() && wanted.contains(place));
        let missing = wanted.into_iter().filter(|place| !self.served.contains_key(place));
        let mut lost = Vec::new();
        for place in missing.collect::<Vec<_>>() {
            match self.serve(&place) {
                Ok(tasks) => {
                    tracing::debug!(of = %place.audience, address = %place.address, "answers questions for names");
                    self.served.insert(place, tasks);
                }
                Err(e) => lost.push(format!("{} port {PORT} of {}: {e}", place.address, place.audience)),
            }
        }
        lost
    }

    /// Waits until one of the threads has ended; the sockets are then of no use.
    pub fn broken(&self) -> impl Future<Output = ()> + use<> {
        self.lanes.broken()
    }

    /// Waits until a task has ended; the next [`Sockets::follow`] replaces it.
    pub async fn ended(&mut self) {
        let ended = |cx: &mut Context<'_>| {
            let mut served = self.served.iter_mut();
            let ended = served.find_map(|(place, tasks)| tasks.poll_join_next(cx).is_ready().then(|| place.clone()));
            ended.map_or(Poll::Pending, Poll::Ready)
        };
        let place = poll_fn(ended).await;
        self.served.remove(&place);
    }

    fn serve(&self, place: &Place) -> io::Result<JoinSet<()>> {
        // A socket of each kind for each thread, among which the kernel distributes the clients.
        let two = |lane| io::Result::Ok((lane, open(place, SockType::Datagram)?, open(place, SockType::Stream)?));
        let all: Vec<(&Handle, OwnedFd, OwnedFd)> = self.lanes.handles().map(two).collect::<io::Result<_>>()?;
        let mut tasks = JoinSet::new();
        for (lane, socket, listener) in all {
            let _entered = lane.enter();
            listen(&listener, Backlog::new(BACKLOG)?)?;
            tasks.spawn(udp::serve(socket, place.audience.clone(), self.dns.clone())?);
            tasks.spawn(tcp::serve(listener, place.audience.clone(), self.dns.clone(), self.connections.clone())?);
        }
        Ok(tasks)
    }
}

fn open(place: &Place, kind: SockType) -> io::Result<OwnedFd> {
    let family = if place.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None::<SockProtocol>)?;
    let name = nix::net::if_::if_indextoname(place.link)?;
    setsockopt(&socket, sockopt::BindToDevice, &std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes()))?;
    // Allows a server of the device on all addresses beside this socket, if that one allows it too.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    if kind == SockType::Datagram {
        setsockopt(&socket, sockopt::RcvBuf, &WAITING)?;
    }
    if place.address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(place.address, PORT)))?;
    Ok(socket)
}
