//! A bridge's link-local address, from which services send.

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_indextoname};
use std::io;
use std::net::Ipv6Addr;

/// Why a service has no socket on a bridge.
pub(super) enum Lost {
    /// Nothing is connected to the bridge. It has no link-local address then, and nobody would receive anything.
    Alone,
    /// An error of the system.
    Failed(io::Error),
}

impl From<io::Error> for Lost {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

impl From<Errno> for Lost {
    fn from(e: Errno) -> Self {
        Self::Failed(e.into())
    }
}

/// The link-local address of the link with the index `link`: the lowest one if there are several.
pub(super) fn link_local(link: u32) -> Result<Ipv6Addr, Lost> {
    let name = if_indextoname(link)?;
    let mut is_alone = true;
    let mut found: Option<Ipv6Addr> = None;
    for address in getifaddrs()?.filter(|a| a.interface_name.as_bytes() == name.as_bytes()) {
        is_alone &= !address.flags.contains(InterfaceFlags::IFF_RUNNING);
        let ip = address.address.and_then(|a| Some(a.as_sockaddr_in6()?.ip()));
        if let Some(ip) = ip.filter(Ipv6Addr::is_unicast_link_local) {
            found = Some(found.map_or(ip, |other| other.min(ip)));
        }
    }
    match found {
        Some(ip) => Ok(ip),
        None if is_alone => Err(Lost::Alone),
        None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the bridge has no link-local address").into()),
    }
}
