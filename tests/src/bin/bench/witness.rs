//! Counters that tell which way packets went.

use crate::load::{Work, in_namespace};
use anyhow::{Context, Result};
use harness::Namespace;
use std::path::PathBuf;

/// Counts the packets that took a path.
pub struct Witness {
    what: String,
    read: Box<dyn Fn(Work) -> Result<u64>>,
}

impl Witness {
    /// A counter with a name and a function that reads it.
    pub fn new(what: impl Into<String>, read: impl Fn(Work) -> Result<u64> + 'static) -> Self {
        Self { what: what.into(), read: Box::new(read) }
    }

    /// The packets counted so far, of the kind that `work` sends.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn count(&self, work: Work) -> Result<u64> {
        (self.read)(work).with_context(|| self.what.clone())
    }

    /// The counter's name.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Packets that these links have received, such as the ports of a bridge.
    pub fn received(what: &str, links: Vec<Link>) -> Self {
        Self::new(what, move |_| links.iter().map(Link::received).sum())
    }

    /// Packets that a proxy has handled: what it received on both sides. It may pass them on as fewer, larger ones.
    pub fn proxied(links: Vec<Link>) -> Self {
        Self::received("the proxy's links", links)
    }

    /// IPv4 packets that a namespace has routed.
    pub fn routed(ns: &Namespace) -> Self {
        let path = ns.path();
        Self::new("IPv4 forwarding", move |_| {
            let text = in_namespace(&path, || Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
            let mut lines = text.lines().filter(|l| l.starts_with("Ip:"));
            let (names, values) = (lines.next().context("no Ip: line")?, lines.next().context("no Ip: values")?);
            let mut pairs = names.split(' ').zip(values.split(' '));
            let (_, value) = pairs.find(|(name, _)| *name == "ForwDatagrams").context("no ForwDatagrams")?;
            Ok(value.parse()?)
        })
    }

    /// IPv6 packets that a namespace has routed.
    pub fn routed6(ns: &Namespace) -> Self {
        let path = ns.path();
        Self::new("IPv6 forwarding", move |_| {
            let text = in_namespace(&path, || Ok(std::fs::read_to_string("/proc/thread-self/net/snmp6")?))?;
            let line = text.lines().find_map(|l| l.strip_prefix("Ip6OutForwDatagrams"));
            Ok(line.context("no Ip6OutForwDatagrams")?.trim().parse()?)
        })
    }

    /// Packets of all counters in a chain of nft's table `inet bench`.
    pub fn nft(ns: &Namespace, chain: &'static str) -> Self {
        let (path, what) = (ns.path(), format!("nft chain {chain}"));
        Self::new(what, move |_| {
            let said = run_in(&path, &["nft", "list", "chain", "inet", "bench", chain])?;
            let mut words = said.split_whitespace();
            let mut sum = 0;
            while let Some(word) = words.next() {
                if word == "packets" {
                    sum += words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
                }
            }
            Ok(sum)
        })
    }

    /// Packets of all rules of a chain of iptables whose target is `target`.
    pub fn iptables(ns: &Namespace, table: &'static str, chain: &'static str, target: &'static str) -> Self {
        let (path, what) = (ns.path(), format!("iptables {table} {chain} {target}"));
        Self::new(what, move |_| {
            let said = run_in(&path, &["iptables", "-w", "-t", table, "-vnxL", chain])?;
            let rules = said.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
            let ours = rules.filter(|words| words.get(2) == Some(&target));
            Ok(ours.filter_map(|words| words.first()?.parse::<u64>().ok()).sum())
        })
    }
}

fn run_in(ns: &std::path::Path, words: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new("nsenter");
    harness::output(command.arg(format!("--net={}", ns.display())).arg("--").args(words))
}

/// A link in a namespace, for its counters.
#[derive(Clone, Debug)]
pub struct Link {
    ns: PathBuf,
    name: String,
}

impl Link {
    /// A link by its name.
    #[must_use]
    pub fn new(ns: &Namespace, name: impl Into<String>) -> Self {
        Self { ns: ns.path(), name: name.into() }
    }

    /// Packets that it has sent.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn sent(&self) -> Result<u64> {
        self.column(9)
    }

    /// Packets that it has received.
    ///
    /// # Errors
    /// As above.
    pub fn received(&self) -> Result<u64> {
        self.column(1)
    }

    /// A column of `/proc/net/dev`, 0 being the first after the name.
    fn column(&self, column: usize) -> Result<u64> {
        let text = in_namespace(&self.ns, || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let line = text.lines().find_map(|l| l.trim_start().strip_prefix(&format!("{}:", self.name)));
        let line = line.with_context(|| format!("no link {}", self.name))?;
        Ok(line.split_whitespace().nth(column).context("a short line in /proc/net/dev")?.parse()?)
    }
}
