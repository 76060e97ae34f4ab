//! How long it takes until a container has its network, and until it is gone: by commands, by the programs that container
//! engines start for it, and by pv-net.

mod programs;

use crate::case::{Candidate, Case, Metric, Path, Sample};
use crate::interrupt;
use crate::load::in_namespace;
use crate::options::Options;
use crate::stats::quantile;
use crate::witness::Link;
use anyhow::{Context, Result, bail, ensure};
use harness::{Device, Namespace, configs, unix_http};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The case.
pub struct Attach;

/// The pool's gateway: what is pinged.
const GATEWAY: [u8; 4] = [10, 0, 3, 1];
/// How many attaches a measurement has at least.
const LEAST: usize = 3;

impl Case for Attach {
    fn name(&self) -> &'static str {
        "attach"
    }

    fn about(&self) -> &'static str {
        "a container gets its network, and loses it"
    }

    fn needs(&self) -> &'static [&'static str] {
        &[programs::NETAVARK, programs::BRIDGE]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("ip commands, bridge", Commands::new),
            Candidate::new("netavark", programs::Netavark::new),
            Candidate::new("CNI plugin bridge", programs::Cni::new),
            Candidate::new("pv-net, hook of an OCI runtime", programs::Hook::new),
            Candidate::new("pv-net", PvNet::new),
        ]
    }

    fn metrics(&self, _: &Options) -> Vec<Metric> {
        vec![
            Metric::time("attach", "ms until the answer"),
            Metric::time("first-ping", "ms until the first ping"),
            Metric::time("detach", "ms"),
        ]
    }
}

/// The program that attaches and detaches.
trait Hand {
    /// What the container has before its network: nothing, unless it takes a process to attach it.
    fn prepare(&self, _: &Namespace) -> Result<()> {
        Ok(())
    }
    fn attach(&self, ns: &Namespace) -> Result<()>;
    fn detach(&self, ns: &Namespace) -> Result<()>;
    /// Fails unless it says that the container is there.
    fn knows_it(&self) -> Result<()>;
    /// How many packets of containers it has counted: a ping that was answered another way did not use the attached
    /// network.
    fn seen(&self) -> Result<u64>;
}

/// Fails unless the container's network exists, both in the kernel and in `hand`'s view.
fn is_there(hand: &impl Hand, ns: &Namespace) -> Result<()> {
    has_address(ns)?;
    hand.knows_it()
}

/// Fails unless nothing is left of the container's network.
fn is_gone(hand: &impl Hand, ns: &Namespace) -> Result<()> {
    ensure!(ns.ip("-4 addr show dev eth0").is_err(), "eth0 is still there after the detach");
    ensure!(hand.knows_it().is_err(), "the container is still known after the detach");
    Ok(())
}

impl<T: Hand> Path for T {
    fn verify(&mut self) -> Result<()> {
        let (ns, pinger) = fresh()?;
        is_gone(self, &ns).context("before the attach")?;
        self.prepare(&ns)?;
        self.attach(&ns)?;
        is_there(self, &ns)?;
        let before = self.seen()?;
        ping(&pinger)?;
        ensure!(self.seen()? > before, "the ping went another way");
        self.detach(&ns)?;
        is_gone(self, &ns)
    }

    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample> {
        let mut times = Vec::new();
        let begin = Instant::now();
        while times.len() < LEAST || begin.elapsed() < time {
            interrupt::check()?;
            let (ns, pinger) = fresh()?;
            self.prepare(&ns)?;
            let start = Instant::now();
            self.attach(&ns)?;
            let attached = start.elapsed();
            ping(&pinger)?;
            let pinged = start.elapsed();
            let start = Instant::now();
            self.detach(&ns)?;
            let detached = start.elapsed();
            // The answer must not come before the work is done.
            is_gone(self, &ns)?;
            let wanted = match metric.name.as_str() {
                "attach" => attached,
                "first-ping" => pinged,
                _ => detached,
            };
            times.push(wanted.as_secs_f64() * 1000.0);
        }
        let extreme = |share| quantile(&times, share).context("no time was taken");
        let extras = BTreeMap::from([("p99", extreme(0.99)?), ("worst", extreme(1.0)?)]);
        Ok(Sample { value: extreme(0.5)?, extras, ..Sample::default() })
    }
}

