//! Runs an attack together with an honest twin. The attack must not arrive and must be counted under the right reason;
//! the twin must arrive. So a test cannot pass because its frames are malformed.

use anyhow::{Context, Result, ensure};
use harness::ear::Ear;
use harness::{Device, counters, frame, patience, unix_http};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long an honest packet may be on its way, and how long a counter may lag.
const PATIENCE: Duration = Duration::from_secs(5);
/// Packets that were sent before an honest packet arrive at most this long after it.
const STRAGGLERS: Duration = Duration::from_millis(15);

/// Marks are unique in the process, since the same ears may listen in two trials.
static NEXT_MARK: AtomicU32 = AtomicU32::new(1);

/// Which of the two packets to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// The attack.
    Forged,
    /// The packet that an honest sender would send in its place.
    Honest,
}

impl Twin {
    /// Whether it is the attack.
    pub fn is_forged(self) -> bool {
        self == Self::Forged
    }

    /// The value for this twin.
    pub fn pick<T>(self, forged: T, honest: T) -> T {
        match self {
            Self::Forged => forged,
            Self::Honest => honest,
        }
    }
}

/// Kinds of packets that open a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TCP's first segment.
    Syn,
    /// A datagram.
    Udp,
    /// An echo request.
    Echo,
}

impl Proto {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Syn, Self::Udp, Self::Echo];

    /// A packet with `mark` in it.
    pub fn packet(self, src: (IpAddr, u16), dst: (IpAddr, u16), mark: &[u8]) -> Vec<u8> {
        match self {
            Self::Syn => frame::tcp(src, dst, 2, mark),
            Self::Udp => frame::udp(src, dst, mark),
            Self::Echo => {
                let kind = if src.0.is_ipv4() { 8 } else { 128 };
                let [high, low] = src.1.to_be_bytes();
                frame::icmp(src.0, dst.0, &[&[kind, 0, 0, 0, high, low, 0, 1], mark].concat())
            }
        }
    }
}

/// Runs attacks one after the other; `finish` reports everything that went wrong.
pub struct Trial<'a> {
    device: &'a Device,
    victims: Vec<Ear>,
    number: u32,
    failures: Vec<String>,
}

impl<'a> Trial<'a> {
    /// A trial of attacks on `victims`.
    pub fn new(device: &'a Device, victims: Vec<Ear>) -> Self {
        Self { device, victims, number: 0, failures: Vec::new() }
    }

