//! A path that packets take from a client to a server.

use crate::case::{Metric, Path, Sample};
use crate::cpu::{self, Mark, Pin, Used};
use crate::interrupt;
use crate::load::{Check, Ends, Load, Outcome, Work};
use crate::witness::{Link, Witness};
use anyhow::{Context, Result, ensure};
use std::any::Any;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long each load of a proof takes.
const PROOF: Duration = Duration::from_millis(60);

/// The least share of the moved packets that the witness must have counted. It may miss ARP of the two ends, which no
/// path carries, and packets in flight while the counters are read.
pub const SHARE: f64 = 0.9;

/// The least share of the moved packets that a witness must have counted, by the kind of work.
pub type Least = fn(Work) -> f64;

/// How long the counters may lag behind the ends on a busy machine.
const SETTLED: Duration = Duration::from_millis(200);

/// Client, server, what is between them, and the counters that tell which way packets went.
pub struct Wire {
    /// Where the load goes from and to.
    pub ends: Ends,
    /// Links of the client and of the server, one entry where both have the same. The packets that they sent are the
    /// moved ones.
    pub links: Vec<Link>,
    /// Counts the packets that took this path.
    pub witness: Witness,
    /// Further counters that must have counted a share of the moved packets, by the kind of work.
    pub shares: Vec<(Witness, Least)>,
    /// Counters that a new flow must raise, such as that of a NAT rule.
    pub marks: Vec<(&'static str, Witness)>,
    /// The client's address as the server must see it.
    pub seen_as: IpAddr,
    /// Programs that carry the packets, such as a proxy.
    pub carriers: Vec<u32>,
    /// Values that are dropped with the path.
    pub keep: Box<dyn Any>,
}

impl Wire {
    /// Runs a load between two readings of the counters.
    fn witnessed(&self, load: &Load, time: Duration, check: Check) -> Result<Seen> {
        let before = self.counts(load.work)?;
        let mark = Mark::now(load.pin, &self.carriers)?;
        let outcome = load.run(&self.ends, time, check)?;
        let used = mark.used(&self.carriers)?;
        let (moved, share) = self.compared(load, &before)?;
        let seen = outcome.seen_as.context("the server saw no client")?;
        ensure!(seen == self.seen_as, "the server saw the client as {seen}, not {}", self.seen_as);
        Ok(Seen { outcome, used, share, moved })
    }

    /// The packets moved since `before`, and the share that the witness with the least has counted, of those that must
    /// have counted nearly all.
    fn compared(&self, load: &Load, before: &[u64]) -> Result<(u64, f64)> {
        let end = Instant::now();
        loop {
            // The last packets of a connection may come after the load's end.
            std::thread::sleep(Duration::from_millis(2));
            let after = self.counts(load.work)?;
            let grown: Vec<u64> =
                after.iter().zip(before).map(|(after, before)| after.saturating_sub(*before)).collect();
            match self.judged(load, &grown) {
                Err(_) if end.elapsed() < SETTLED => {}
                done => return done,
            }
        }
    }

    fn judged(&self, load: &Load, grown: &[u64]) -> Result<(u64, f64)> {
        let (moved, counted) = grown.split_first().context("nothing was counted")?;
        ensure!(*moved > 0, "{}: nothing was moved", load.name());
        let mut share = 1.0_f64;
        for ((witness, least), counted) in self.witnesses().zip(counted) {
            let (part, least) = (*counted as f64 / *moved as f64, least(load.work));
            let (name, what) = (load.name(), witness.what());
            ensure!(part >= least, "{name}: {what} counted {counted} of {moved} packets: they went another way");
            share = share.min(if least >= SHARE { part } else { 1.0 });
        }
        Ok((*moved, share))
    }

    /// All witnesses, with the least share of each.
    fn witnesses(&self) -> impl Iterator<Item = (&Witness, Least)> {
        let all: Least = |_| SHARE;
        [(&self.witness, all)].into_iter().chain(self.shares.iter().map(|(witness, least)| (witness, *least)))
    }

