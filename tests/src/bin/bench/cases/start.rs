//! How long the daemon takes to start, and how much memory it uses. A restart takes over what is pinned. A start on a
//! new device, or after another build, loads and verifies the programs.

use super::scale::{crowd, wide_pool};
use crate::bpf::Loaded;
use crate::case::{Candidate, Case, Metric, Path, Sample};
use crate::options::Options;
use anyhow::{Context, Result, ensure};
use harness::unix_http;
use harness::{Device, Namespace, Process};
use nix::sys::signal::Signal;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The case.
pub struct Start;

impl Case for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn about(&self) -> &'static str {
        "the daemon starts, for the first time and with containers to adopt; its memory"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["bpftool"]
    }

    fn paths(&self, options: &Options) -> Vec<Candidate> {
        let n = if options.small { 5 } else { 200 };
        vec![
            Candidate::new("pv-net, first start", || Starting::new(Before::Nothing, 0)),
            Candidate::new("pv-net, restart, no containers", || Starting::new(Before::Same, 0)),
            Candidate::new(format!("pv-net, restart, {n} containers"), move || Starting::new(Before::Same, n)),
            Candidate::new(format!("pv-net, another build, {n} containers"), move || Starting::new(Before::Another, n)),
        ]
    }

    fn metrics(&self, _: &Options) -> Vec<Metric> {
        vec![
            Metric::time("start", "ms until it answers"),
            Metric::size("rss", "MiB"),
            Metric::size("map-memory", "MiB"),
        ]
    }
}

/// What the daemon finds when it starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// A device on which pv-net never ran.
    Nothing,
    /// What a daemon of the same build left.
    Same,
    /// What a daemon of another build left: its programs cannot be taken over.
    Another,
}

struct Starting {
    before: Before,
    containers: usize,
    daemon: Option<Process>,
    device: Device,
    _crowd: Vec<Namespace>,
}

impl Starting {
    fn new(before: Before, containers: usize) -> Result<Self> {
        let mut device = Device::started(&wide_pool())?;
        let crowd = crowd(&device, containers)?;
        device.stop(Signal::SIGTERM)?;
        let mut starting = Self { before, containers, daemon: None, device, _crowd: crowd };
        starting.start()?;
        Ok(starting)
    }

    /// From the program's start until its API answers.
    fn start(&mut self) -> Result<Duration> {
        self.end()?;
        if self.before == Before::Another {
            let programs = self.device.pins().join("programs");
            let pinned = std::fs::read_dir(&programs)?.next().context("no programs are pinned")??;
            std::fs::rename(pinned.path(), programs.join("0123456789abcdef"))?;
        }
        let mut command = self.device.command();
        command.arg("run").stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        self.daemon = Some(Process::start(&mut command)?);
        let socket = self.device.file("run").join("api.sock");
        loop {
            match unix_http::ask(&socket, "GET", "/health", "") {
                Ok(_) => return Ok(start.elapsed()),
                Err(why) if start.elapsed() > Duration::from_secs(30) => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_micros(500)),
            }
        }
    }

    /// Ends the running daemon, and removes what the next one must not find.
    fn end(&mut self) -> Result<()> {
        if let Some(mut old) = self.daemon.take() {
            old.signal(Signal::SIGTERM)?;
            harness::eventually(Duration::from_secs(10), || {
                ensure!(old.has_ended()?, "the daemon does not end");
                Ok(())
            })?;
        }
        if self.before == Before::Nothing {
            self.device.cli(&["down"]).ok()?;
        }
        Ok(())
    }

    /// Resident memory of the daemon that runs.
    fn rss_mib(&self) -> Result<f64> {
        let pid = self.daemon.as_ref().context("no daemon")?.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Path for Starting {
    fn verify(&mut self) -> Result<()> {
        let listed = self.device.json(&["containers"])?;
        let attached = listed.as_array().into_iter().flatten().filter(|c| c["state"] == "attached").count();
        ensure!(attached == self.containers, "{attached} containers were adopted, not {}", self.containers);
        let adopted = &self.device.json(&["status"])?["adopted"];
        ensure!(adopted["maps"] == (self.before != Before::Nothing), "adopted {adopted}");
        ensure!(adopted["programs"] == (self.before == Before::Same), "adopted {adopted}");
        Ok(())
    }

    fn measure(&mut self, metric: &Metric, _: Duration) -> Result<Sample> {
        let value = match metric.name.as_str() {
            "start" => {
                let took = self.start()?;
                self.verify()?;
                took.as_secs_f64() * 1000.0
            }
            "rss" => self.rss_mib()?,
            _ => Loaded::below(&self.device.pins()).map_bytes()? / f64::from(1 << 20),
        };
        Ok(Sample { value, ..Sample::default() })
    }
}