    /// Calls `send` for the attack and for its honest twin, each with a mark to put into the packet. No victim may hear
    /// the attack, and it must be counted under one of `reasons` (empty: pv-net does not count it). A victim must hear
    /// the twin.
    pub fn refused(
        &mut self,
        what: impl Display,
        reasons: &[&str],
        send: impl Fn(Twin, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (forged, honest) = self.marks();
        let before = self.counters()?;
        send(Twin::Forged, &forged).with_context(|| format!("{what}"))?;
        send(Twin::Honest, &honest).with_context(|| format!("{what}: honest"))?;
        let mut leaks = Vec::new();
        let mut arrived = false;
        let start = Instant::now();
        while !arrived && start.elapsed() < patience(PATIENCE) {
            self.hear(|ear, packet| {
                arrived |= has(packet, &honest);
                if has(packet, &forged) {
                    leaks.push(ear.to_owned());
                }
            })?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stragglers(&forged, &mut leaks)?;
        self.judge(&what, reasons, &before, leaks)?;
        if !arrived {
            self.failures.push(format!("{what}: the honest twin did not arrive; {:?}", self.grown(&before)?));
        }
        Ok(())
    }

    /// The packet that `send` sends must be counted under one of `reasons`, and no victim may hear it.
    pub fn dropped(&mut self, what: impl Display, reasons: &[&str], send: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
        let (mark, _) = self.marks();
        let before = self.counters()?;
        send(&mark).with_context(|| format!("{what}"))?;
        let mut leaks = Vec::new();
        let start = Instant::now();
        while leaks.is_empty() && self.counted(reasons, &before)?.is_none() && start.elapsed() < patience(PATIENCE) / 4
        {
            self.stragglers(&mark, &mut leaks)?;
        }
        self.stragglers(&mark, &mut leaks)?;
        self.judge(&what, reasons, &before, leaks)
    }

    /// A victim must hear the packet that `send` sends.
    pub fn passes(&mut self, what: impl Display, send: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
        self.all_pass(&[what], |marks| send(&marks[0]))
    }

    /// A victim must hear each of the packets that `send` sends, one for each mark.
    pub fn all_pass(&mut self, what: &[impl Display], send: impl Fn(&[Vec<u8>]) -> Result<()>) -> Result<()> {
        let marks: Vec<Vec<u8>> = what.iter().map(|_| self.marks().1).collect();
        let before = self.counters()?;
        send(&marks)?;
        let (mut missing, start): (Vec<usize>, _) = ((0..what.len()).collect(), Instant::now());
        while !missing.is_empty() && start.elapsed() < patience(PATIENCE) {
            self.hear(|_, packet| missing.retain(|n| !has(packet, &marks[*n])))?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let grown = self.grown(&before)?;
        let late = missing.into_iter().map(|n| format!("{}: it did not arrive; {grown:?}", what[n]));
        self.failures.extend(late);
        Ok(())
    }

    /// Fails with everything that went wrong.
    pub fn finish(self) -> Result<()> {
        let Self { failures, number, .. } = self;
        ensure!(failures.is_empty(), "{} of {number} went wrong:\n{}", failures.len(), failures.join("\n"));
        Ok(())
    }

    fn marks(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.number += 1;
        let number = NEXT_MARK.fetch_add(1, Ordering::Relaxed);
        let mark = |kind| format!("pv{kind}{number:06}{kind}vp").into_bytes();
        (mark('f'), mark('h'))
    }

    fn hear(&self, mut each: impl FnMut(&str, &[u8])) -> Result<()> {
        for ear in &self.victims {
            ear.heard()?.iter().for_each(|packet| each(ear.name(), packet));
        }
        Ok(())
    }

    fn stragglers(&self, mark: &[u8], leaks: &mut Vec<String>) -> Result<()> {
        std::thread::sleep(patience(STRAGGLERS));
        self.hear(|ear, packet| {
            if has(packet, mark) {
                leaks.push(ear.to_owned());
            }
        })
    }

    fn judge(
        &mut self,
        what: &impl Display,
        reasons: &[&str],
        before: &BTreeMap<String, u64>,
        leaks: Vec<String>,
    ) -> Result<()> {
        if !leaks.is_empty() {
            self.failures.push(format!("{what}: it was heard by {leaks:?}"));
        } else if !reasons.is_empty() && self.counted(reasons, before)?.is_none() {
            self.failures.push(format!("{what}: not counted as {reasons:?}; {:?}", self.grown(before)?));
        }
        Ok(())
    }

    fn counted(&self, reasons: &[&str], before: &BTreeMap<String, u64>) -> Result<Option<()>> {
        let grown = self.grown(before)?;
        Ok(reasons.iter().any(|reason| grown.contains_key(*reason)).then_some(()))
    }

    /// Every counter that grew.
    fn grown(&self, before: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>> {
        let grown = self.counters()?.into_iter();
        let grown = grown.map(|(name, n)| (n - before.get(&name).copied().unwrap_or(0), name));
        Ok(grown.filter(|(n, _)| *n > 0).map(|(n, name)| (name, n)).collect())
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let api = self.device.file("run").join("api.sock");
        Ok(counters(&serde_json::from_str(&unix_http::ask(&api, "GET", "/status", "")?)?))
    }
}

fn has(packet: &[u8], mark: &[u8]) -> bool {
    packet.windows(mark.len()).any(|part| part == mark)
}
