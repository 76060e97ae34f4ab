//! The cost of each eBPF program: its size, and its run time for one packet.
//!
//! The kernel adds the run time of a stage to the program that called it, so only programs on hooks have a run time.

use super::{published, published_local};
use crate::bpf::Loaded;
use crate::case::{Better, Candidate, Case, Metric, Path, Sample};
use crate::cpu::Pin;
use crate::load::{Load, Work};
use crate::options::Options;
use crate::pvnet;
use crate::wire::{SHARE, Wire};
use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use harness::{Device, configs};
use pv_net_common::names;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The case.
pub struct Programs;

impl Case for Programs {
    fn name(&self) -> &'static str {
        "programs"
    }

    fn about(&self) -> &'static str {
        "size of each eBPF program, and its run time a packet"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["bpftool"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("pv-net, one pool", || Programmed::new("internal")),
            Candidate::new("pv-net, two open pools", || Programmed::new("management")),
            Candidate::new("pv-net, published port behind a filter", || Ok(Programmed::of(published::pv_net(true)?))),
            Candidate::new("pv-net, device to container", || {
                Ok(Programmed::of(published_local::pv_net_device(false)?))
            }),
        ]
    }

    fn metrics(&self, _: &Options) -> Vec<Metric> {
        let run_time = |work| {
            let load = Load { work, pin: Pin::Same };
            let unit = "ns a packet";
            Metric {
                name: format!("run-time-{}", load.name()),
                unit,
                better: Better::Lower,
                load: Some(load),
                once: false,
            }
        };
        let mut all: Vec<Metric> = [Work::Rr, Work::Crr, Work::Stream(1), Work::Udp].map(run_time).into();
        all.push(Metric::size("size", "instructions"));
        all.push(Metric::size("verified", "instructions"));
        all.push(Metric::size("machine-code", "bytes"));
        all
    }
}

/// The programs on links; each packet passes one of them.
const ON_LINKS: [&str; 3] = [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK];

struct Programmed {
    wire: Wire,
    loaded: Loaded,
}

impl Programmed {
    fn new(pool: &str) -> Result<Self> {
        let device = Device::started(&configs::open_pools())?;
        let (client, server) = (device.attach("a", "internal")?, device.attach("b", pool)?);
        let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
        let pins = device.pins();
        wire.keep = Box::new((client, server, device));
        Ok(Self::of((wire, pins)))
    }

    fn of((wire, pins): (Wire, PathBuf)) -> Self {
        Self { wire, loaded: Loaded::below(&pins) }
    }

    /// Nanoseconds a packet under a load, of each program.
    fn run_time(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        // The kernel counts as long as this descriptor is open; counting ends with it, however this function ends.
        let counting = enable_stats(Stats::RunTime).context("run-time statistics")?;
        let (runs, before) = (self.loaded.each("run_cnt")?, self.loaded.each("run_time_ns")?);
        let sample = self.wire.measure(metric, time)?;
        let (ran, after) = (self.loaded.each("run_cnt")?, self.loaded.each("run_time_ns")?);
        drop(counting);
        let packets = sample.extras.get("packets").copied().context("packets were not counted")?;
        let on_links = ran.iter().filter(|(name, _)| ON_LINKS.contains(&name.as_str()));
        let runs: f64 = on_links.map(|(name, ran)| ran - runs.get(name).unwrap_or(&0.0)).sum();
        ensure!(runs >= packets * SHARE, "programs on links ran {runs} times for {packets} packets");
        let took = |(name, ns): (&String, &f64)| (name.clone(), (ns - before.get(name).unwrap_or(&0.0)) / packets);
        let parts: BTreeMap<String, f64> = after.iter().map(took).filter(|(_, ns)| *ns > 0.0).collect();
        // Counting makes the path slower, so only the proof of this sample is used, and not its speed.
        let mut extras = sample.extras;
        extras.retain(|name, _| *name == "witnessed");
        Ok(Sample { value: parts.values().sum(), parts, extras, foreign_secs: sample.foreign_secs })
    }
}

impl Path for Programmed {
    fn verify(&mut self) -> Result<()> {
        self.wire.verify()
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        let parts: BTreeMap<String, f64> = match metric.name.as_str() {
            // The size of the bytecode that the kernel compiles to machine code: 8 bytes for an instruction.
            "size" => self.loaded.each("bytes_xlated")?.into_iter().map(|(name, bytes)| (name, bytes / 8.0)).collect(),
            "verified" => self.loaded.verified()?,
            "machine-code" => self.loaded.each("bytes_jited")?,
            _ => return self.run_time(metric, time),
        };
        Ok(Sample { value: parts.values().sum(), parts, ..Sample::default() })
    }
}
