//! How a nearly full flow table changes the speed.

use crate::case::{Candidate, Case, Metric, Path, Sample};
use crate::load::in_namespace;
use crate::nets::PORT;
use crate::options::Options;
use crate::wire::Wire;
use crate::{interrupt, pvnet};
use anyhow::{Context, Result, ensure};
use harness::{Container, Device, configs};
use serde_json::{Value, json};
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The case.
pub struct FlowTable;

/// Entries of the flow table by default; each flow takes two.
const ENTRIES: usize = pv_net_common::flow::DEFAULT_FLOWS as usize;
/// So many flows fill nine tenths of the table.
const FILLED: usize = ENTRIES / 10 * 9 / 2;
/// So many flows fill the whole table: packets of new flows take the slow path.
const FULL: usize = ENTRIES / 2;
/// The port to which the flows that fill the table go.
const SINK: u16 = PORT + 1;
/// How long the filled table is used before it is filled anew. UDP flows end after 180 idle seconds; before that age
/// does not matter.
const FRESH: Duration = Duration::from_secs(90);

impl Case for FlowTable {
    fn name(&self) -> &'static str {
        "flow-table"
    }

    fn about(&self) -> &'static str {
        "between two containers of one pool, by how full the flow table is"
    }

    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("pv-net, empty table", || Filled::new(0)),
            Candidate::new("pv-net, 90 % full", || Filled::new(FILLED)),
            Candidate::new("pv-net, full table", || Filled::new(FULL)),
        ]
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&["rr-same", "crr-same", "udp-same"])
    }
}

struct Filled {
    flows: usize,
    since: Instant,
    wire: Wire,
    // Declared after the wire, which has only their paths, and so dropped after it.
    lab: Rc<(Container, Container, Device)>,
}

impl Filled {
    fn new(flows: usize) -> Result<Self> {
        let mut config = configs::two_pools();
        // One container may fill the whole table.
        config["network"]["pools"]["internal"]["max_flows"] = json!(8192);
        let device = Device::started(&config)?;
        let (client, server) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
        let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
        let lab = Rc::new((client, server, device));
        if flows == FULL {
            wire.shares.clear();
            wire.marks.push(("the counter of flows without room", pvnet::without_room(&lab.2)));
        }
        wire.keep = Box::new(Rc::clone(&lab));
        let filled = Self { flows, since: Instant::now(), wire, lab };
        filled.fill()?;
        Ok(filled)
    }

    /// One datagram there and one back from each of `flows` ports.
    fn fill(&self) -> Result<()> {
        let (client, server, _) = &*self.lab;
        let to = SocketAddr::new(server.v4.into(), SINK);
        let input = in_namespace(&server.ns.path(), || Ok(UdpSocket::bind(to)?))?;
        input.set_read_timeout(Some(Duration::from_secs(2)))?;
        let flows = self.flows as u16;
        in_namespace(&client.ns.path(), || {
            let mut byte = [0u8];
            for port in 20_000..20_000 + flows {
                interrupt::check()?;
                let out = UdpSocket::bind(SocketAddr::new(client.v4.into(), port))?;
                out.set_read_timeout(Some(Duration::from_secs(2)))?;
                out.send_to(b"x", to)?;
                let (_, from) = input.recv_from(&mut byte).with_context(|| format!("flow from port {port}"))?;
                input.send_to(b"y", from)?;
                out.recv(&mut byte).with_context(|| format!("answer to port {port}"))?;
            }
            Ok(())
        })
    }

    /// Fails unless the table has both entries of each flow. A few may be missing, since the measured flows need room
    /// too.
    fn is_filled(&self) -> Result<()> {
        let flows = self.lab.2.json(&["flows"])?;
        let ours = |flow: &&Value| {
            flow["state"] == "established" && flow["proto"] == "udp" && (flow["dport"] == SINK || flow["sport"] == SINK)
        };
        let found = flows.as_array().into_iter().flatten().filter(ours).count();
        let want = self.flows * 2;
        ensure!(found <= want && found >= want - want / 100, "{found} entries in the flow table, not {want}");
        Ok(())
    }
}

impl Path for Filled {
    fn verify(&mut self) -> Result<()> {
        self.is_filled()?;
        self.wire.verify()
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        if self.flows > 0 && self.since.elapsed() > FRESH {
            self.fill()?;
            self.since = Instant::now();
        }
        let sample = self.wire.measure(metric, time)?;
        self.is_filled()?;
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_path_that_is_slow_or_not_as_full_as_it_says_gives_no_figure() -> Result<()> {
        let mut full = Filled::new(FULL)?;
        full.verify()?;
        full.wire.shares.push(pvnet::fast_path(&full.lab.2));
        let why = full.verify().err().context("the slow path was taken for the fast one")?.to_string();
        ensure!(why.contains("pv-net's fast-path counted"), "{why}");
        full.flows += 100;
        ensure!(full.is_filled().is_err(), "{} flows fit into the table", full.flows);
        Ok(())
    }
}
