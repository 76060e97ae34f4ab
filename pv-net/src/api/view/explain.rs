//! The answer of `policy explain`: what happens to a flow, asked of the same maps that decide about packets.

use super::policy::{DecidedBy, PartyView, VerdictQuery, VerdictView};
use super::pool::{PortView, ports};
use crate::failure::{Failure, Kind};
use crate::kernel::bpf::PolicyProbe;
use crate::kernel::netlink::Net;
use crate::model::{Action, ContainerName, Pool, PoolName, proto_name};
use crate::plan::PoolLink;
use crate::policy::{self, Party, Place, Reason, Topology, compile, default_verdict, port_and_proto};
use crate::snapshot::Snapshot;
use pv_net_common::policy::{POLICY_ALLOW, POLICY_DENY};
use pv_net_common::{Ip, PolicyQuery, PolicyVerdict};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The program that asks the policy maps. It is loaded with the first question, since loading takes longer than
/// answering.
pub type Probe = Arc<Mutex<Option<PolicyProbe>>>;

/// The traffic of a flow, at the end where it is decided.
struct Traffic {
    proto: u8,
    port: u16,
    /// It was sent to a published port of the device.
    by_service: bool,
    /// The device's address and port that lead to the receiver's port.
    leads: Option<SocketAddr>,
    /// The receiver was named as a container, which means that it is reached by its published ports; not by its
    /// address.
    by_name: bool,
}

/// The decision, before it is turned into text.
struct Decision {
    action: Action,
    by: DecidedBy,
    rule: Option<String>,
    path: Option<String>,
    /// The container in whose `run.json` that is; the device's configuration where this is none.
    of: Option<ContainerName>,
    reason: String,
}

/// The device's own addresses at present; rules with `host` are about them.
///
/// # Errors
/// When the kernel cannot list them.
pub async fn host_addresses(snapshot: &Snapshot) -> Result<Vec<IpAddr>, Failure> {
    let links = snapshot.pools.values().filter_map(|p| p.link.as_ref());
    let bridges: Vec<_> = links.map(|link| (link.index, link.mac)).collect();
    let all = Net::here()?.addresses().await?.into_iter().map(|(link, address)| (link, address.ip()));
    Ok(policy::host_addresses(all, &bridges))
}

/// What happens to a flow, on a device with these addresses of its own. `config` is the path of the configuration file.
///
/// # Errors
/// When the flow is impossible, or the kernel does not load or run the program.
pub fn explain(
    snapshot: &Snapshot,
    host: Vec<IpAddr>,
    query: &VerdictQuery,
    probe: &Probe,
    config: &Path,
) -> Result<VerdictView, Failure> {
    let networks = snapshot.device.pools.values().flat_map(Pool::own_networks).collect();
    let name_servers = policy::name_servers(&snapshot.device.pools);
    let topology = Topology { containers: snapshot.members().collect(), networks, host, name_servers };
    let explainer = Explainer { snapshot, ports: ports(snapshot), topology };
    explainer.verdict(query, probe, config)
}

/// The state of the device at the time of the question.
struct Explainer<'a> {
    snapshot: &'a Snapshot,
    ports: Vec<PortView>,
    topology: Topology,
}

