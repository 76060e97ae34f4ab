//! Clients that ask for an address, each once. They are made up by one thread, and each has a MAC of its own.

use crate::interrupt;
use crate::load::exchanges::Histogram;
use anyhow::{Result, bail};
use harness::Namespace;
use harness::raw::RawSocket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The ports of the bridge, by the names of their links in the clients' namespace.
pub const PORTS: usize = 4;
/// A client that has no address after this time gives up, and counts as lost: it would ask again now (RFC 2131 section
/// 4.1).
const PATIENCE: Duration = Duration::from_secs(4);
/// The largest frame.
const LARGEST: usize = 2048;

/// The name of a port's link.
pub fn link(port: usize) -> String {
    format!("eth{port}")
}

/// What a frame of the server is to its client.
pub enum Heard {
    /// Nothing: it is for nobody here.
    Nothing,
    /// The answer to the first message of the client with this number. This is sent next.
    Offer(u32, Vec<u8>),
    /// The client with this number has its address.
    Lease(u32),
    /// The client with this number gets no address.
    Refusal(u32),
    /// Whoever asks for a neighbour gets this answer, on the port of that number.
    Answer(usize, Vec<u8>),
}

/// The messages of a protocol.
pub trait Exchange {
    /// EtherType of its frames.
    const KIND: u16;
    /// The frame that begins the exchange of a client.
    fn first(&self, client: u32) -> Vec<u8>;
    /// What a frame is.
    fn hear(&self, frame: &[u8]) -> Heard;
}

/// The port that a client is behind.
pub const fn port_of(client: u32) -> usize {
    client as usize % PORTS
}

/// All clients of a namespace.
pub struct Clients<E> {
    sockets: Vec<RawSocket>,
    exchange: E,
    /// The number of the next client.
    next: u32,
}

/// What became of the clients.
#[derive(Debug, Default)]
pub struct Found {
    /// How many got an address.
    pub done: usize,
    /// How many got none.
    pub lost: usize,
    /// Clients that got one, a second.
    pub rate: f64,
    /// Times until the first answer.
    pub first: Histogram,
    /// Times until the address was theirs.
    pub whole: Histogram,
}

impl<E: Exchange> Clients<E> {
    /// Clients on the links of `ns`.
    pub fn new(ns: &Namespace, exchange: E) -> Result<Self> {
        let sockets = (0..PORTS).map(|port| RawSocket::open_for(ns, &link(port), E::KIND)).collect::<Result<_>>()?;
        Ok(Self { sockets, exchange, next: 1 })
    }

    /// Has `window` clients at a time ask for `time`, and until at least so many have been answered.
    pub fn run(&mut self, window: usize, time: Duration, least: usize) -> Result<Found> {
        let (mut found, mut asking, mut buffer) = (Found::default(), HashMap::new(), [0; LARGEST]);
        let start = Instant::now();
        let mut last = start;
        loop {
            interrupt::check()?;
            let now = Instant::now();
            let is_over = now - start >= time && found.done + found.lost + asking.len() >= least;
            while !is_over && asking.len() < window {
                let client = self.next;
                self.next = self.next.wrapping_add(1);
                asking.insert(client, Instant::now());
                self.sockets[port_of(client)].send(&self.exchange.first(client))?;
            }
            if asking.is_empty() {
                break;
            }
            let mut ready: Vec<PollFd<'_>> =
                self.sockets.iter().map(|socket| PollFd::new(socket.fd().as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut ready, PollTimeout::from(20_u8))?;
            let ready: Vec<bool> = ready.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (socket, _) in self.sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
                while let Some(len) = socket.take(&mut buffer)? {
                    last = self.hear(&buffer[..len], &mut asking, &mut found)?.unwrap_or(last);
                }
            }
            let before = asking.len();
            asking.retain(|_, since| since.elapsed() < PATIENCE);
            found.lost += before - asking.len();
        }
        found.rate = found.done as f64 / (last - start).as_secs_f64();
        Ok(found)
    }

    /// Acts on a frame. Gives the time if it was the last one of an exchange.
    fn hear(&self, frame: &[u8], asking: &mut HashMap<u32, Instant>, found: &mut Found) -> Result<Option<Instant>> {
        match self.exchange.hear(frame) {
            Heard::Nothing => {}
            Heard::Answer(port, answer) => self.sockets[port].send(&answer)?,
            Heard::Offer(client, next) => {
                if let Some(since) = asking.get(&client) {
                    found.first.add(since.elapsed());
                    self.sockets[port_of(client)].send(&next)?;
                }
            }
            Heard::Lease(client) => {
                if let Some(since) = asking.remove(&client) {
                    found.whole.add(since.elapsed());
                    found.done += 1;
                    return Ok(Some(Instant::now()));
                }
            }
            Heard::Refusal(client) if asking.contains_key(&client) => bail!("client {client} was refused an address"),
            Heard::Refusal(_) => {}
        }
        Ok(None)
    }
}