    /// The packets moved, followed by each witness's count.
    fn counts(&self, work: Work) -> Result<Vec<u64>> {
        let moved = self.links.iter().map(Link::sent).sum::<Result<u64>>();
        let counted = self.witnesses().map(|(witness, _)| witness.count(work));
        std::iter::once(moved).chain(counted).collect()
    }

    fn pin_carriers(&self, pin: Pin) -> Result<()> {
        for pid in &self.carriers {
            let (_, server) = pin.cpus();
            cpu::pin(*pid, if pin == Pin::Same { std::slice::from_ref(&server) } else { cpu::allowed() })?;
        }
        Ok(())
    }
}

/// The outcome of a load, and the counters beside it.
struct Seen {
    outcome: Outcome,
    used: Used,
    /// The least share that a witness has counted, of those that must have counted nearly all.
    share: f64,
    moved: u64,
}

impl Path for Wire {
    fn verify(&mut self) -> Result<()> {
        for work in [Work::Rr, Work::Stream(1), Work::Crr, Work::Udp] {
            interrupt::check()?;
            let load = Load { work, pin: Pin::Same };
            let marks = self.marks.iter().map(|(_, m)| m.count(work)).collect::<Result<Vec<_>>>()?;
            self.witnessed(&load, PROOF, Check::Bytes)?;
            for ((what, mark), before) in self.marks.iter().zip(marks) {
                ensure!(mark.count(work)? > before, "{}: {what} did not count a new flow", load.name());
            }
        }
        Ok(())
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        let load = metric.load.context("only loads are measured on a wire")?;
        self.pin_carriers(load.pin)?;
        let Seen { outcome, used, share, moved } = self.witnessed(&load, time, Check::Marks)?;
        let mut extras = BTreeMap::from([("witnessed", share), ("packets", moved as f64)]);
        extras.extend(outcome.p50_us.map(|v| ("p50_us", v)));
        extras.extend(outcome.p99_us.map(|v| ("p99_us", v)));
        extras.extend(outcome.lost.map(|v| ("lost", v)));
        if let Work::Stream(_) = load.work {
            extras.insert("cpu_secs_per_gb", used.own_secs / (outcome.count as f64 / 1e9));
        }
        Ok(Sample { value: outcome.rate, extras, foreign_secs: Some(used.foreign_secs), ..Sample::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_path_that_the_packets_did_not_take_gives_no_figure() -> Result<()> {
        // There are two links between the ends; the witness counts on the one without traffic.
        let net = nets::direct()?;
        net.client.0.connect(("idle", &["10.9.0.1/24"]), &net.server.0, ("idle", &["10.9.0.2/24"]))?;
        let witness = Witness::received("the idle link", vec![Link::new(&net.client.0, "idle")]);
        let why = net.wire(witness).verify().err().context("it was taken for the path")?.to_string();
        ensure!(why.contains("the idle link counted") && why.contains("another way"), "{why}");
        Ok(())
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_server_that_sees_another_client_gives_no_figure() -> Result<()> {
        let net = nets::direct()?;
        let witness = Witness::received(
            "the other end",
            vec![Link::new(&net.server.0, "eth0"), Link::new(&net.client.0, "eth0")],
        );
        let mut wire = net.wire(witness);
        wire.verify()?;
        wire.seen_as = nets::UPLINK.into();
        let why = wire.verify().err().context("it was taken for masqueraded")?.to_string();
        ensure!(why.contains("saw the client as 10.0.3.2"), "{why}");
        Ok(())
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_path_that_leads_nowhere_is_an_error_soon() -> Result<()> {
        let net = nets::direct()?;
        let witness = Witness::received("the other end", vec![Link::new(&net.server.0, "eth0")]);
        net.server.0.ip("link set eth0 down")?;
        let start = std::time::Instant::now();
        ensure!(net.wire(witness).verify().is_err(), "it was taken for a path");
        ensure!(start.elapsed() < Duration::from_secs(15), "only after {:?}", start.elapsed());
        Ok(())
    }
}
