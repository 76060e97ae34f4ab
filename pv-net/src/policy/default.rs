//! Names the setting that decides where no rule applies. The decision itself is [`pv_net_common::default_verdict`].

use crate::model::{Action, HostAccess, Pool, PoolName};
use std::fmt;

/// Where an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In a pool: a container, or another address of its networks.
    Pool(&'a Pool),
    /// On the device itself, by the gateway of the sender's pool.
    Gateway,
    /// On the device itself, by another address.
    Host,
    /// Outside.
    World,
}

/// The setting that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Both are in this pool.
    SamePool(String),
    /// Neither pool is isolated.
    OpenPools(String, String),
    /// This pool is isolated.
    Isolated(String),
    /// The pool masquerades.
    Nat(String),
    /// The pool does not masquerade: it needs a route, and the outside one back.
    Routed(String),
    /// The port is published.
    Published,
    /// The port is not published.
    NotPublished,
    /// The pool's setting of what its containers may reach on the device.
    HostAccess(String, HostAccess),
    /// The device reaches its containers.
    FromHost,
    /// Neither is in a pool.
    NoPool,
}

impl Reason {
    /// JSON path of the setting that decided, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        let (pool, key) = match self {
            Self::Isolated(pool) | Self::OpenPools(pool, _) => (pool, "isolated"),
            Self::Nat(pool) | Self::Routed(pool) => (pool, "nat"),
            Self::HostAccess(pool, _) => (pool, "host_access"),
            _ => return None,
        };
        Some(format!("network.pools.{pool}.{key}"))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SamePool(pool) => write!(f, "both are in pool {pool}"),
            Self::OpenPools(a, b) => write!(f, "pools {a} and {b} are open"),
            Self::Isolated(pool) => write!(f, "pool {pool} is isolated"),
            Self::Nat(pool) => write!(f, "pool {pool} has nat"),
            Self::Routed(pool) => write!(f, "pool {pool} has no nat: it passes where there is a route, both ways"),
            Self::Published => f.write_str("the port is published"),
            Self::NotPublished => f.write_str("from outside only published ports are reached"),
            Self::HostAccess(pool, access) => {
                let access = match access {
                    HostAccess::None => "none",
                    HostAccess::Services => "services: its gateway's DNS and DHCP, ping and published ports",
                    HostAccess::All => "all",
                };
                write!(f, "pool {pool} has host_access {access}")
            }
            Self::FromHost => f.write_str("the device reaches its containers"),
            Self::NoPool => f.write_str("neither is in a pool: pv-net leaves it to the device"),
        }
    }
}

impl<'a> Place<'a> {
    /// The place in the form that the programs use.
    fn known(self) -> pv_net_common::Place<&'a PoolName> {
        match self {
            Self::Pool(pool) => pv_net_common::Place::Pool { pool: &pool.name, flags: pool.flags() },
            Self::Gateway => pv_net_common::Place::Gateway,
            Self::Host => pv_net_common::Place::Device,
            Self::World => pv_net_common::Place::World,
        }
    }
}

/// The verdict on a flow to which no rule applies, as the programs decide it, and the setting that it comes from.
/// `published`: the port is published to the sender, named either as the container's or as the device's.
#[must_use]
pub fn default_verdict(from: Place<'_>, to: Place<'_>, proto: u8, port: u16, published: bool) -> (Action, Reason) {
    let allowed =
        pv_net_common::default_verdict(from.known(), to.known(), proto.into(), port.to_be(), published).is_ok();
    (if allowed { Action::Allow } else { Action::Deny }, reason(from, to, published))
}

/// The setting that decides between these two places.
fn reason(from: Place<'_>, to: Place<'_>, published: bool) -> Reason {
    match (from, to) {
        (Place::Pool(a), Place::Pool(b)) => between(a, b),
        (Place::Pool(pool), Place::World) if pool.nat => Reason::Nat(pool.name.to_string()),
        (Place::Pool(pool), Place::World) => Reason::Routed(pool.name.to_string()),
        (Place::Pool(pool), Place::Host | Place::Gateway) => {
            Reason::HostAccess(pool.name.to_string(), pool.host_access)
        }
        (Place::World, Place::Pool(_)) if published => Reason::Published,
        (Place::World, Place::Pool(_)) => Reason::NotPublished,
        (Place::Host | Place::Gateway, Place::Pool(_)) => Reason::FromHost,
        (Place::Host | Place::Gateway | Place::World, Place::Host | Place::Gateway | Place::World) => Reason::NoPool,
    }
}

fn between(a: &Pool, b: &Pool) -> Reason {
    if a.name == b.name {
        return Reason::SamePool(a.name.to_string());
    }
    match [a, b].into_iter().find(|p| p.isolated) {
        Some(isolated) => Reason::Isolated(isolated.name.to_string()),
        None => Reason::OpenPools(a.name.to_string(), b.name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    fn pool(name: &str, isolated: bool, nat: bool, host_access: HostAccess) -> Pool {
        Pool { isolated, nat, host_access, ..fixture::pool(name, None, None) }
    }

    #[test]
    fn the_pools_settings_decide() {
        let closed = pool("closed", true, true, HostAccess::Services);
        let open = pool("open", false, false, HostAccess::All);
        let other = pool("other", false, false, HostAccess::None);
        let (closed, open, other) = (Place::Pool(&closed), Place::Pool(&open), Place::Pool(&other));
        let (gateway, host, world) = (Place::Gateway, Place::Host, Place::World);
        let (allow, deny) = (Action::Allow, Action::Deny);
        for (name, from, to, proto, port, published, want, reason) in [
            ("within a pool", closed, closed, 6, 80, false, allow, "both are in pool closed"),
            ("from an isolated pool", closed, open, 6, 80, false, deny, "closed is isolated"),
            ("to an isolated pool", open, closed, 6, 80, true, deny, "closed is isolated"),
            ("between open pools", open, other, 6, 80, false, allow, "open and other are open"),
            ("outside with nat", closed, world, 6, 80, false, allow, "has nat"),
            ("outside without nat", open, world, 6, 80, false, allow, "no nat"),
            ("from outside", world, open, 6, 80, false, deny, "only published"),
            ("from outside, published", world, closed, 6, 80, true, allow, "is published"),
            ("DNS", closed, gateway, 17, 53, false, allow, "services"),
            ("DNS over TCP", closed, gateway, 6, 53, false, allow, "services"),
            ("DHCP", closed, gateway, 17, 67, false, allow, "services"),
            ("DHCP is not TCP", closed, gateway, 6, 67, false, deny, "services"),
            ("DNS by another address", closed, host, 17, 53, false, deny, "services"),
            ("ping", closed, host, 58, 0, false, allow, "services"),
            ("ssh", closed, host, 6, 22, false, deny, "services"),
            ("published on the device", closed, host, 6, 8080, true, allow, "services"),
            ("all of the device", open, host, 6, 22, false, allow, "all"),
            ("none of the device", other, host, 17, 53, true, deny, "none"),
            ("from the device", host, closed, 6, 22, false, allow, "reaches its containers"),
            ("not ours", world, host, 6, 22, false, allow, "neither"),
        ] {
            let (got, why) = default_verdict(from, to, proto, port, published);
            assert_eq!(got, want, "{name}");
            assert!(why.to_string().contains(reason), "{name}: {why}");
        }
    }
}
