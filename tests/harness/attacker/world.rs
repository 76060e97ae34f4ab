//! The parties of the attacker's lab, and what its policy says: the configuration and the model are derived from this.

use super::pool::Link;
use super::reading::{TCP, UDP};
use crate::configs;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where frames come from or go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The device's own sockets.
    Device,
    /// A container of pool `internal`: it attacks.
    A,
    /// Another container of `internal`, with published ports.
    B,
    /// A container of pool `management`: it attacks where `internal` is a macvlan pool, and then has the published ports.
    C,
    /// The host behind the uplink: it attacks.
    Out,
    /// A host at a port of the bridge of `internal`, or on the LAN of its parent: it attacks.
    Lan,
    /// A further container of `internal`, with published ports; only where that is a macvlan pool.
    D,
    /// A further macvlan that container `a` has made on its own; nobody listens there. It attacks.
    Rogue,
}

impl Place {
    /// All places where frames may arrive, in the order of their numbers.
    pub const ALL: [Self; 7] = [Self::Device, Self::A, Self::B, Self::C, Self::Out, Self::Lan, Self::D];
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A pool's `host_access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    None,
    /// DNS, DHCP, ping and published ports.
    Services,
    /// Everything.
    All,
}

/// What a rule's `from` or `to` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A container.
    Container(Place),
    /// Everybody outside of pools, except the device.
    World,
    /// The device.
    Host,
    /// One address.
    Address(IpAddr),
}

/// A rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// Who sends.
    pub from: Who,
    /// Who receives.
    pub to: Who,
    /// Protocol number and port; all traffic unless set.
    pub port: Option<(u8, u16)>,
    /// Whether it allows, else it denies.
    pub allow: bool,
}

/// The configured policy.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// What connects the containers of `internal`.
    pub link: Link,
    /// Pools are open to each other.
    pub open: bool,
    /// What containers may reach on the device.
    pub access: Access,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One end of a flow, as policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Container(Place),
    Device,
    Stranger(IpAddr),
}

/// The addresses and the MAC of one party.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub mac: [u8; 6],
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub link_local: Ipv6Addr,
}

impl Host {
    pub(crate) fn has(&self, addr: IpAddr) -> bool {
        addr == self.v4 || addr == self.v6 || addr == self.link_local
    }

    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// All parties and the policy.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The policy.
    pub policy: Policy,
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) c: Host,
    pub(crate) d: Option<Host>,
    pub(crate) lan: Host,
    pub(crate) out: Host,
    /// The device on the bridges of `internal` and `management`; where `internal` is a macvlan pool, on its parent.
    pub(crate) gateways: [Host; 2],
    /// The MAC of the device's own interface beside those of the macvlan pool's containers.
    pub(crate) device_if: Option<[u8; 6]>,
    /// The further macvlan of `a`: it has no address of its own, so it uses the container's.
    pub(crate) rogue: Option<Host>,
    /// The device on its uplink.
    pub(crate) uplink: Host,
}

/// The device's port that leads to [`SERVED`] of `b` or `c`, by TCP and UDP.
pub(crate) const PUBLISHED: u16 = 8080;
/// Where `b` serves, and what macvlan containers publish.
pub(crate) const SERVED: u16 = 80;
/// Where containers have servers that answer.
pub(crate) const SERVERS: [u16; 2] = [SERVED, 7000];
/// Addresses of the world behind `out`.
pub(crate) const WORLD: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 7), Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 7));
/// The LAN host's addresses.
pub(crate) const LAN: [&str; 2] = ["10.0.3.200/24", "fd00:5056:0:3::c8/64"];
/// The same, without the prefix lengths.
pub(crate) const LAN_HOST: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 0, 3, 200), Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 0xc8));
/// The device's addresses on a parent.
pub(crate) const PARENT: [&str; 2] = ["10.0.3.1/24", "fd00:5056:0:3::1/64"];

impl Policy {
    /// `device.json`.
    pub(crate) fn config(&self) -> Value {
        let mut config = configs::masqueraded();
        self.link.put_into(&mut config);
        for name in ["internal", "management"] {
            let pool = &mut config["network"]["pools"][name];
            pool["isolated"] = json!(!self.open);
            pool["host_access"] = json!(match self.access {
                Access::None => "none",
                Access::Services => "services",
                Access::All => "all",
            });
        }
        let rules = self.rules.iter().enumerate().map(|(n, rule)| rule.config(n));
        config["network"]["policies"] = rules.collect();
        config
    }

