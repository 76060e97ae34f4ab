//! Divides containers and addresses into classes. Each gets the set of selectors that match it, and each different set
//! gets a number.

use super::confined::Confined;
use super::{Member, Topology};
use crate::model::{Rule, Selector};
use ipnetwork::IpNetwork;
use pv_net_common::{Ip, PolicyClass};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// Bits before the IPv4 address in an IPv4-mapped one.
const V4_HEAD: u8 = 96;

/// A network in the maps' address space. The families are kept apart, although IPv4 lies within IPv6 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    /// First in the order, so that a network comes before the networks within it.
    pub bits: u8,
    v4: bool,
    addr: u128,
}

fn mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

impl Prefix {
    fn of(net: IpNetwork) -> Self {
        match net {
            IpNetwork::V4(net) => Self::of_addr(net.network().into()).cut(net.prefix() + V4_HEAD),
            IpNetwork::V6(net) => Self::of_addr(net.network().into()).cut(net.prefix()),
        }
    }

    fn of_addr(addr: IpAddr) -> Self {
        let v6 = match addr {
            IpAddr::V4(a) => a.to_ipv6_mapped(),
            IpAddr::V6(a) => a,
        };
        Self { bits: 128, v4: addr.is_ipv4(), addr: v6.to_bits() }
    }

    fn cut(self, bits: u8) -> Self {
        Self { bits, addr: self.addr & mask(bits), ..self }
    }

    /// The networks of all IPv4 addresses, and of the whole address space.
    fn roots() -> [Self; 2] {
        let v4 = Self::of_addr(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)).cut(V4_HEAD);
        [v4, Self { bits: 0, v4: false, addr: 0 }]
    }

    pub(crate) fn ip(self) -> Ip {
        Ip::from_octets(self.addr.to_be_bytes())
    }
}

/// The sets of selectors and their numbers, for one role: sender or receiver.
#[derive(Default)]
struct Role {
    numbers: HashMap<Selector, u32>,
    /// CIDR selectors by their network.
    nets: HashMap<Prefix, u32>,
    /// Prefix lengths that CIDR selectors have.
    lengths: BTreeSet<u8>,
    /// The selector that matches everybody, when somebody's limits need it.
    everybody: Option<u32>,
    sets: HashMap<Vec<u32>, u32>,
    /// For each selector, the classes in which it is.
    members: Vec<Vec<u32>>,
}

impl Role {
    fn next(&mut self) -> u32 {
        let number = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        self.members.push(Vec::new());
        number
    }

    fn everybody(&mut self) -> u32 {
        if let Some(number) = self.everybody {
            return number;
        }
        let number = self.next();
        self.everybody = Some(number);
        number
    }

    fn selector(&mut self, selector: &Selector) -> u32 {
        if let Some(number) = self.numbers.get(selector) {
            return *number;
        }
        let number = self.next();
        if let Selector::Cidr(net) = selector {
            let prefix = Prefix::of(*net);
            self.nets.insert(prefix, number);
            self.lengths.insert(prefix.bits);
        }
        self.numbers.insert(selector.clone(), number);
        number
    }

    fn add(&self, selector: &Selector, set: &mut Vec<u32>) {
        set.extend(self.numbers.get(selector));
    }

    /// Adds the CIDR selectors that contain all of `prefix`.
    fn add_nets(&self, prefix: Prefix, set: &mut Vec<u32>) {
        let shorter = self.lengths.range(..=prefix.bits);
        set.extend(shorter.filter_map(|bits| self.nets.get(&prefix.cut(*bits))));
    }

    /// The number of a set; 0 for the empty set, to which no rule can apply.
    fn class(&mut self, mut set: Vec<u32>) -> u32 {
        if set.is_empty() {
            return 0;
        }
        set.sort_unstable();
        set.dedup();
        if let Some(number) = self.sets.get(&set) {
            return *number;
        }
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX - 2) + 1;
        for selector in &set {
            self.members[*selector as usize].push(number);
        }
        self.sets.insert(set, number);
        number
    }
}

/// The classes of everybody, and the classes that each rule's selectors match.
pub(super) struct Classes {
    from: Role,
    to: Role,
    /// For each rule, the numbers of its selectors.
    rules: Vec<(u32, u32)>,
    /// For each container with limits, the numbers of its own selectors, and those of its peers.
    confined: Vec<(u32, u32, Vec<u32>)>,
    pub ids: Vec<(u32, Ip, PolicyClass)>,
    pub addrs: Vec<(Prefix, PolicyClass)>,
}

