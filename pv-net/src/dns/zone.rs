//! The names of the device, and which client sees which of them. Made from a snapshot, and never changed. Pure.

mod client;

pub use client::{Client, Part, Whose};

use super::name::{self, LowerName, Name};
use super::service::Offered;
use crate::model::{HostAccess, NameServer, Pool, PoolName};
use crate::policy::{Evaluator, Topology, compile};
use crate::snapshot::{Attached, Snapshot};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::SOA;
use ipnetwork::IpNetwork;
use pv_net_common::{Ip, PolicySide};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod named;
mod publish;

pub use named::NamedClient;

/// The port of DNS.
pub const PORT: u16 = 53;
/// How long an answer about a container may be kept, in seconds.
pub const TTL: u32 = 5;
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;

/// The names of a device.
#[derive(Debug, Default)]
pub struct Zone {
    /// The device's domain.
    pub(super) domain: LowerName,
    /// `gateway` in the domain.
    pub(super) gateway: LowerName,
    serial: u32,
    names: HashMap<LowerName, Named>,
    /// Names and aliases of declared containers, and names of what they offer, attached or not: no client of DHCP gets
    /// them.
    reserved: HashSet<LowerName>,
    /// Names that exist only because of longer ones, with the addresses below them.
    parents: HashMap<LowerName, Vec<u32>>,
    addresses: Vec<Address>,
    by_address: HashMap<IpAddr, u32>,
    hosts: Vec<Host>,
    clients: HashMap<(u16, IpAddr), u32>,
    pools: Vec<PoolZone>,
    /// The address of the server for the device's own programs.
    on_device: Option<IpAddr>,
    /// The file with the certificates of authorities, for servers with TLS.
    ca_file: Option<PathBuf>,
    policy: Option<Evaluator>,
    /// The rules could not be read, so nobody sees a name because of them.
    is_closed: bool,
    clashes: Vec<String>,
}

#[derive(Debug)]
struct Named {
    kind: Kind,
    addresses: Vec<u32>,
    /// Services with this name.
    offers: Vec<Offered>,
}

/// The source of a name. If a name has several, the first one in this order is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Container,
    InPool,
    Interface,
    Alias,
    Service,
    /// A service's name for SRV records, `_NAME._tcp`. It has no addresses of its own; a client sees it if it sees the
    /// service's.
    Record,
    Client,
}

/// An address of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub ip: IpAddr,
    pool: u16,
    host: u32,
}

/// A container.
#[derive(Debug)]
struct Host {
    name: Option<LowerName>,
    identity: u32,
    /// Its addresses, each with the number of its pool.
    own: Vec<(u16, IpAddr)>,
}

/// A pool: where questions come from, and which servers answer those that are not about the device.
#[derive(Debug)]
pub struct PoolZone {
    /// Its name.
    pub name: PoolName,
    /// Its networks.
    pub networks: Vec<IpNetwork>,
    /// Its gateway addresses, IPv4 first.
    pub gateways: Vec<IpAddr>,
    /// The index of its bridge, if that exists.
    pub link: Option<u32>,
    /// Whether its gateway answers questions.
    pub answers: bool,
    /// Whether its containers may reach its gateway.
    pub is_reached: bool,
    is_open: bool,
    /// Servers for names outside the device; without any, the device's own servers are used.
    pub upstream: Option<Upstream>,
    /// Domains with servers of their own, the longest name first.
    zones: Vec<(LowerName, Upstream)>,
    private_names: Vec<LowerName>,
}

/// The servers for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The servers; those of the device when there are none.
    pub servers: Option<Upstream>,
    /// Whether an answer may have private addresses.
    pub may_be_private: bool,
}

/// Servers to ask.
pub type Upstream = Arc<[NameServer]>;

