//! The routes of a container with its interfaces: default routes, and for a container with several interfaces rules by
//! source address, so that a reply leaves by the interface that its packet came in on. Pure.

use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;

/// The table of a leg is this number plus the index of its link, inside the container.
pub const FIRST_TABLE: u32 = 20_000;
/// The main table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// An interface of a container, as its routes see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Index of the link inside the container.
    pub link: u32,
    /// Its addresses with the pool's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// The gateways of its pool.
    pub gateways: Vec<IpAddr>,
    /// Whether it has the default route for IPv4.
    pub default4: bool,
    /// Whether it has the default route for IPv6.
    pub default6: bool,
}

/// A rule by source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceRule {
    /// Packets from this address …
    pub from: IpAddr,
    /// … are routed by this table.
    pub table: u32,
}

/// A route inside a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegRoute {
    /// Its table.
    pub table: u32,
    /// Its destination: all addresses of the family have the prefix length 0.
    pub to: IpNetwork,
    /// The gateway, unless the destination is on the link.
    pub via: Option<IpAddr>,
    /// Index of the link.
    pub link: u32,
}

/// What a container's namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// The rules that pv-net made.
    pub rules: Vec<SourceRule>,
    /// Whether the container has rules of its own for IPv4, or its kernel has no rules.
    pub keeps_out4: bool,
    /// The same for IPv6.
    pub keeps_out6: bool,
    /// The routes that pv-net made in legs' tables, and the default routes of the main table.
    pub routes: Vec<LegRoute>,
}

/// A change inside a container. Each has the same effect when done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideStep {
    /// Add a route, unless there is one like it.
    AddRoute(LegRoute),
    /// Remove a route.
    RemoveRoute(LegRoute),
    /// Add a rule.
    AddRule(SourceRule),
    /// Remove a rule.
    RemoveRule(SourceRule),
}

/// The default destination of the family of `like`.
fn everything(like: IpAddr) -> IpNetwork {
    let any = if like.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    any.parse().expect("a prefix length of 0 is a network")
}

impl Leg {
    fn has_default(&self, gateway: IpAddr) -> bool {
        if gateway.is_ipv4() { self.default4 } else { self.default6 }
    }

    fn table(&self) -> u32 {
        FIRST_TABLE + self.link
    }

    /// The default route by one of its gateways.
    fn default_by(&self, gateway: IpAddr, table: u32) -> LegRoute {
        LegRoute { table, to: everything(gateway), via: Some(gateway), link: self.link }
    }

    /// The content of its table: its networks, and its gateways for everything else.
    fn own_routes(&self) -> impl Iterator<Item = LegRoute> {
        let on_link = |a: &IpNetwork| {
            let to = IpNetwork::new(a.network(), a.prefix()).unwrap_or(*a);
            LegRoute { table: self.table(), to, via: None, link: self.link }
        };
        let beyond = self.gateways.iter().map(|gateway| self.default_by(*gateway, self.table()));
        self.addresses.iter().map(on_link).chain(beyond)
    }

    fn rules(&self) -> impl Iterator<Item = SourceRule> {
        self.addresses.iter().map(|a| SourceRule { from: a.ip(), table: self.table() })
    }
}

impl Inside {
    fn keeps_out(&self, of: IpAddr) -> bool {
        if of.is_ipv4() { self.keeps_out4 } else { self.keeps_out6 }
    }
}

/// The steps that give a container with these legs its routes. Additions come first, so that no packet is without a
/// route. In a family in which the container has rules of its own, none are added.
#[must_use]
pub fn inside_steps(legs: &[Leg], inside: &Inside) -> Vec<InsideStep> {
    let several = if legs.len() > 1 { legs } else { &[] };
    let routes: Vec<LegRoute> = several.iter().flat_map(Leg::own_routes).collect();
    let rules: Vec<SourceRule> = several.iter().flat_map(Leg::rules).collect();
    let mut steps = Vec::new();
    let missing = routes.iter().filter(|r| !inside.routes.contains(r) && !inside.keeps_out(r.to.ip()));
    steps.extend(missing.map(|r| InsideStep::AddRoute(*r)));
    let missing = rules.iter().filter(|r| !inside.rules.contains(r) && !inside.keeps_out(r.from));
    steps.extend(missing.map(|r| InsideStep::AddRule(*r)));

    let defaults = |leg: &Leg, wanted: bool| {
        let kept =
            leg.gateways.iter().filter(|g| leg.has_default(**g) == wanted).map(|g| leg.default_by(*g, MAIN_TABLE));
        kept.collect::<Vec<_>>()
    };
    // The kernel has one default route of a metric: the new one has no place before the old one is gone.
    let moved = legs.iter().flat_map(|leg| defaults(leg, false)).filter(|r| inside.routes.contains(r));
    steps.extend(moved.map(InsideStep::RemoveRoute));
    let missing = legs.iter().flat_map(|leg| defaults(leg, true)).filter(|r| !inside.routes.contains(r));
    steps.extend(missing.map(InsideStep::AddRoute));

    let stale = inside.rules.iter().filter(|r| !rules.contains(r));
    steps.extend(stale.map(|r| InsideStep::RemoveRule(*r)));
    let stale = inside.routes.iter().filter(|r| r.table != MAIN_TABLE && !routes.contains(r));
    steps.extend(stale.map(|r| InsideStep::RemoveRoute(*r)));
    steps
}

impl fmt::Display for SourceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} lookup {}", self.from, self.table)
    }
}

impl fmt::Display for LegRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(gateway) = self.via {
            write!(f, " via {gateway}")?;
        }
        write!(f, " link {}", self.link)?;
        if self.table == MAIN_TABLE { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

impl fmt::Display for InsideStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
        }
    }
}

#[cfg(test)]
mod tests;
