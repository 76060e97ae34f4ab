//! The routes of a container with its interfaces: default routes, and for a container with several interfaces rules by
//! source address, so that a reply leaves by the interface that its packet came in on. Pure.

use ipnetwork::IpNetwork;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// The table of a leg is this number plus the index of its link, inside the container.
pub const FIRST_TABLE: u32 = 20_000;
/// The main table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// Priority of the rules for the networks of the container's legs. All rules of pv-net stand behind that of the local
/// table (0) and before that of the main one (32766).
const TO_LEGS: u32 = 20_000;
/// Priority of the rules for networks to which the container has routes of its own.
const TO_OTHERS: u32 = 20_001;
/// Priority of the rules for everything else.
const TO_ALL: u32 = 20_002;

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
    /// Whether its default routes come before those that the container has added itself.
    pub claims: bool,
}

/// A rule by source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceRule {
    /// Rules with lower numbers come first.
    pub priority: u32,
    /// Packets from this address …
    pub from: IpAddr,
    /// … to this network, or to any …
    pub to: Option<IpNetwork>,
    /// … are routed by this table. From the main table its default routes do not count.
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
    /// Whether it comes before other routes to the same destination. These stay, and are in force again when it is gone.
    pub first: bool,
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
}

/// A change inside a container. Each has the same effect when done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideStep {
    /// Add a route, unless there is one like it.
    AddRoute(LegRoute),
    /// Remove a route, if pv-net made it.
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

/// The network of an address.
fn network(address: &IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(*address)
}

impl Leg {
    /// The gateways of the families in which it has an address.
    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let has_family = |gateway: &&IpAddr| self.addresses.iter().any(|a| a.is_ipv4() == gateway.is_ipv4());
        self.gateways.iter().filter(has_family).copied()
    }

    fn has_default(&self, gateway: IpAddr) -> bool {
        if gateway.is_ipv4() { self.default4 } else { self.default6 }
    }

    fn table(&self) -> u32 {
        FIRST_TABLE + self.link
    }

    /// The default route by one of its gateways.
    fn default_by(&self, gateway: IpAddr, table: u32) -> LegRoute {
        let first = table == MAIN_TABLE && self.claims;
        LegRoute { table, to: everything(gateway), via: Some(gateway), link: self.link, first }
    }

    /// Its default routes in the main table, in the families in which it has them, or in those in which it has not.
    fn defaults(&self, has: bool) -> impl Iterator<Item = LegRoute> {
        let of_families = self.gateways().filter(move |gateway| self.has_default(*gateway) == has);
        of_families.map(|gateway| self.default_by(gateway, MAIN_TABLE))
    }

    /// The content of its table: its networks, and its gateways for everything else.
    fn own_routes(&self) -> impl Iterator<Item = LegRoute> {
        let on_link =
            |a: &IpNetwork| LegRoute { table: self.table(), to: network(a), via: None, link: self.link, first: false };
        let beyond = self.gateways().map(|gateway| self.default_by(gateway, self.table()));
        self.addresses.iter().map(on_link).chain(beyond)
    }

    /// The rules for packets from its addresses. To `networks`, which are those of all legs, they leave by this leg: the
    /// main table would send them out by the leg that is in the network, where the source guard drops them. Then come
    /// the routes that the container has added itself, such as to networks behind a tunnel. All else leaves by this leg.
    fn rules(&self, networks: &BTreeSet<IpNetwork>) -> Vec<SourceRule> {
        let mut rules = Vec::new();
        for from in self.addresses.iter().map(IpNetwork::ip) {
            let like = networks.iter().filter(|to| to.is_ipv4() == from.is_ipv4());
            rules.extend(like.map(|to| SourceRule { priority: TO_LEGS, from, to: Some(*to), table: self.table() }));
            rules.push(SourceRule { priority: TO_OTHERS, from, to: None, table: MAIN_TABLE });
            rules.push(SourceRule { priority: TO_ALL, from, to: None, table: self.table() });
        }
        rules
    }
}

impl Inside {
    fn keeps_out(&self, of: IpAddr) -> bool {
        if of.is_ipv4() { self.keeps_out4 } else { self.keeps_out6 }
    }
}

/// The default routes by `gateway` that the leg with the link `link` may have.
pub fn ways_by(gateway: IpAddr, link: u32, claims: bool) -> impl Iterator<Item = LegRoute> {
    let route = move |table, first| LegRoute { table, to: everything(gateway), via: Some(gateway), link, first };
    [route(MAIN_TABLE, claims), route(FIRST_TABLE + link, false)].into_iter()
}

/// The steps that give a container with these legs its routes. Additions come first, so that no packet is without a
/// route. In a family in which the container has rules of its own, none are added.
///
/// What routes there are is not looked at, since a container may have very many: each step is fine when there is nothing
/// to do. The kernel removes a link's routes with the link.
#[must_use]
pub fn inside_steps(legs: &[Leg], inside: &Inside) -> Vec<InsideStep> {
    let several = if legs.len() > 1 { legs } else { &[] };
    let networks: BTreeSet<IpNetwork> = several.iter().flat_map(|leg| &leg.addresses).map(network).collect();
    let rules: Vec<SourceRule> = several.iter().flat_map(|leg| leg.rules(&networks)).collect();
    let mut steps = Vec::new();
    let own = several.iter().flat_map(Leg::own_routes).filter(|r| !inside.keeps_out(r.to.ip()));
    steps.extend(own.map(InsideStep::AddRoute));
    let missing = rules.iter().filter(|r| !inside.rules.contains(r) && !inside.keeps_out(r.from));
    steps.extend(missing.map(|r| InsideStep::AddRule(*r)));

    // The kernel has one default route of a metric: the new one has no place before the old one is gone.
    steps.extend(legs.iter().flat_map(|leg| leg.defaults(false)).map(InsideStep::RemoveRoute));
    steps.extend(legs.iter().flat_map(|leg| leg.defaults(true)).map(InsideStep::AddRoute));

    // A rule whose table is empty has no effect.
    let alone = legs.iter().filter(|leg| several.is_empty() && inside.rules.iter().any(|r| r.table == leg.table()));
    steps.extend(alone.flat_map(Leg::own_routes).map(InsideStep::RemoveRoute));
    let stale = inside.rules.iter().filter(|r| !rules.contains(r));
    steps.extend(stale.map(|r| InsideStep::RemoveRule(*r)));
    steps
}

impl fmt::Display for SourceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from {}", self.priority, self.from)?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if self.table == MAIN_TABLE {
            write!(f, " lookup main suppress_prefixlength 0")
        } else {
            write!(f, " lookup {}", self.table)
        }
    }
}

impl fmt::Display for LegRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(gateway) = self.via {
            write!(f, " via {gateway}")?;
        }
        write!(f, " link {}", self.link)?;
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if self.first { write!(f, " first") } else { Ok(()) }
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
