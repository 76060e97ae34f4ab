//! The load generator: both ends are threads of this process with sockets in two namespaces. The receiver checks what
//! arrives; only that is counted.

mod crr;
pub mod exchanges;
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

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many TCP streams at once.
    Stream(usize),
    /// One byte there and one back on one TCP connection.
    Rr,
    /// TCP connect, one such exchange, close.
    Crr,
    /// Datagrams of 64 bytes, one way.
    Udp,
}

/// What is sent, and where its ends run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What is sent.
    pub work: Work,
    /// Where the ends run.
    pub pin: Pin,
}

/// Where a load goes from and to.
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

/// What a load gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// In the load's unit.
    pub rate: f64,
    /// Bytes, exchanges, connections or datagrams that arrived right.
    pub count: u64,
    /// Median time of an exchange.
    pub p50_us: Option<f64>,
    /// 99th percentile of it.
    pub p99_us: Option<f64>,
    /// Share of datagrams that did not arrive.
    pub lost: Option<f64>,
    /// The client's address as the server saw it.
    pub seen_as: Option<IpAddr>,
}

/// How much is compared.
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

    /// The one of this name.
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

    /// Runs it for `time`.
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
