//! What is dropped on the uplinks before the stack sees it.

use ipnetwork::IpNetwork;

/// The uplinks' filter. It also drops packets from outside whose source is in a pool's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkFilter {
    /// Networks from which nothing is let in; no host bits.
    pub deny: Vec<IpNetwork>,
    /// What each source address may send.
    pub rate_limit: Option<RateLimit>,
    /// Where the filter runs.
    pub xdp: XdpChoice,
}

/// A limit for each source, as a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Packets a second; at least one.
    pub packets_per_second: u32,
    /// Packets that may come at once; at least one.
    pub burst: u32,
    /// The number of bits of an IPv6 address that identify a source, 1 to 128.
    pub ipv6_prefix: u8,
}

/// Where XDP runs, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpChoice {
    /// In the driver if it supports XDP, else nowhere.
    #[default]
    Auto,
    /// In the stack, on any link.
    Generic,
    /// Nowhere.
    Off,
}

impl XdpChoice {
    /// The XDP mode; `None` for off.
    #[must_use]
    pub const fn mode(self) -> Option<XdpMode> {
        match self {
            Self::Auto => Some(XdpMode::Native),
            Self::Generic => Some(XdpMode::Generic),
            Self::Off => None,
        }
    }
}

/// How XDP runs on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the stack, on a socket buffer.
    Generic,
}

impl XdpMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}