    /// What the rules say about a flow, if one matches: a deny has precedence.
    pub(crate) fn rules_say(&self, from: End, to: End, proto: u8, port: Option<u16>) -> Option<bool> {
        let matching = |rule: &&Rule| rule.is_about(self.link, (from, to), proto, port);
        self.rules.iter().filter(matching).map(|rule| rule.allow).reduce(|all, allow| all && allow)
    }

    /// Whether a flow is allowed: a deny has precedence, then an allow, then the settings of the pools.
    pub(crate) fn allows(&self, from: End, to: End, proto: u8, port: Option<u16>, published: bool) -> bool {
        self.allows_by(true, from, to, proto, port, published)
    }

    /// The same; to the device `by_gateway` of the sender's pool, or by another address.
    pub(crate) fn allows_by(
        &self,
        by_gateway: bool,
        from: End,
        to: End,
        proto: u8,
        port: Option<u16>,
        published: bool,
    ) -> bool {
        if let Some(said) = self.rules_say(from, to, proto, port) {
            return said;
        }
        match (from, to) {
            (End::Container(_), End::Container(_)) if published => self.access != Access::None,
            (End::Container(from), End::Container(to)) => self.open || pool_of(from) == pool_of(to),
            (End::Container(_), End::Device) => match self.access {
                Access::None => false,
                Access::Services => matches!(proto, 1 | 58) || by_gateway && is_service(proto, port),
                Access::All => true,
            },
            (End::Stranger(_), End::Container(_)) => published,
            (End::Container(_), End::Stranger(_)) | (End::Device | End::Stranger(_), _) => true,
        }
    }
}

/// DNS and DHCP.
fn is_service(proto: u8, port: Option<u16>) -> bool {
    matches!((proto, port), (TCP | UDP, Some(53)) | (UDP, Some(67 | 547)))
}

fn pool_of(container: Place) -> u8 {
    if container == Place::C { 4 } else { 3 }
}

impl Rule {
    /// A rule that denies all traffic.
    #[must_use]
    pub(crate) fn deny(from: Who, to: Who) -> Self {
        Self { from, to, port: None, allow: false }
    }

    /// A rule that allows one port.
    #[must_use]
    pub(crate) fn allow(from: Who, to: Who, proto: u8, port: u16) -> Self {
        Self { from, to, port: Some((proto, port)), allow: true }
    }

    /// The same rule for one port only.
    #[must_use]
    pub(crate) fn at(self, proto: u8, port: u16) -> Self {
        Self { port: Some((proto, port)), ..self }
    }

    fn config(&self, number: usize) -> Value {
        let mut rule = json!({
            "name": format!("rule-{number}"),
            "from": self.from.config(),
            "to": self.to.config(),
            "action": if self.allow { "allow" } else { "deny" },
        });
        if let Some((proto, port)) = self.port {
            rule["ports"] = json!([format!("{}/{port}", if proto == TCP { "tcp" } else { "udp" })]);
        }
        rule
    }

    fn is_about(&self, link: Link, (from, to): (End, End), proto: u8, port: Option<u16>) -> bool {
        let named = self.port.is_none_or(|(of, at)| of == proto && Some(at) == port);
        named && self.from.selects(link, from) && self.to.selects(link, to)
    }
}

impl Who {
    fn config(self) -> Value {
        match self {
            Self::Container(place) => json!({"container": name_of(place)}),
            Self::World => json!("world"),
            Self::Host => json!("host"),
            Self::Address(addr) => json!({"cidr": format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })}),
        }
    }

    fn selects(self, link: Link, end: End) -> bool {
        match (self, end) {
            (Self::Container(is), End::Container(place)) => is == place,
            (Self::World, End::Stranger(addr)) => link.pool_at(addr).is_none(),
            (Self::Host, End::Device) => true,
            (Self::Address(is), End::Stranger(addr)) => is == addr,
            _ => false,
        }
    }
}

