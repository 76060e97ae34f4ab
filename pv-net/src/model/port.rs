//! Published ports.

use super::IfName;
use pv_net_common::ip_proto::{IPPROTO_TCP, IPPROTO_UDP};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `[HOST:]HOST_PORTS[:CONTAINER_PORTS][/tcp|/udp][@INTERFACE]`: ports of the device that lead to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// TCP or UDP.
    pub transport: Transport,
    /// The device's address that it is for; `None` means all addresses of both families.
    pub host: Option<IpAddr>,
    /// Ports of the device.
    pub host_ports: RangeInclusive<u16>,
    /// The container's first port; the others follow one by one.
    pub container_port: u16,
    /// The container's interface that they lead to; that with the default route unless set.
    pub interface: Option<IfName>,
}

impl PortMapping {
    /// The container's ports.
    pub fn container_ports(&self) -> impl Iterator<Item = u16> + use<> {
        let more = self.host_ports.end() - self.host_ports.start();
        self.container_port..=self.container_port.saturating_add(more)
    }
}

impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, interface) = match text.split_once('@') {
            None => (text, None),
            Some((rest, name)) => (rest, Some(name.parse().map_err(|e| format!("interface {name:?}: {e}"))?)),
        };
        let (rest, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((rest, "tcp")) => (rest, Transport::Tcp),
            Some((rest, "udp")) => (rest, Transport::Udp),
            Some((_, other)) => return Err(format!("the protocol is tcp or udp, not {other:?}")),
        };
        let (host, rest) = split_host(rest)?;
        if let Some(why) = host.and_then(unreachable) {
            return Err(why);
        }
        let (host_ports, container_ports) = match rest.split_once(':') {
            Some((h, c)) => (ports(h)?, ports(c)?),
            None => (ports(rest)?, ports(rest)?),
        };
        let width = |r: &RangeInclusive<u16>| r.end() - r.start();
        if width(&host_ports) != width(&container_ports) {
            return Err(format!(
                "{} ports of the device cannot lead to {} of the container",
                u32::from(width(&host_ports)) + 1,
                u32::from(width(&container_ports)) + 1
            ));
        }
        Ok(Self { transport, host, host_ports, container_port: *container_ports.start(), interface })
    }
}

/// Why nobody connects to the address.
fn unreachable(host: IpAddr) -> Option<String> {
    let is_link_local = matches!(host, IpAddr::V6(host) if host.is_unicast_link_local());
    if host.is_multicast() || host == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some(format!("{host} is the address of a group, and ports are published on the device's own"));
    }
    is_link_local.then(|| format!("{host} is another device's on each link: leave it out, or take another address"))
}

/// Splits `[::1]:80:80` or `127.0.0.1:80:80` into address and ports; the address may be missing. The unspecified
/// address of a family stands for all of its addresses.
fn split_host(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (addr, rest) = rest.split_once("]:").ok_or("an IPv6 address ends with \"]:\"")?;
        let addr: Ipv6Addr = addr.parse().map_err(|_| format!("{addr:?} is not an IPv6 address"))?;
        return Ok((Some(addr.into()), rest));
    }
    match text.split(':').count() {
        1 | 2 => Ok((None, text)),
        3 => {
            let (addr, rest) = text.split_once(':').ok_or("no colon")?;
            let addr: Ipv4Addr = addr.parse().map_err(|_| format!("{addr:?} is not an IPv4 address"))?;
            Ok((Some(addr.into()), rest))
        }
        _ => Err("an IPv6 address stands in brackets, as in [::1]:8080:80".to_owned()),
    }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |t: &str| match t.parse::<u16>() {
        Ok(0) => Err("port 0 is not a port".to_owned()),
        Ok(n) if t.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(format!("{t:?} is not a port: a number from 1 to 65535")),
    };
    match text.split_once('-') {
        None => port(text).map(|p| p..=p),
        Some((a, b)) => {
            let range = port(a)?..=port(b)?;
            if range.is_empty() { Err(format!("the range {text} runs backwards")) } else { Ok(range) }
        }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(IpAddr::V4(a)) => write!(f, "{a}:")?,
            Some(IpAddr::V6(a)) => write!(f, "[{a}]:")?,
            None => {}
        }
        let (first, last) = (*self.host_ports.start(), *self.host_ports.end());
        if first == last {
            write!(f, "{first}:{}/{}", self.container_port, self.transport)?;
        } else {
            let end = self.container_port + (last - first);
            write!(f, "{first}-{last}:{}-{end}/{}", self.container_port, self.transport)?;
        }
        self.interface.iter().try_for_each(|name| write!(f, "@{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mappings() {
        for (text, want) in [
            ("8080:80/tcp", Ok("8080:80/tcp")),
            ("8080:80", Ok("8080:80/tcp")),
            ("53/udp", Ok("53:53/udp")),
            ("[::]:5353:53/udp", Ok("[::]:5353:53/udp")),
            ("127.0.0.1:9000-9009:9000-9009/tcp", Ok("127.0.0.1:9000-9009:9000-9009/tcp")),
            ("1-65535", Ok("1-65535:1-65535/tcp")),
            ("8080:80@eth1", Ok("8080:80/tcp@eth1")),
            ("[::1]:53/udp@up@2", Ok("[::1]:53:53/udp@up@2")),
            ("80@", Err("interface \"\"")),
            ("80@a/b", Err("'/'")),
            ("0:80", Err("port 0")),
            ("80:80/sctp", Err("tcp or udp")),
            ("80-81:80", Err("2 ports")),
            ("81-80", Err("backwards")),
            ("65536", Err("not a port")),
            ("+80", Err("not a port")),
            ("::1:80:80", Err("brackets")),
            ("[::1:80:80", Err("]:")),
            ("1.2.3:80:80", Err("not an IPv4")),
            ("", Err("not a port")),
            ("224.0.0.1:80:80", Err("of a group")),
            ("255.255.255.255:80:80", Err("of a group")),
            ("[ff02::1]:80:80", Err("of a group")),
            ("[fe80::1]:80:80", Err("on each link")),
        ] {
            match (text.parse::<PortMapping>(), want) {
                (Ok(m), Ok(want)) => assert_eq!(m.to_string(), want, "{text}"),
                (Err(e), Err(want)) => assert!(e.contains(want), "{text}: {e}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_mapping_or_an_error(text in "[0-9:/\\[\\].tcpud@-]{0,24}") {
            if let Ok(m) = text.parse::<PortMapping>() {
                prop_assert_eq!(m.to_string().parse::<PortMapping>(), Ok(m));
            }
        }
    }
}
