//! Questions for names, by UDP and by TCP, as many clients ask them: each has one question at a time, and asks the next
//! one when it is answered. Every answer is compared with what it should be.

mod message;
mod responder;
mod tcp;
mod udp;

pub use responder::Responder;

use super::exchanges::Histogram;
use super::{Outcome, in_namespace};
use crate::cpu::{self, Pin};
use anyhow::{Context, Result, ensure};
use message::Message;
use nix::ifaddrs::getifaddrs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most clients.
pub const MOST: usize = 64;
/// After this time a question counts as lost, and the client asks another one.
const LOST: Duration = Duration::from_millis(300);
/// Largest share of questions that may be lost or refused.
const MOST_LOST: f64 = 0.01;
/// The same by TCP: dnsmasq has 20 connections at a time, and the kernel drops some of what waits.
const MOST_LOST_BY_TCP: f64 = 0.1;

/// A client: a link of its own, and its address there.
#[derive(Clone, Debug)]
pub struct Client {
    /// The link's name.
    pub link: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The names that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Always this one.
    One(&'static str),
    /// Another one in this domain for each question, of all measurements.
    Random(&'static str),
}

/// The questions of a measurement.
pub struct Asking<'a> {
    /// The namespace of the clients.
    pub ns: PathBuf,
    /// The clients. If fewer ask at a time, they take turns.
    pub clients: &'a [Client],
    /// How many clients ask at a time.
    pub at_a_time: usize,
    /// The server.
    pub server: SocketAddrV4,
    /// Whether each question takes a TCP connection.
    pub by_tcp: bool,
    /// What is asked for.
    pub names: Names,
    /// The address that every answer must have.
    pub expected: Ipv4Addr,
}

/// The links of a namespace whose names begin with `e`, as clients.
///
/// # Errors
/// When the namespace cannot be read.
pub fn clients(ns: &Path) -> Result<Vec<Client>> {
    in_namespace(ns, || {
        let one = |found: nix::ifaddrs::InterfaceAddress| {
            let address = found.address?.as_sockaddr_in()?.ip();
            found.interface_name.starts_with('e').then_some(Client { link: found.interface_name, address })
        };
        Ok(getifaddrs()?.filter_map(one).collect())
    })
}

impl Asking<'_> {
    /// Asks for `time`.
    ///
    /// # Errors
    /// When answers are wrong, or too many do not come.
    pub fn run(&self, time: Duration) -> Result<Outcome> {
        ensure!(!self.clients.is_empty() && self.at_a_time <= MOST, "{} clients", self.clients.len());
        let tally = in_namespace(&self.ns, || {
            cpu::pin(0, &[Pin::Split.cpus().0])?;
            if self.by_tcp { tcp::run(self, time) } else { udp::run(self, time) }
        })?;
        tally.outcome(if self.by_tcp { MOST_LOST_BY_TCP } else { MOST_LOST })
    }

    /// A question with this id.
    fn question(&self, id: u16) -> Message {
        Message::question(id, self.names)
    }
}

/// What has come so far.
struct Tally {
    start: Instant,
    end: Instant,
    times: Histogram,
    answered: u64,
    /// Questions without an answer in time, or with a refusal.
    lost: u64,
}

impl Tally {
    fn new() -> Self {
        let now = Instant::now();
        Self { start: now, end: now, times: Histogram::new(), answered: 0, lost: 0 }
    }

    /// Counts an answer that came now to a question of `asked`; one that is not about the question is an error.
    fn count(&mut self, question: &Message, answer: &[u8], expected: Ipv4Addr, asked: Instant) -> Result<()> {
        self.end = Instant::now();
        if question.is_answered(answer, expected).with_context(|| format!("answer {answer:02x?}"))? {
            self.answered += 1;
            self.times.add(self.end - asked);
        } else {
            self.lost += 1;
        }
        Ok(())
    }

    fn outcome(self, most_lost: f64) -> Result<Outcome> {
        let all = self.answered + self.lost;
        let lost = self.lost as f64 / all.max(1) as f64;
        ensure!(self.answered > 0 && lost <= most_lost, "{} of {all} questions lost or refused", self.lost);
        Ok(Outcome {
            rate: self.answered as f64 / (self.end - self.start).as_secs_f64(),
            count: self.answered,
            p50_us: self.times.quantile_us(0.5),
            p99_us: self.times.quantile_us(0.99),
            lost: Some(lost),
            seen_as: None,
        })
    }
}
