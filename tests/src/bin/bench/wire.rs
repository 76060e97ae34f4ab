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
use std::time::Duration;

/// How long each load of a proof takes.
const PROOF: Duration = Duration::from_millis(60);

/// The least share of the packets moved that the witness must have counted. What it may miss is what no path carries:
/// ARP of the two ends, and packets in flight while the counters are read.
const SHARE: f64 = 0.9;

/// Client, server, what is between them, and who can tell which way the packets went.
pub struct Wire {
    /// Where the load goes from and to.
    pub ends: Ends,
    /// Links of the client and of the server: what both sent is what was moved.
    pub links: [Link; 2],
    /// Counts packets that took this path.
    pub witness: Witness,
    /// Counters that a new flow must raise, such as that of a NAT rule.
    pub marks: Vec<(&'static str, Witness)>,
    /// The client's address as the server must see it.
    pub seen_as: IpAddr,
    /// Programs that carry the packets, such as a proxy.
    pub carriers: Vec<u32>,
    /// What goes away with the path.
    pub keep: Box<dyn Any>,
}

impl Wire {
    /// Runs a load between two readings of the counters.
    fn witnessed(&self, load: &Load, time: Duration, check: Check) -> Result<(Outcome, Used, f64)> {
        let before = (self.moved()?, self.witness.count(load.work)?);
        let mark = Mark::now(load.pin)?;
        let outcome = load.run(&self.ends, time, check)?;
        let used = mark.used()?;
        // The last packets of a connection may follow the load's end.
        std::thread::sleep(Duration::from_millis(2));
        let moved = self.moved()? - before.0;
        let counted = self.witness.count(load.work)? - before.1;
        ensure!(moved > 0, "{}: nothing was moved", load.name());
        let share = counted as f64 / moved as f64;
        let what = self.witness.what();
        ensure!(share >= SHARE, "{}: {what} counted {counted} of {moved} packets: they went another way", load.name());
        let seen = outcome.seen_as.context("the server saw no client")?;
        ensure!(seen == self.seen_as, "the server saw the client as {seen}, not {}", self.seen_as);
        Ok((outcome, used, share))
    }

    fn moved(&self) -> Result<u64> {
        Ok(self.links[0].sent()? + self.links[1].sent()?)
    }

    fn pin_carriers(&self, pin: Pin) -> Result<()> {
        for pid in &self.carriers {
            let (_, server) = pin.cpus();
            cpu::pin(*pid, if pin == Pin::Same { std::slice::from_ref(&server) } else { cpu::allowed() })?;
        }
        Ok(())
    }
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
        let (outcome, used, share) = self.witnessed(&load, time, Check::Marks)?;
        let mut extras = BTreeMap::from([("witnessed", share)]);
        extras.extend(outcome.p50_us.map(|v| ("p50_us", v)));
        extras.extend(outcome.p99_us.map(|v| ("p99_us", v)));
        extras.extend(outcome.lost.map(|v| ("lost", v)));
        let alone = self.carriers.is_empty();
        if let (Work::Stream(_), true) = (load.work, alone) {
            extras.insert("cpu_secs_per_gb", used.own_secs / (outcome.count as f64 / 1e9));
        }
        // What a proxy's own processes used looks like anyone's.
        Ok(Sample { value: outcome.rate, extras, foreign_secs: alone.then_some(used.foreign_secs) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_path_that_the_packets_did_not_take_gives_no_figure() -> Result<()> {
        // Two links between the ends; the witness looks at the one that carries nothing.
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
