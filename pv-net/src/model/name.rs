//! Names and MAC addresses whose values are always valid.

use std::fmt;
use std::str::FromStr;

/// Why a text is no valid name or MAC; says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub String);

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, InvalidName> {
                $check(s).map(|()| Self(s.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn check_word(s: &str, what: &str, max: usize) -> Result<(), InvalidName> {
    if s.is_empty() {
        return Err(InvalidName(format!("a {what} name cannot be empty")));
    }
    if s.len() > max {
        return Err(InvalidName(format!("a {what} name has at most {max} characters, this has {}", s.len())));
    }
    if let Some(c) = s.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
        return Err(InvalidName(format!("a {what} name has letters, digits, '-', '_' and '.', not {c:?}")));
    }
    if !s.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(InvalidName(format!("a {what} name begins with a letter or a digit")));
    }
    Ok(())
}

fn check_pool(s: &str) -> Result<(), InvalidName> {
    check_word(s, "pool", 32)
}

fn check_container(s: &str) -> Result<(), InvalidName> {
    check_word(s, "container", 63)
}

fn check_rule(s: &str) -> Result<(), InvalidName> {
    check_word(s, "rule", 63)
}

/// IFNAMSIZ minus the final zero byte; see `dev_valid_name` in the kernel's `net/core/dev.c`.
const MAX_IFNAME: usize = 15;

fn check_ifname(s: &str) -> Result<(), InvalidName> {
    if s.is_empty() {
        return Err(InvalidName("an interface name cannot be empty".into()));
    }
    if s.len() > MAX_IFNAME {
        return Err(InvalidName(format!(
            "an interface name has at most {MAX_IFNAME} characters, this has {}",
            s.len()
        )));
    }
    // `all` and `default` are sysctl directories for all links (the kernel's `sysctl_dev_name_is_allowed`).
    if matches!(s, "." | ".." | "all" | "default") {
        return Err(InvalidName(format!("{s:?} is not an interface name")));
    }
    if let Some(c) = s.chars().find(|c| *c == '/' || *c == ':' || c.is_whitespace() || !c.is_ascii_graphic()) {
        return Err(InvalidName(format!("an interface name cannot have {c:?}")));
    }
    Ok(())
}

name_type!(
    /// A pool's name: 1 to 32 letters, digits, `-`, `_`, `.`.
    PoolName,
    check_pool
);
name_type!(
    /// A container's name: 1 to 63 letters, digits, `-`, `_`, `.`.
    ContainerName,
    check_container
);
name_type!(
    /// A rule's name: 1 to 63 letters, digits, `-`, `_`, `.`.
    RuleName,
    check_rule
);
name_type!(
    /// A network interface's name, as the kernel takes it: 1 to 15 characters.
    IfName,
    check_ifname
);

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The locally administered MAC that pv-net derives from an IPv4 address: `02:00:` and its four octets.
    #[must_use]
    pub fn from_ipv4(a: std::net::Ipv4Addr) -> Self {
        let o = a.octets();
        Self([0x02, 0, o[0], o[1], o[2], o[3]])
    }

    /// The MAC for an interface without IPv4: `02:01:` and the last four octets of its IPv6 address.
    #[must_use]
    pub fn from_ipv6(a: std::net::Ipv6Addr) -> Self {
        let o = a.octets();
        Self([0x02, 1, o[12], o[13], o[14], o[15]])
    }
}

impl FromStr for Mac {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName("a MAC address is six hexadecimal octets, such as 02:00:0a:00:03:07".into());
        let parts: Vec<&str> = s.split(':').collect();
        let octets: [&str; 6] = parts.try_into().map_err(|_| bad())?;
        let mut mac = [0u8; 6];
        for (to, from) in mac.iter_mut().zip(octets) {
            if from.len() != 2 || !from.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *to = u8::from_str_radix(from, 16).map_err(|_| bad())?;
        }
        if mac[0] & 1 == 1 {
            return Err(InvalidName("a multicast MAC cannot be an interface's: the first octet must be even".into()));
        }
        if mac == [0; 6] {
            return Err(InvalidName("the all-zero MAC cannot be an interface's".into()));
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", m[0], m[1], m[2], m[3], m[4], m[5])
    }
}

impl serde::Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!("02:00:0a:00:03:07".parse::<Mac>(), Ok(Mac::from_ipv4([10, 0, 3, 7].into())));
        assert_eq!(Mac::from_ipv4([10, 0, 3, 7].into()).to_string(), "02:00:0a:00:03:07");
        for bad in
            ["", "02:00:0a:00:03", "02:00:0a:00:03:7", "02:00:0a:00:03:+7", "01:00:5e:00:00:01", "00:00:00:00:00:00"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        assert!("eth0".parse::<IfName>().is_ok());
        for bad in ["", ".", "a/b", "a b", "abcdefghijklmnop"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
        for bad in ["", "-a", "a b", "ü", "a/../b"] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        assert!("x".repeat(64).parse::<ContainerName>().is_err());
    }
}
