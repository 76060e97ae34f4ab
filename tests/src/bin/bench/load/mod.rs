//! The load generator. Both ends are threads of this process, with sockets in two namespaces. The receiver checks what
//! arrives, and only that counts.

mod crr;
pub mod exchanges;
pub mod names;
mod rr;
mod socket;
mod stream;
mod udp;

pub use socket::{CONGESTION, congestion_is_known, in_namespace};

use crate::cpu::Pin;
use anyhow::Result;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// This many TCP streams at the same time.
    Stream(usize),
    /// Request and response: one byte in each direction, on one TCP connection.
    Rr,
    /// A TCP connect, one such exchange, and a close.
    Crr,
    /// Datagrams of 64 bytes, one way.
    Udp,
}

/// The traffic, and the CPUs of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What is sent.
    pub work: Work,
    /// Where the ends run.
    pub pin: Pin,
}

/// The addresses of a load.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The client's namespace.
    pub client: PathBuf,
    /// The server's namespace.
    pub server: PathBuf,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// What the client connects to.
    pub connect: SocketAddr,
}

/// The result of a load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// In the load's unit.
    pub rate: f64,
    /// Bytes, exchanges, connections or datagrams that arrived unchanged.
    pub count: u64,
    /// Median time of an exchange.
    pub p50_us: Option<f64>,
    /// 99th percentile of the time of an exchange.
    pub p99_us: Option<f64>,
    /// Share of datagrams that did not arrive.
    pub lost: Option<f64>,
    /// The client's address as the server saw it.
    pub seen_as: Option<IpAddr>,
}

/// How much of the data the receiver compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every byte: for proofs.
    Bytes,
    /// Length, order and the mark of each block: for measurements.
    Marks,
}

impl Load {
    /// Every load there is.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let works = [Work::Rr, Work::Crr, Work::Stream(1), Work::Stream(4), Work::Udp];
        works.iter().flat_map(|work| [Pin::Same, Pin::Split].map(|pin| Self { work: *work, pin })).collect()
    }

    /// The load of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|l| l.name() == name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        let work = match self.work {
            Work::Stream(flows) => format!("stream{flows}"),
            Work::Rr => "rr".to_owned(),
            Work::Crr => "crr".to_owned(),
            Work::Udp => "udp".to_owned(),
        };
        format!("{work}-{}", if self.pin == Pin::Same { "same" } else { "split" })
    }

    /// Its unit.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.work {
            Work::Stream(_) => "Gbit/s",
            Work::Rr => "exchanges/s",
            Work::Crr => "connections/s",
            Work::Udp => "packets/s",
        }
    }

    /// Runs the load for `time`.
    ///
    /// # Errors
    /// When an end cannot reach the other, or what arrives is wrong.
    pub fn run(&self, ends: &Ends, time: Duration, check: Check) -> Result<Outcome> {
        match self.work {
            Work::Stream(flows) => stream::run(ends, flows, self.pin, time, check),
            Work::Rr => rr::run(ends, self.pin, time),
            Work::Crr => crr::run(ends, self.pin, time),
            Work::Udp => udp::run(ends, self.pin, time),
        }
    }
}