impl Classes {
    pub(crate) fn new(rules: &[Rule], confined: &[Confined], topology: &Topology) -> Self {
        let (mut from, mut to) = (Role::default(), Role::default());
        let rules = rules.iter().map(|r| (from.selector(&r.from), to.selector(&r.to))).collect();
        let limits = |limits: &Confined| {
            let own = Selector::Container(limits.name.clone());
            from.everybody();
            to.everybody();
            let peers = limits.connect.iter().map(|peer| to.selector(&peer.to)).collect();
            (from.selector(&own), to.selector(&own), peers)
        };
        let confined = confined.iter().map(limits).collect();
        let mut classes = Self { from, to, rules, confined, ids: Vec::new(), addrs: Vec::new() };
        for member in &topology.containers {
            classes.container(member);
        }
        classes.others(topology);
        classes
    }

    /// The classes of the senders and of the receivers of a rule.
    pub(crate) fn of_rule(&self, rule: usize) -> (&[u32], &[u32]) {
        let (from, to) = self.rules[rule];
        (&self.from.members[from as usize], &self.to.members[to as usize])
    }

    /// The classes of a container with limits: as a sender, with everybody to whom it may send; and as a receiver, with
    /// everybody who may send to it.
    pub(crate) fn of_confined(&self, place: usize) -> [(&[u32], &[u32]); 2] {
        let (from, to, _) = &self.confined[place];
        let all = |role: &Role| role.everybody.map_or(0, |number| number as usize);
        let (own_from, own_to) = (&self.from.members[*from as usize], &self.to.members[*to as usize]);
        [(own_from, &self.to.members[all(&self.to)]), (&self.from.members[all(&self.from)], own_to)]
    }

    /// The places of those peers of a container with limits that are in a class of receivers.
    pub(crate) fn peers_in(&self, place: usize, class: u32) -> impl Iterator<Item = usize> {
        let (_, _, peers) = &self.confined[place];
        let is_in = move |number: u32| self.to.members[number as usize].contains(&class);
        peers.iter().enumerate().filter(move |(_, number)| is_in(**number)).map(|(peer, _)| peer)
    }

    fn class(&mut self, sets: [Vec<u32>; 2]) -> PolicyClass {
        let [from, to] = sets;
        PolicyClass { src: self.from.class(from), dst: self.to.class(to) }
    }

    fn sets(&self, add: impl Fn(&Role, &mut Vec<u32>)) -> [Vec<u32>; 2] {
        [&self.from, &self.to].map(|role| {
            let mut set = Vec::from_iter(role.everybody);
            add(role, &mut set);
            set
        })
    }

    /// Adds an entry for the container, and one for each of its addresses that a network selector treats differently.
    fn container(&mut self, member: &Member) {
        let own = |role: &Role, set: &mut Vec<u32>| {
            role.add(&Selector::Container(member.name.clone()), set);
            for pool in &member.pools {
                role.add(&Selector::Pool(pool.clone()), set);
            }
        };
        let sets = self.sets(own);
        let usual = self.class(sets);
        self.ids.push((member.identity, Ip::UNSPECIFIED, usual));
        for addr in &member.addresses {
            let sets = self.sets(|role, set| {
                own(role, set);
                role.add_nets(Prefix::of_addr(*addr), set);
                for link_local in member.link_local.iter().filter(|l| l.addr == *addr) {
                    role.add_nets(Prefix::of_addr(link_local.beside), set);
                }
            });
            let class = self.class(sets);
            if class != usual {
                self.ids.push((member.identity, (*addr).into(), class));
            }
        }
    }

    /// Adds every network at whose border the set of selectors can change, unless it has the class of the network
    /// around it.
    fn others(&mut self, topology: &Topology) {
        let networks: HashSet<Prefix> = topology.networks.iter().map(|n| Prefix::of(*n)).collect();
        let host: HashSet<Prefix> = topology.host.iter().map(|a| Prefix::of_addr(*a)).collect();
        let nets = self.from.nets.keys().chain(self.to.nets.keys());
        let edges: BTreeSet<Prefix> =
            Prefix::roots().into_iter().chain(nets.copied()).chain(networks.iter().chain(&host).copied()).collect();
        let lengths: BTreeSet<u8> = edges.iter().map(|p| p.bits).collect();
        let mut kept: BTreeMap<Prefix, PolicyClass> = BTreeMap::new();
        for edge in edges {
            let shorter = || lengths.range(..=edge.bits).rev();
            let in_pool = shorter().any(|bits| networks.contains(&edge.cut(*bits)));
            let sets = self.sets(|role, set| {
                role.add_nets(edge, set);
                if host.contains(&edge) {
                    role.add(&Selector::Host, set);
                } else if !in_pool {
                    role.add(&Selector::World, set);
                }
            });
            let class = self.class(sets);
            let parent = shorter().skip(1).find_map(|bits| kept.get(&edge.cut(*bits)));
            // The outermost networks have no parent.
            if parent != Some(&class) {
                kept.insert(edge, class);
            }
        }
        self.addrs = kept.into_iter().collect();
    }
}