impl PoolZone {
    fn new(pool: &Pool, link: Option<u32>) -> Self {
        let dns = pool.dns.clone().unwrap_or_default();
        let mut zones: Vec<_> = dns
            .zones
            .iter()
            .filter_map(|(zone, list)| Some((name::from_text(zone)?, list.as_slice().into())))
            .collect();
        zones.sort_by_key(|(zone, _)| std::cmp::Reverse(name::labels(zone)));
        Self {
            name: pool.name.clone(),
            networks: pool.networks().collect(),
            gateways: pool.gateways().map(|g| g.ip()).collect(),
            link,
            answers: pool.dns.is_some() && pool.bridge().is_some(),
            is_reached: pool.host_access != HostAccess::None,
            is_open: !pool.isolated,
            upstream: (!dns.upstream.is_empty()).then(|| dns.upstream.as_slice().into()),
            zones,
            private_names: dns.private_names.iter().filter_map(|n| name::from_text(n)).collect(),
        }
    }
}

impl Zone {
    /// Makes the names of the device.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let text = &snapshot.device.domain;
        let domain = name::from_text(text).unwrap_or_default();
        let gateway = name::from_text(&format!("gateway.{text}")).unwrap_or_default();
        let mut zone = Self {
            domain,
            gateway,
            serial: snapshot.revision as u32,
            on_device: snapshot.device.dns_on_device,
            ca_file: snapshot.device.dns_ca_file.clone(),
            ..Self::default()
        };
        let link = |name| snapshot.pools.get(name).and_then(|p| p.link.as_ref()).map(|l| l.index);
        zone.pools = snapshot.device.pools.values().map(|pool| PoolZone::new(pool, link(&pool.name))).collect();
        let numbers: HashMap<&PoolName, u16> = snapshot.device.pools.keys().zip(0..).collect();
        let (mut wanted, mut offers) = (Vec::new(), Vec::new());
        for (container, attached) in snapshot.attached() {
            let all = zone.host(text, container.name.as_str(), attached, &numbers, &mut wanted);
            let offered = snapshot.offers.get(&container.name).into_iter().flatten();
            offers.extend(offered.map(|offer| (&container.name, offer, all.clone())));
        }
        let waiting = snapshot.containers.iter().filter(|container| container.attached().is_none());
        let declared = waiting.flat_map(|c| c.aliases().iter().map(String::as_str).chain([c.name.as_str()]));
        let offered = snapshot.offers.values().flatten().map(|offer| offer.name.as_str());
        let reserved = declared.chain(offered).filter_map(|label| name::from_text(&format!("{label}.{text}")));
        let own = wanted.iter().filter(|(kind, ..)| matches!(kind, Kind::Container | Kind::Alias));
        zone.reserved = reserved.chain(own.map(|(_, name, _)| name.clone())).collect();
        // The first source in this order has the name; containers may share an alias.
        wanted.sort_by_key(|(kind, ..)| *kind);
        for (kind, name, addresses) in wanted {
            zone.add(kind, name, &addresses);
        }
        zone.publish(snapshot, offers);
        zone.follow_rules(snapshot);
        zone
    }

    fn host<'a>(
        &mut self,
        domain: &str,
        container: &str,
        attached: &'a Attached,
        numbers: &HashMap<&PoolName, u16>,
        wanted: &mut Vec<(Kind, LowerName, Vec<u32>)>,
    ) -> Vec<u32> {
        let host = self.hosts.len() as u32;
        let text = format!("{container}.{domain}");
        let mut want = |kind, text: &str, addresses: &[u32]| {
            let name = name::from_text(text);
            wanted.extend(name.clone().map(|name| (kind, name, addresses.to_vec())));
            name
        };
        let (mut all, mut own) = (Vec::new(), Vec::new());
        let mut in_pools: HashMap<&'a PoolName, Vec<u32>> = HashMap::new();
        for (attachment, _) in attached.attachments().filter(|(_, link)| link.is_some()) {
            let Some(pool) = numbers.get(&attachment.pool).copied() else { continue };
            let mut here = Vec::new();
            for ip in attachment.ipv4.map(IpAddr::from).into_iter().chain(attachment.ipv6.map(IpAddr::from)) {
                let at = self.addresses.len() as u32;
                self.addresses.push(Address { ip, pool, host });
                self.by_address.insert(ip, at);
                self.clients.insert((pool, ip), host);
                own.push((pool, ip));
                here.push(at);
            }
            self.clients.insert((pool, IpAddr::from(Ip::link_local(attachment.mac.0))), host);
            want(Kind::Interface, &format!("{}.{text}", attachment.interface), &here);
            in_pools.entry(&attachment.pool).or_default().extend(&here);
            all.extend(here);
        }
        for (pool, here) in in_pools {
            want(Kind::InPool, &format!("{container}.{pool}.{domain}"), &here);
        }
        for alias in &attached.aliases {
            want(Kind::Alias, &format!("{alias}.{domain}"), &all);
        }
        let name = want(Kind::Container, &text, &all);
        self.hosts.push(Host { name, identity: attached.identity, own });
        all
    }

    fn add(&mut self, kind: Kind, name: LowerName, addresses: &[u32]) {
        if name == self.gateway {
            return;
        }
        let mut parent = name.base_name();
        while name::labels(&parent) > name::labels(&self.domain) {
            let above = parent.base_name();
            self.parents.entry(parent).or_default().extend_from_slice(addresses);
            parent = above;
        }
        match self.names.get_mut(&name) {
            Some(there) if there.kind == kind && kind >= Kind::Alias => {
                there.addresses.extend_from_slice(addresses);
            }
            Some(_) => {}
            None => drop(self.names.insert(name, Named { kind, addresses: addresses.to_vec(), offers: Vec::new() })),
        }
    }

    fn follow_rules(&mut self, snapshot: &Snapshot) {
        let rules = &snapshot.device.policies;
        let networks = snapshot.device.pools.values().flat_map(Pool::networks).collect();
        let containers = snapshot.members().collect::<Vec<_>>();
        if rules.is_empty() && containers.iter().all(|member| member.sockets.is_none()) {
            return;
        }
        let topology = Topology { containers, networks, ..Topology::default() };
        match compile(rules, &topology) {
            Ok(compiled) => self.policy = Some(compiled.evaluator()),
            Err(_) => self.is_closed = true,
        }
    }

    /// The content of the zone's SOA record.
    pub(super) fn soa(&self) -> RData {
        let host = Name::from_labels(std::iter::once(&b"hostmaster"[..]).chain(self.domain.iter()));
        let host = host.unwrap_or_else(|_| Name::root());
        RData::SOA(SOA::new(Name::from(&self.gateway), host, self.serial, REFRESH, RETRY, EXPIRE, TTL))
    }

    /// Its pools, in the order of their numbers.
    #[must_use]
    pub fn pools(&self) -> &[PoolZone] {
        &self.pools
    }

    /// The address of the server for the device's own programs.
    #[must_use]
    pub fn on_device(&self) -> Option<IpAddr> {
        self.on_device
    }

    /// The configured file with the certificates of authorities, for servers with TLS.
    #[must_use]
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Whether some pool's questions go to this server.
    #[must_use]
    pub fn asks(&self, server: &NameServer) -> bool {
        let mut lists = self.pools.iter().flat_map(|p| p.upstream.iter().chain(p.zones.iter().map(|(_, list)| list)));
        lists.any(|list| list.contains(server))
    }

    /// Whether it is an address of this server, which must not ask itself.
    #[must_use]
    pub fn is_own(&self, server: IpAddr) -> bool {
        let gateways = self.pools.iter().filter(|p| p.answers).flat_map(|p| &p.gateways);
        self.on_device.iter().chain(gateways).any(|own| *own == server)
    }

    /// The number of a pool whose gateway answers.
    #[must_use]
    pub fn number(&self, name: &PoolName) -> Option<u16> {
        (0..).zip(&self.pools).find(|(_, pool)| pool.name == *name && pool.answers).map(|(number, _)| number)
    }

    /// The client's pool.
    #[must_use]
    pub fn pool(&self, client: Client) -> Option<&PoolZone> {
        self.pools.get(usize::from(client.pool))
    }

    /// The addresses of a name that `client` sees, those of its own pool first. `None` when it sees no such name.
    pub(super) fn look_up(&self, client: Client, name: &LowerName) -> Option<impl Iterator<Item = IpAddr>> {
        let all = self.names.get(name).map(|n| n.addresses.as_slice()).unwrap_or_default();
        let seen = move || all.iter().filter_map(move |at| self.seen(client, *at));
        let near = seen().filter(move |a| a.pool == client.pool);
        let far = seen().filter(move |a| a.pool != client.pool);
        seen().next()?;
        Some(near.chain(far).map(|a| a.ip))
    }

    /// Whether `client` sees a name below this one.
    pub(super) fn is_above(&self, client: Client, name: &LowerName) -> bool {
        let below = self.parents.get(name).map(Vec::as_slice).unwrap_or_default();
        below.iter().any(|at| self.seen(client, *at).is_some())
    }

    /// The name of the container with this address, as far as `client` sees it.
    pub(super) fn name_of(&self, client: Client, ip: IpAddr) -> Option<&LowerName> {
        if self.pool(client).is_some_and(|p| p.gateways.contains(&ip)) {
            return Some(&self.gateway);
        }
        let at = *self.by_address.get(&ip)?;
        let address = self.seen(client, at)?;
        self.hosts.get(address.host as usize)?.name.as_ref()
    }

    /// Whether `client` sees an address in a network.
    pub(super) fn has_in(&self, client: Client, net: IpNetwork) -> bool {
        let gateways = self.pool(client).map(|p| p.gateways.as_slice()).unwrap_or_default();
        let in_net = |at: &u32| self.addresses.get(*at as usize).is_some_and(|a| net.contains(a.ip));
        gateways.iter().any(|ip| net.contains(*ip))
            || (0..self.addresses.len() as u32).filter(in_net).any(|at| self.seen(client, at).is_some())
    }

    /// The prefix length of the pool's network that contains all of `net`.
    pub(super) fn network_of(&self, net: IpNetwork) -> Option<u8> {
        let holds = |n: &&IpNetwork| n.contains(net.ip()) && n.prefix() <= net.prefix();
        self.pools.iter().flat_map(|p| &p.networks).find(holds).map(|n| n.prefix())
    }

    fn seen(&self, client: Client, at: u32) -> Option<&Address> {
        let address = self.addresses.get(at as usize)?;
        let is_seen =
            client.is_device || address.pool == client.pool || client.host.is_some_and(|host| self.sees(host, address));
        is_seen.then_some(address)
    }

    /// Whether a container is in the address's pool, or may reach the address on some port by the rules and settings.
    fn sees(&self, host: u32, address: &Address) -> bool {
        let (Some(from), Some(to)) = (self.hosts.get(host as usize), self.hosts.get(address.host as usize)) else {
            return false;
        };
        let side = |identity, ip: IpAddr| PolicySide { identity, addr: ip.into() };
        from.own.iter().any(|(pool, own)| {
            if *pool == address.pool {
                return true;
            }
            let is_open = |pool: u16| self.pools.get(usize::from(pool)).is_some_and(|p| p.is_open);
            let by_default = is_open(*pool) && is_open(address.pool);
            if own.is_ipv4() != address.ip.is_ipv4() || self.is_closed {
                return false;
            }
            match &self.policy {
                Some(policy) => policy.reaches(&side(from.identity, *own), &side(to.identity, address.ip), by_default),
                None => by_default,
            }
        })
    }

    /// The servers for a question of `client`. The second value says whether servers are configured for just this
    /// domain.
    #[must_use]
    pub fn route(&self, client: Client, name: &LowerName) -> (Route, bool) {
        let device = Route { servers: None, may_be_private: false };
        let Some(pool) = self.pool(client) else { return (device, false) };
        if let Some((_, servers)) = pool.zones.iter().find(|(zone, _)| zone.zone_of(name)) {
            return (Route { servers: Some(servers.clone()), may_be_private: true }, true);
        }
        let may_be_private = pool.private_names.iter().any(|zone| zone.zone_of(name));
        (Route { servers: pool.upstream.clone(), may_be_private }, false)
    }
}