impl Explainer<'_> {
    fn verdict(&self, query: &VerdictQuery, probe: &Probe, config: &Path) -> Result<VerdictView, Failure> {
        let rules = &self.snapshot.device.policies;
        let usage = |e: policy::SideError| {
            let help = "name an attached container, an address, host or world; `pv-net containers` lists them";
            Failure::new(Kind::Usage, e.to_string()).help(help)
        };
        let from = policy::side(&query.from, &self.topology, rules).map_err(usage)?;
        let to = policy::side(&query.to, &self.topology, rules).map_err(usage)?;
        let Some((from, to)) = self.meeting(&from, &to) else {
            let why = format!("{} and {} have no address of the same family", query.from, query.to);
            return Err(Failure::new(Kind::Usage, why));
        };
        let (proto, named_port) =
            port_and_proto(&query.proto, query.port, from.addr.is_ipv6()).map_err(|e| Failure::new(Kind::Usage, e))?;
        let named = to.addr;
        // A flow to a published port is decided at its target, as in the programs.
        let (to, port, by_service) = match self.behind(&to, proto, named_port) {
            Some((addr, port)) => (policy::party(addr, &self.topology), port, true),
            None => (to, named_port, false),
        };
        let said = self.ask(&from, &to, proto, port, probe)?;
        let leads = self.leads_to(&to, proto, port);
        let by_name = query.to.parse::<IpAddr>().is_err();
        // Somebody outside of all pools reaches a container only by its published ports, except where a rule allows
        // more.
        let outside = self.pool_of(&from).is_none() && !from.host;
        let decision = self.decision(said, &from, &to, Traffic { proto, port, by_service, leads, by_name });
        let via = match (by_service, leads) {
            (true, _) => Some(SocketAddr::new(named, named_port)),
            (false, Some(leads)) if outside && by_name => Some(leads),
            _ => None,
        };
        Ok(VerdictView {
            verdict: decision.action,
            decided_by: decision.by,
            rule: decision.rule,
            // A container's run.json need not be a file.
            file: decision.path.as_ref().filter(|_| decision.of.is_none()).map(|_| config.display().to_string()),
            path: decision.path,
            reason: decision.reason,
            generation: self.snapshot.policy.generation,
            from: self.party(&from),
            to: self.party(&to),
            proto: proto_name(proto.into()),
            port,
            via: via.map(|v| v.to_string()),
        })
    }

    /// The verdict of the rules in force, by running the program.
    fn ask(&self, from: &Party, to: &Party, proto: u8, port: u16, probe: &Probe) -> Result<PolicyVerdict, Failure> {
        let Some(plane) = &self.snapshot.plane else {
            // The data plane is not loaded, so no packet is decided; the rules are evaluated here, with the same
            // result.
            let compiled = compile(&self.snapshot.device.policies, &self.topology)?;
            return Ok(compiled.evaluator().verdict(&from.side, &to.side, proto, port));
        };
        let generation = self.snapshot.policy.generation;
        let asked = PolicyQuery { generation, src: from.side, dst: to.side, port_be: port.to_be(), proto, reserved: 0 };
        // A thread that panicked with the lock has loaded the program or not; both are valid.
        let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = match &mut *probe {
            Some(probe) => probe,
            none => none.insert(PolicyProbe::open(plane.reader.pin_dir())?),
        };
        Ok(probe.ask(&asked)?)
    }

    /// The pair of addresses that would be used: of the same family, in one pool if possible, else IPv4 first.
    fn meeting(&self, from: &[Party], to: &[Party]) -> Option<(Party, Party)> {
        let pairs = from.iter().flat_map(|f| to.iter().map(move |t| (f, t)));
        let pairs = pairs.filter(|(f, t)| f.addr.is_ipv4() == t.addr.is_ipv4());
        let apart = |(f, t): &(&Party, &Party)| {
            let (f, t) = (self.pool_of(f), self.pool_of(t));
            f.is_none() || f.map(|p| &p.name) != t.map(|p| &p.name)
        };
        pairs.min_by_key(|pair| (apart(pair), pair.0.addr.is_ipv6())).map(|(f, t)| (f.clone(), t.clone()))
    }

    /// The pool whose network has the party's address; `None` for the device's own addresses.
    fn pool_of(&self, party: &Party) -> Option<&Pool> {
        if let Some(link) = &party.link {
            return self.snapshot.device.pools.get(link);
        }
        // Other hosts in the network of a macvlan pool are outside.
        let holds = |p: &&Pool| match party.container {
            Some(_) => p.networks().any(|n| n.contains(party.addr)),
            None => p.own_networks().any(|n| n.contains(party.addr)),
        };
        self.snapshot.device.pools.values().find(holds).filter(|_| !party.host)
    }

    fn party(&self, party: &Party) -> PartyView {
        PartyView {
            address: party.addr,
            container: party.container.as_ref().map(ToString::to_string),
            pool: self.pool_of(party).map(|p| p.name.to_string()),
        }
    }

    /// For a link-local address: the pool on whose link it is valid. `None` for other addresses and for strangers'.
    fn link_of(&self, party: &Party) -> Option<PoolName> {
        let of_bridge = || {
            let bridge = |link: &PoolLink| IpAddr::from(Ip::link_local(link.mac.0)) == party.addr;
            self.snapshot.pools.iter().find(|(_, p)| p.link.as_ref().is_some_and(bridge)).map(|(name, _)| name.clone())
        };
        party.link.clone().or_else(of_bridge)
    }

    /// Whether a link-local address of one party does not reach the other party.
    fn off_link(&self, from: &Party, to: &Party) -> bool {
        let pool = |party: &Party| self.pool_of(party).map(|p| p.name.clone());
        let apart = |one: &Party, other: &Party| {
            // The device is on every pool's link, but each of its link-local addresses belongs to one link.
            let there = if other.host { self.link_of(other).or_else(|| self.link_of(one)) } else { pool(other) };
            self.link_of(one).is_some_and(|link| there != Some(link))
        };
        apart(from, to) || apart(to, from)
    }

    fn decision(&self, said: PolicyVerdict, from: &Party, to: &Party, traffic: Traffic) -> Decision {
        if self.off_link(from, to) {
            let reason = "a link-local address is valid on the link of its own pool alone".to_owned();
            return Decision { action: Action::Deny, by: DecidedBy::Default, rule: None, path: None, of: None, reason };
        }
        let action = match said.action {
            // Programs see only traffic from or to a container.
            _ if self.pool_of(from).is_none() && self.pool_of(to).is_none() => {
                return self.default_decision(from, to, traffic);
            }
            POLICY_ALLOW => Action::Allow,
            POLICY_DENY => Action::Deny,
            _ => return self.default_decision(from, to, traffic),
        };
        let by = DecidedBy::Rule;
        if said == PolicyVerdict::UNKNOWN {
            let reason = "the policy in force does not know the container yet".to_owned();
            return Decision { action, by, rule: None, path: None, of: None, reason };
        }
        match self.snapshot.policy.rules.get(said.rule as usize) {
            Some(rule) => {
                let name = rule.name.as_ref().unwrap_or(&rule.path);
                let reason = match rule.of {
                    Some(_) => format!("{name} grants no such flow"),
                    None => format!("rule {name} says {}", action.label()),
                };
                Decision {
                    action,
                    by,
                    rule: rule.name.clone(),
                    path: Some(rule.path.clone()),
                    of: rule.of.clone(),
                    reason,
                }
            }
            None => {
                let reason = format!("rule number {} of an earlier configuration says {}", said.rule, action.label());
                Decision { action, by, rule: None, path: None, of: None, reason }
            }
        }
    }

    fn default_decision(&self, from: &Party, to: &Party, traffic: Traffic) -> Decision {
        let Traffic { proto, port, by_service, leads, by_name } = traffic;
        let place = |party: &Party| match self.pool_of(party) {
            Some(pool) => Place::Pool(pool),
            None if party.host && self.is_gateway(from, party) => Place::Gateway,
            None if party.host => Place::Host,
            None => Place::World,
        };
        // For a container that sends, a published port belongs to the device; for all others it belongs to the
        // container.
        let target = if by_service && self.pool_of(from).is_some() { Place::Host } else { place(to) };
        // A macvlan interface is reached at the container's own address.
        let direct = leads.is_some_and(|leads| leads.ip() == to.addr);
        let published = by_service || direct || (by_name && leads.is_some());
        let (action, decided) = default_verdict(place(from), target, proto, port, published);
        let mut reason = format!("no rule applies: {decided}");
        if let (Reason::NotPublished, Some(leads)) = (&decided, leads) {
            reason += &format!(", not the container's own address: {leads} of the device leads there");
        }
        Decision { action, by: DecidedBy::Default, rule: None, path: decided.path(), of: None, reason }
    }

    /// Whether `to` is the gateway of the pool of `from`, or a link-local address of its bridge.
    fn is_gateway(&self, from: &Party, to: &Party) -> bool {
        let is_gateways = |pool: &Pool| pool.gateways().any(|gateway| gateway.ip() == to.addr);
        matches!(to.addr, IpAddr::V6(a) if a.is_unicast_link_local()) || self.pool_of(from).is_some_and(is_gateways)
    }

    /// The target of a published port of the device.
    fn behind(&self, to: &Party, proto: u8, port: u16) -> Option<(IpAddr, u16)> {
        if !to.host {
            return None;
        }
        let proto = proto_name(proto.into());
        self.ports.iter().find_map(|p| {
            let all = p.host_address.is_unspecified() && p.host_address.is_ipv4() == to.addr.is_ipv4();
            let here = (all || p.host_address == to.addr) && p.proto == proto;
            let offset = port.checked_sub(p.host_port).filter(|_| here && port <= p.host_port_end)?;
            Some((p.container_address, p.container_port.checked_add(offset)?))
        })
    }

    /// The device's published port, other than for the device itself, that leads to this port of a container.
    fn leads_to(&self, to: &Party, proto: u8, port: u16) -> Option<SocketAddr> {
        let proto = proto_name(proto.into());
        self.ports.iter().find_map(|p| {
            let theirs = p.container_address == to.addr && p.proto == proto && !p.host_address.is_loopback();
            let offset = port.checked_sub(p.container_port).filter(|_| theirs)?;
            let at = p.host_port.checked_add(offset).filter(|at| *at <= p.host_port_end)?;
            Some(SocketAddr::new(p.host_address, at))
        })
    }
}
