//! Servers for names that are not the device's.

use super::InvalidName;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::str::FromStr;
use std::sync::Arc;

/// The port of DNS over UDP and TCP.
const PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858).
const TLS_PORT: u16 = 853;
const TLS: &str = "tls://";

/// A server for names: `ADDRESS`, or with TLS `tls://ADDRESS#NAME` or `tls://ADDRESS:PORT#NAME`, where an IPv6 address is
/// in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameServer {
    /// Its address and port.
    pub address: SocketAddr,
    /// The name in its certificate, in lower case; it is asked without TLS where there is none.
    pub tls: Option<Arc<str>>,
}

impl NameServer {
    /// The server at `address` that is asked without TLS.
    #[must_use]
    pub const fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

impl FromStr for NameServer {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let wrong = |why: &str| InvalidName(why.to_owned());
        let Some(rest) = text.strip_prefix(TLS) else {
            let address: IpAddr = text.parse().map_err(|_| {
                wrong("is neither an address such as 192.0.2.53, nor a server with TLS such as tls://192.0.2.53#dns.example")
            })?;
            return Ok(Self::plain(SocketAddr::new(address, PORT)));
        };
        let (place, name) = rest.split_once('#').filter(|(_, name)| !name.is_empty()).ok_or_else(|| {
            wrong("has no name: the server's certificate is checked by it, as in tls://192.0.2.53#dns.example")
        })?;
        let address = tls_address(place).ok_or_else(|| {
            wrong("has no address in front of the #: such as 192.0.2.53, 192.0.2.53:853, [2001:db8::53] or [2001:db8::53]:853")
        })?;
        if !is_host_name(name) {
            return Err(wrong("has behind the # no name of a host: labels of 1 to 63 letters, digits and dashes"));
        }
        Ok(Self { address, tls: Some(name.to_ascii_lowercase().into()) })
    }
}

/// The address with its port, which is that of DNS over TLS unless it is named.
fn tls_address(text: &str) -> Option<SocketAddr> {
    let whole = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match whole {
        Some(inside) => SocketAddrV6::new(inside.parse::<Ipv6Addr>().ok()?, TLS_PORT, 0, 0).into(),
        None => match text.parse::<Ipv4Addr>() {
            Ok(address) => SocketAddrV4::new(address, TLS_PORT).into(),
            Err(_) => text.parse::<SocketAddr>().ok()?,
        },
    };
    let has_scope = matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
    (address.port() != 0 && !has_scope).then_some(address)
}

/// Whether a certificate can have the name: one of a host, and no address.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(name) = &self.tls else { return self.address.fmt(f) };
        match self.address {
            SocketAddr::V4(address) if address.port() == TLS_PORT => write!(f, "{TLS}{}#{name}", address.ip()),
            SocketAddr::V6(address) if address.port() == TLS_PORT => write!(f, "{TLS}[{}]#{name}", address.ip()),
            address => write!(f, "{TLS}{address}#{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_shown() {
        for (text, address, name, shown) in [
            ("192.0.2.53", "192.0.2.53:53", None, "192.0.2.53:53"),
            ("2001:db8::53", "[2001:db8::53]:53", None, "[2001:db8::53]:53"),
            ("tls://192.0.2.53#dns.example", "192.0.2.53:853", Some("dns.example"), "tls://192.0.2.53#dns.example"),
            ("tls://192.0.2.53:8853#a", "192.0.2.53:8853", Some("a"), "tls://192.0.2.53:8853#a"),
            (
                "tls://[2001:db8::53]#DNS.Example",
                "[2001:db8::53]:853",
                Some("dns.example"),
                "tls://[2001:db8::53]#dns.example",
            ),
            ("tls://[::1]:853#a.b", "[::1]:853", Some("a.b"), "tls://[::1]#a.b"),
        ] {
            let server: NameServer = text.parse().expect(text);
            assert_eq!((server.address, server.tls.as_deref()), (address.parse().expect("an address"), name), "{text}");
            assert_eq!(server.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for (text, why) in [
            ("", "is neither an address"),
            ("dns.example", "is neither an address"),
            ("192.0.2.53:53", "is neither an address"),
            ("TLS://192.0.2.53#a", "is neither an address"),
            ("tls://192.0.2.53", "has no name"),
            ("tls://192.0.2.53#", "has no name"),
            ("tls://#a", "has no address"),
            ("tls://dns.example#dns.example", "has no address"),
            ("tls://2001:db8::53#a", "has no address"),
            ("tls://[192.0.2.53]#a", "has no address"),
            ("tls://192.0.2.53:0#a", "has no address"),
            ("tls://192.0.2.53:65536#a", "has no address"),
            ("tls://[fe80::1%1]:853#a", "has no address"),
            ("tls://192.0.2.53#a..b", "no name of a host"),
            ("tls://192.0.2.53#192.0.2.53", "no name of a host"),
            ("tls://192.0.2.53#a#b", "no name of a host"),
            ("tls://192.0.2.53#-a", "no name of a host"),
        ] {
            let refused = text.parse::<NameServer>().expect_err(text).to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
