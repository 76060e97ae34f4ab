//! Rules of the policy.

use super::{ContainerName, PoolName, RuleName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A rule of `network.policies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name; no two rules share one.
    pub name: Option<RuleName>,
    /// Who sends.
    pub from: Selector,
    /// Who receives.
    pub to: Selector,
    /// The traffic that it is about; empty means all traffic.
    pub ports: Vec<PortMatch>,
    /// What is done.
    pub action: Action,
}

/// The senders or receivers that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// A container. It need not exist.
    Container(ContainerName),
    /// The containers with an interface in a pool.
    Pool(PoolName),
    /// Every address in a network, whoever has it. It has no host bits and is not IPv4-mapped.
    Cidr(IpNetwork),
    /// The device's own addresses.
    Host,
    /// Every address that belongs to no container, no pool and not to the device.
    World,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) => write!(f, "container {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Cidr(net) => write!(f, "{net}"),
            Self::Host => f.write_str("host"),
            Self::World => f.write_str("world"),
        }
    }
}

/// What a rule does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let pass.
    Allow,
    /// Refuse; wins over every allow.
    Deny,
}

impl Action {
    /// Its name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Traffic that a rule is about: `tcp/5432`, `udp/1000-2000`, `tcp`, `icmp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PortMatch {
    /// TCP to one of these ports, or to any.
    Tcp(Option<RangeInclusive<u16>>),
    /// UDP to one of these ports, or to any.
    Udp(Option<RangeInclusive<u16>>),
    /// ICMP and ICMPv6.
    Icmp,
}

impl TryFrom<String> for PortMatch {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortMatch> for String {
    fn from(ports: PortMatch) -> Self {
        ports.to_string()
    }
}

const FORM: &str = "as in \"tcp/5432\", \"udp/1000-2000\", \"tcp\" or \"icmp\"";

impl FromStr for PortMatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (proto, ports) = match text.split_once('/') {
            Some((proto, ports)) => (proto, Some(ports)),
            None => (text, None),
        };
        match proto {
            "tcp" => Ok(Self::Tcp(ports.map(range).transpose()?)),
            "udp" => Ok(Self::Udp(ports.map(range).transpose()?)),
            "icmp" if ports.is_none() => Ok(Self::Icmp),
            "icmp" => Err("icmp has no ports: it is just \"icmp\"".to_owned()),
            _ => Err(format!("{proto:?} is not tcp, udp or icmp: ports are written {FORM}")),
        }
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |t: &str| match t.parse::<u16>() {
        Ok(0) => Err("port 0 is not a port".to_owned()),
        Ok(n) if t.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(format!("{t:?} is not a port from 1 to 65535: ports are written {FORM}")),
    };
    let range = match text.split_once('-') {
        None => port(text).map(|p| p..=p)?,
        Some((first, last)) => port(first)?..=port(last)?,
    };
    if range.is_empty() { Err(format!("the range {text} is empty: it runs backwards")) } else { Ok(range) }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (proto, ports) = match self {
            Self::Tcp(ports) => ("tcp", ports),
            Self::Udp(ports) => ("udp", ports),
            Self::Icmp => ("icmp", &None),
        };
        match ports {
            None => f.write_str(proto),
            Some(range) if range.start() == range.end() => write!(f, "{proto}/{}", range.start()),
            Some(range) => write!(f, "{proto}/{}-{}", range.start(), range.end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports() {
        for (text, want) in [
            ("tcp/5432", Ok(PortMatch::Tcp(Some(5432..=5432)))),
            ("udp/1000-2000", Ok(PortMatch::Udp(Some(1000..=2000)))),
            ("tcp/1-65535", Ok(PortMatch::Tcp(Some(1..=65535)))),
            ("tcp", Ok(PortMatch::Tcp(None))),
            ("udp", Ok(PortMatch::Udp(None))),
            ("icmp", Ok(PortMatch::Icmp)),
            ("icmp/8", Err("no ports")),
            ("icmpv6", Err("not tcp")),
            ("sctp/1", Err("not tcp")),
            ("TCP/1", Err("not tcp")),
            ("5432/tcp", Err("not tcp")),
            ("tcp/", Err("not a port")),
            ("tcp/0", Err("port 0")),
            ("tcp/+1", Err("not a port")),
            ("tcp/65536", Err("not a port")),
            ("tcp/20-10", Err("backwards")),
            ("tcp/1-2-3", Err("not a port")),
            ("", Err("not tcp")),
        ] {
            match (text.parse::<PortMatch>(), want) {
                (Ok(got), Ok(want)) => assert_eq!((got.to_string().as_str(), &got), (text, &want)),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_ports_or_an_error(text in "(tcp|udp|icmp|x)?[0-9/-]{0,12}") {
            if let Ok(ports) = text.parse::<PortMatch>() {
                prop_assert_eq!(ports.to_string().parse::<PortMatch>(), Ok(ports));
            }
        }
    }
}
