//! How many questions for names a server answers in a second, on one CPU. The load is on the other one.
//!
//! Every path has the same network: a bridge with the server on its gateway address, and 64 clients on it, each with a
//! link of its own. CoreDNS is not compared: neither Debian 12 nor crates.io has it.

mod servers;

use crate::case::{Better, Candidate, Case, Metric, Path, Sample};
use crate::cpu::{self, Mark, Pin};
use crate::load::names::{Asking, Client, Names, Responder};
use crate::options::Options;
use anyhow::{Context, Result, ensure};
use harness::Namespace;
use std::any::Any;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Questions by UDP.
pub struct Dns;

/// Questions by TCP.
pub struct DnsByTcp;

/// The first client's name.
const LOCAL: &str = "crowd-0.pv.local";
/// The domain of outside names.
const OUTSIDE: &str = "example.net";
/// The address that all names outside have.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GATEWAY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 3, 0, 1), 53);
/// How many questions the server beyond may get, or miss, of those that are for it.
const SHARE: f64 = 0.9;
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

impl Case for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn about(&self) -> &'static str {
        "names by UDP: answers of a server on one CPU"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["dnsmasq", "unbound", servers::AARDVARK, "unshare"]
    }

    fn paths(&self, options: &Options) -> Vec<Candidate> {
        let mut paths = paths(options, false);
        let n = clients(options);
        paths.push(Candidate::new("aardvark-dns (no cache)", move || servers::aardvark(n)));
        paths
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        metrics(options)
    }
}

impl Case for DnsByTcp {
    fn name(&self) -> &'static str {
        "dns-tcp"
    }

    fn about(&self) -> &'static str {
        "names by TCP, a connection for each question: answers of a server on one CPU"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["dnsmasq", "unbound"]
    }

    // aardvark-dns 1.4 has no TCP.
    fn paths(&self, options: &Options) -> Vec<Candidate> {
        paths(options, true)
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        metrics(options)
    }
}

fn clients(options: &Options) -> usize {
    if options.small { 4 } else { 64 }
}

fn paths(options: &Options, by_tcp: bool) -> Vec<Candidate> {
    let n = clients(options);
    let with = move |served: Result<Served>| served.map(|served| Served { by_tcp, ..served });
    vec![
        Candidate::new("one plain socket", move || with(servers::plain(n))),
        Candidate::new("pv-net", move || with(servers::pv_net(n))),
        Candidate::new("dnsmasq", move || with(servers::dnsmasq(n))),
        Candidate::new("unbound", move || with(servers::unbound(n))),
    ]
}

/// What is asked for, and by how many clients at a time.
fn metrics(options: &Options) -> Vec<Metric> {
    let counts = [clients(options), 1];
    let each = ["local", "cached", "random"].into_iter().flat_map(|what| counts.map(|n| format!("{what}-{n}")));
    let metric = |name| Metric { name, unit: "answers/s", better: Better::Higher, load: None, once: false };
    each.map(metric).collect()
}

/// A server with its clients, and the server that it asks.
struct Served {
    crowd: Namespace,
    clients: Vec<Client>,
    /// The processes of the server.
    processes: Vec<u32>,
    /// The threads of the server, if it is part of this process.
    threads: Vec<u32>,
    /// The server beyond the device; the plain socket asks none.
    beyond: Option<Responder>,
    has_cache: bool,
    by_tcp: bool,
    _keep: Box<dyn Any>,
}

impl Served {
    /// The load of a metric.
    fn asking(&self, metric: &str) -> Result<Asking<'_>> {
        let (what, count) = metric.rsplit_once('-').context("no count")?;
        let own = self.clients.first().context("no client")?.address;
        let public = if self.beyond.is_some() { PUBLIC } else { own };
        let (names, expected) = match what {
            "local" => (Names::One(LOCAL), own),
            "cached" => (Names::One("cached.example.net"), public),
            _ => (Names::Random(OUTSIDE), public),
        };
        let (ns, clients, at_a_time) = (self.crowd.path(), self.clients.as_slice(), count.parse()?);
        Ok(Asking { ns, clients, at_a_time, server: GATEWAY, by_tcp: self.by_tcp, names, expected })
    }

    /// Gives the server one CPU, and the server beyond the other one.
    fn pin(&self) -> Result<()> {
        let (client, server) = Pin::Split.cpus();
        self.servers().into_iter().try_for_each(|thread| cpu::pin(thread, &[server]))?;
        let mut beyond = self.beyond.iter().flat_map(Responder::threads);
        beyond.try_for_each(|thread| cpu::pin(*thread, &[client]))
    }

    /// The threads of the server.
    fn servers(&self) -> Vec<u32> {
        cpu::threads(&self.processes).into_iter().chain(self.threads.iter().copied()).collect()
    }

    /// CPU time of the server so far, in seconds.
    fn busy_secs(&self) -> f64 {
        self.servers().into_iter().map(cpu::run_secs).sum()
    }

    fn asked_beyond(&self) -> u64 {
        self.beyond.as_ref().map_or(0, Responder::asked)
    }

    /// Runs a load, and proves where its answers came from: the server beyond has got all questions of this load, or
    /// none.
    fn witnessed(&self, metric: &str, time: Duration) -> Result<(crate::load::Outcome, f64)> {
        let asking = self.asking(metric)?;
        let before = self.asked_beyond();
        let outcome = asking.run(time)?;
        let share = (self.asked_beyond() - before) as f64 / outcome.count as f64;
        let share = match asking.names {
            _ if self.beyond.is_none() => 1.0,
            Names::Random(_) => share.min(1.0),
            Names::One(LOCAL) => 1.0 - share,
            Names::One(_) if self.has_cache => 1.0 - share,
            Names::One(_) => share.min(1.0),
        };
        ensure!(share >= SHARE, "{metric}: {share:.2} of the answers came from where they should");
        Ok((outcome, share))
    }
}

impl Path for Served {
    fn verify(&mut self) -> Result<()> {
        let begin = Instant::now();
        // The first questions may be lost, while the server starts and addresses are resolved.
        for metric in ["local-1", "cached-1", "random-1"] {
            while let Err(why) = self.asking(metric)?.run(Duration::from_millis(50)) {
                ensure!(begin.elapsed() < PATIENCE, "{metric}: {why:#}");
            }
            self.witnessed(metric, Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        self.pin()?;
        let (mark, busy) = (Mark::now(Pin::Split, &self.processes)?, self.busy_secs());
        let (outcome, share) = self.witnessed(&metric.name, time)?;
        let (used, busy) = (mark.used(&self.processes)?, self.busy_secs() - busy);
        let mut extras = BTreeMap::from([("witnessed", share)]);
        extras.insert("cpu_us", busy * 1e6 / outcome.count as f64);
        extras.extend(outcome.p50_us.map(|v| ("p50_us", v)));
        extras.extend(outcome.p99_us.map(|v| ("p99_us", v)));
        extras.extend(outcome.lost.map(|v| ("lost", v)));
        Ok(Sample { value: outcome.rate, extras, foreign_secs: Some(used.foreign_secs), ..Sample::default() })
    }
}