/// A namespace, and a socket in it that can ping.
fn fresh() -> Result<(Namespace, OwnedFd)> {
    let ns = Namespace::new("new")?;
    let pinger = in_namespace(&ns.path(), || {
        let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(2))?;
        Ok(fd)
    })?;
    Ok((ns, pinger))
}

/// Pings the gateway until it answers.
fn ping(pinger: &OwnedFd) -> Result<()> {
    // Echo request, identifier 7, sequence 1, and its checksum.
    let request = [8u8, 0, 0xf7, 0xf7, 0, 7, 0, 1];
    let to = SockaddrIn::new(GATEWAY[0], GATEWAY[1], GATEWAY[2], GATEWAY[3], 0);
    let start = Instant::now();
    let mut buffer = [0u8; 128];
    while start.elapsed() < Duration::from_secs(3) {
        // Sending fails until there is a route; the loop waits for it.
        if sendto(pinger.as_raw_fd(), &request, &to, MsgFlags::empty()).is_err() {
            continue;
        }
        let answer = nix::sys::socket::recv(pinger.as_raw_fd(), &mut buffer, MsgFlags::empty());
        if answer.is_ok_and(|n| n == 28 && buffer[12..16] == GATEWAY && buffer[20] == 0) {
            return Ok(());
        }
    }
    bail!("the gateway does not answer a ping")
}

fn has_address(ns: &Namespace) -> Result<()> {
    let said = ns.ip("-4 addr show dev eth0")?;
    ensure!(said.contains("10.0.3."), "{said}");
    Ok(())
}

/// The commands that a script would run: no leases, no IPv6, no guard.
struct Commands {
    device: Namespace,
}

impl Commands {
    fn new() -> Result<Self> {
        let device = Namespace::new("dev")?;
        device.ip("link add docker0 type bridge")?;
        device.ip("addr add 10.0.3.1/24 dev docker0")?;
        device.ip("link set docker0 up")?;
        Ok(Self { device })
    }
}

impl Hand for Commands {
    fn attach(&self, ns: &Namespace) -> Result<()> {
        self.device.connect(("c0", &[]), ns, ("eth0", &["10.0.3.2/24"]))?;
        self.device.ip("link set c0 master docker0")?;
        ns.ip("route add default via 10.0.3.1").map(drop)
    }

    fn detach(&self, _: &Namespace) -> Result<()> {
        self.device.ip("link del c0").map(drop)
    }

    fn knows_it(&self) -> Result<()> {
        self.device.ip("link show c0").map(drop)
    }

    fn seen(&self) -> Result<u64> {
        Link::new(&self.device, "docker0").received()
    }
}

/// The daemon's API, used as a runtime would use it.
struct PvNet {
    device: Device,
}

impl PvNet {
    fn new() -> Result<Self> {
        Ok(Self { device: Device::started(&configs::two_pools())? })
    }

    fn ask(&self, method: &str, body: &str) -> Result<()> {
        unix_http::ask(&self.device.file("run").join("api.sock"), method, "/containers/new", body).map(drop)
    }
}

impl Hand for PvNet {
    fn attach(&self, ns: &Namespace) -> Result<()> {
        self.ask("PUT", &json!({"pool": "internal", "netns": ns.path()}).to_string())
    }

    fn detach(&self, _: &Namespace) -> Result<()> {
        self.ask("DELETE", "")
    }

    fn knows_it(&self) -> Result<()> {
        let state = self.device.json(&["containers"])?[0]["state"].clone();
        ensure!(state == "attached", "the daemon says {state}");
        Ok(())
    }

    fn seen(&self) -> Result<u64> {
        self.device.counters()?.get("to-stack").copied().context("no counter to-stack")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attaches, but only claims to detach.
    struct Lazy(Commands);

    impl Hand for Lazy {
        fn attach(&self, ns: &Namespace) -> Result<()> {
            self.0.attach(ns)
        }

        fn detach(&self, _: &Namespace) -> Result<()> {
            Ok(())
        }

        fn knows_it(&self) -> Result<()> {
            self.0.knows_it()
        }

        fn seen(&self) -> Result<u64> {
            self.0.seen()
        }
    }

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_detach_that_leaves_the_link_gives_no_figure() -> Result<()> {
        Commands::new()?.verify()?;
        let mut lazy = Lazy(Commands::new()?);
        let why = lazy.verify().err().context("it was taken for a detach")?.to_string();
        ensure!(why.contains("eth0 is still there"), "{why}");
        Ok(())
    }
}