/// What the daemon calls a container.
pub(crate) fn name_of(place: Place) -> &'static str {
    match place {
        Place::B => "b",
        Place::C => "c",
        Place::D => "d",
        _ => "a",
    }
}

impl World {
    /// The container with this address, link-local ones too.
    pub(crate) fn container(&self, addr: IpAddr) -> Option<Place> {
        self.containers().find(|(_, host)| host.has(addr)).map(|(place, _)| place)
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = (Place, &Host)> {
        let all = [
            (Place::A, Some(&self.a)),
            (Place::B, Some(&self.b)),
            (Place::C, Some(&self.c)),
            (Place::D, self.d.as_ref()),
        ];
        all.into_iter().filter_map(|(place, host)| Some((place, host?)))
    }

    /// The containers that are hosts on the LAN.
    pub(crate) fn children(&self) -> impl Iterator<Item = (Place, &Host)> {
        self.containers().filter(|(place, _)| self.is_child(*place))
    }

    /// Whether a place is a container that is a host on the LAN.
    pub(crate) fn is_child(&self, place: Place) -> bool {
        self.policy.link.is_macvlan() && matches!(place, Place::A | Place::B | Place::D)
    }

    /// Who attacks.
    pub(crate) fn attackers(&self) -> &'static [Place] {
        let all = &[Place::A, Place::Out, Place::Lan, Place::C, Place::Rogue];
        if self.policy.link.is_macvlan() { all } else { &all[..3] }
    }

    /// The container that [`PUBLISHED`] of the device leads to.
    pub(crate) fn publisher(&self) -> Place {
        if self.policy.link.is_macvlan() { Place::C } else { Place::B }
    }

    /// Whether an address is of a network of a pool that is behind no wire.
    pub(crate) fn is_in_pool(&self, addr: IpAddr) -> bool {
        self.policy.link.pool_at(addr).is_some()
    }

    /// Whether an address is the device's own: a unicast address that its routing table has as local.
    pub(crate) fn is_device(&self, addr: IpAddr) -> bool {
        self.is_of_device(addr) || matches!(addr, IpAddr::V6(v6) if is_anycast(v6))
    }

    /// Whether an address is a container's or the device's own: nobody else may claim it.
    pub(crate) fn is_taken(&self, addr: IpAddr) -> bool {
        self.container(addr).is_some() || self.is_of_device(addr)
    }

    fn is_of_device(&self, addr: IpAddr) -> bool {
        self.gateways.iter().chain([&self.uplink]).any(|host| host.has(addr))
    }

    /// The party that has this address.
    pub(crate) fn end(&self, addr: IpAddr) -> End {
        match self.container(addr) {
            Some(place) => End::Container(place),
            None if self.is_device(addr) => End::Device,
            None => End::Stranger(addr),
        }
    }

    pub(crate) fn host(&self, place: Place) -> &Host {
        match place {
            Place::Device => &self.gateways[0],
            Place::A => &self.a,
            Place::B => &self.b,
            Place::C => &self.c,
            Place::Out => &self.out,
            Place::Lan => &self.lan,
            Place::D => self.d.as_ref().unwrap_or(&self.b),
            Place::Rogue => self.rogue.as_ref().unwrap_or(&self.a),
        }
    }
}

/// Subnet-router anycast (RFC 4291 section 2.6.1), that Linux has on links that forward.
fn is_anycast(addr: Ipv6Addr) -> bool {
    matches!(addr.segments(), [0xfd00, 0x5056, 0, 3 | 4, 0, 0, 0, 0] | [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0])
        || addr.segments() == [0xfe80, 0, 0, 0, 0, 0, 0, 0]
}

/// Multicast, or the broadcast address of one of the networks here.
pub(crate) fn is_group(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_multicast() || is_broadcast(v4),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn is_broadcast(addr: Ipv4Addr) -> bool {
    addr.is_broadcast() || matches!(addr.octets(), [10, 0, 3 | 4, 255] | [192, 0, 2, 255])
}

/// A loopback address, also in its IPv4-mapped form.
pub(crate) fn is_loopback(addr: IpAddr) -> bool {
    addr.is_loopback() || matches!(addr, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()))
}

pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
