//! An attached container, for the tests.

use crate::Namespace;
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An attached container with a namespace of its own.
#[derive(Debug)]
pub struct Container {
    /// Its namespace.
    pub ns: Namespace,
    /// The answer of `attach`.
    pub view: Value,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Container {
    /// A container in `ns`, from the answer of `attach`.
    ///
    /// # Errors
    /// When the answer lacks an address.
    pub fn new(ns: Namespace, view: Value) -> Result<Self> {
        let text = |key: &str| view[key].as_str().with_context(|| format!("{key} in {view}"));
        let (v4, v6) = (text("ipv4_address")?.parse()?, text("ipv6_address")?.parse()?);
        Ok(Self { ns, v4, v6, view })
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its host-side link.
    #[must_use]
    pub fn host_if(&self) -> &str {
        self.view["interfaces"][0]["host_if"].as_str().unwrap_or_default()
    }

    /// Its MAC.
    ///
    /// # Errors
    /// When the answer has none.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let text = self.view["interfaces"][0]["mac_address"].as_str().context("mac_address")?;
        crate::frame::parse_mac(text)
    }
}
