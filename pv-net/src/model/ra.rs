//! Router advertisements of a pool.

use ipnetwork::Ipv6Network;

/// What hosts on a pool's bridge are told about their addresses (RFC 4861 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RaMode {
    /// They make addresses of the pool's network (RFC 4862).
    Slaac,
    /// The same, and the rest is to be had by DHCPv6.
    Stateless,
    /// They get addresses by DHCPv6, and make none.
    Stateful,
    /// They have addresses already: only the way out and the network are said.
    RouteOnly,
}

impl RaMode {
    /// Whether hosts make addresses of the prefix: its flag A.
    #[must_use]
    pub const fn is_autonomous(self) -> bool {
        matches!(self, Self::Slaac | Self::Stateless)
    }

    /// Whether addresses are to be had by DHCPv6: the flag M.
    #[must_use]
    pub const fn is_managed(self) -> bool {
        matches!(self, Self::Stateful)
    }

    /// Whether anything else is: the flag O.
    #[must_use]
    pub const fn has_other(self) -> bool {
        matches!(self, Self::Stateless | Self::Stateful)
    }
}

/// Which router hosts prefer among several (RFC 4191 section 2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RouterPreference {
    /// Any other first.
    Low,
    /// As every router that says nothing.
    #[default]
    Medium,
    /// Before all others.
    High,
}

/// Router advertisements of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRa {
    /// What hosts are told about their addresses.
    pub mode: RaMode,
    /// How long the device is their way out without another advertisement, in seconds: 12 to 9000.
    pub lifetime_secs: u16,
    /// How much they prefer it.
    pub preference: RouterPreference,
    /// Networks that they reach by the device, whether or not that is their way out.
    pub routes: Vec<Ipv6Network>,
}
