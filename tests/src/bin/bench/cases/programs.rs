//! What the eBPF programs cost: their size, and their run time a packet.

use crate::bpf::Loaded;
use crate::case::{Better, Candidate, Case, Metric, Path, Sample};
use crate::cpu::Pin;
use crate::load::{Load, Work};
use crate::options::Options;
use crate::pvnet;
use crate::wire::Wire;
use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use harness::{Device, configs};
use std::time::Duration;

/// The case.
pub struct Programs;

impl Case for Programs {
    fn name(&self) -> &'static str {
        "programs"
    }

    fn about(&self) -> &'static str {
        "size of the eBPF programs, and their run time a packet"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["bpftool"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("pv-net, one pool", || Programmed::new("internal")),
            Candidate::new("pv-net, two open pools", || Programmed::new("management")),
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
        all.push(Metric::size("machine-code", "bytes"));
        all
    }
}

struct Programmed {
    wire: Wire,
    loaded: Loaded,
}

impl Programmed {
    fn new(pool: &str) -> Result<Self> {
        let device = Device::started(&configs::open_pools())?;
        let (client, server) = (device.attach("a", "internal")?, device.attach("b", pool)?);
        let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
        let loaded = Loaded::below(&device.pins());
        wire.keep = Box::new((client, server, device));
        Ok(Self { wire, loaded })
    }

    /// Run time and number of runs so far.
    fn runs(&self) -> Result<(f64, f64)> {
        Ok((self.loaded.sum("run_time_ns")?, self.loaded.sum("run_cnt")?))
    }

    /// Nanoseconds a run under a load.
    fn run_time(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        // The kernel counts while this is open; nothing stays switched on, however this ends.
        let counting = enable_stats(Stats::RunTime).context("run-time statistics")?;
        let before = self.runs()?;
        let sample = self.wire.measure(metric, time)?;
        let after = self.runs()?;
        drop(counting);
        let (took, runs) = (after.0 - before.0, after.1 - before.1);
        ensure!(runs > 0.0, "no program ran");
        Ok(Sample { value: took / runs, foreign_secs: sample.foreign_secs, ..Sample::default() })
    }
}

impl Path for Programmed {
    fn verify(&mut self) -> Result<()> {
        self.wire.verify()
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        let value = match metric.name.as_str() {
            // What the kernel runs, before it is made machine code: 8 bytes each.
            "size" => self.loaded.sum("bytes_xlated")? / 8.0,
            "machine-code" => self.loaded.sum("bytes_jited")?,
            _ => return self.run_time(metric, time),
        };
        Ok(Sample { value, ..Sample::default() })
    }
}
