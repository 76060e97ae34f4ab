//! How many clients a DHCP server gives an address in a second, and how soon one hears of its address.
//!
//! Every exchange is that of a new client, so each one is a new lease on the server's disk. The clients are behind four
//! ports of the server's bridge. That is perfdhcp's load, which itself cannot be used: it plays a relay agent, and pv-net
//! answers none.

mod clients;
mod servers;
mod v4;
mod v6;

use crate::case::{Better, Candidate, Case, Metric, Path, Sample};
use crate::options::Options;
use anyhow::{Result, ensure};
use clients::{Clients, Found};
use servers::{SHARED_MACS, Server};
use std::collections::BTreeMap;
use std::time::Duration;

/// Exchanges that are under way at a time. With each server these are enough for all that it can do.
const WINDOW: usize = 64;
/// How many clients ask one after the other, at least, when the first answer is timed.
const LEAST: usize = 5;

/// The case.
pub struct Dhcp;

impl Case for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn about(&self) -> &'static str {
        "new clients are given addresses by DHCP and DHCPv6, with their leases on disk"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kea-dhcp4", "kea-dhcp6", "dnsmasq"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("kea, memfile", || Serving::new(Server::kea()?)),
            Candidate::new("dnsmasq, without its ping", || Serving::new(Server::dnsmasq()?)),
            Candidate::new("pv-net", || Serving::new(Server::pv_net()?)),
        ]
    }

    fn metrics(&self, _: &Options) -> Vec<Metric> {
        let rate = |name: &str| Metric {
            name: name.to_owned(),
            unit: "exchanges/s",
            better: Better::Higher,
            load: None,
            once: false,
        };
        vec![
            rate("dora"),
            Metric::time("first-offer", "ms until a new client's first OFFER"),
            rate("sarr"),
            Metric::time("first-advertise", "ms until a new client's first ADVERTISE"),
        ]
    }
}

/// A server and its clients.
struct Serving {
    v4: Clients<v4::Exchange>,
    v6: Clients<v6::Exchange>,
    _server: Server,
}

impl Serving {
    fn new(server: Server) -> Result<Self> {
        let v4 = Clients::new(&server.clients, v4::Exchange)?;
        let v6 = Clients::new(&server.clients, v6::Exchange { macs: server.macs })?;
        Ok(Self { v4, v6, _server: server })
    }

    fn run(&mut self, name: &str, window: usize, time: Duration, least: usize) -> Result<Found> {
        match name {
            "dora" | "first-offer" => self.v4.run(window, time, least),
            _ => self.v6.run(window, time, least),
        }
    }
}

impl Path for Serving {
    fn verify(&mut self) -> Result<()> {
        // A server may answer later than its program says that it has started.
        for name in ["dora", "sarr"] {
            harness::eventually(Duration::from_secs(20), || {
                let found = self.run(name, 1, Duration::ZERO, 1)?;
                ensure!(found.done == 1, "{name}: a client got no address");
                Ok(())
            })?;
        }
        self.run("sarr", 1, Duration::ZERO, SHARED_MACS as usize).map(drop)
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        let is_rate = metric.better == Better::Higher;
        let (window, least) = if is_rate { (WINDOW, WINDOW) } else { (1, LEAST) };
        let found = self.run(&metric.name, window, time, least)?;
        ensure!(found.done > 0, "{}: no client got an address", metric.name);
        let mut extras = BTreeMap::from([("lost", found.lost as f64)]);
        let times = if is_rate { &found.whole } else { &found.first };
        extras.extend(times.quantile_us(0.5).map(|v| ("p50_us", v)));
        extras.extend(times.quantile_us(0.99).map(|v| ("p99_us", v)));
        let value = if is_rate { found.rate } else { times.quantile_us(0.5).unwrap_or_default() / 1000.0 };
        Ok(Sample { value, extras, ..Sample::default() })
    }
}
