//! What the host's own firewall and its reverse path filters take away from pools. Pure.

use std::collections::BTreeSet;

/// An nftables base chain whose policy is drop; `iptables-nft` makes such chains too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppingChain {
    /// Its family (`NFPROTO_*`).
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its hook (`NF_INET_*`, `NF_ARP_*`).
    pub hook: u32,
}

const INET: u8 = 1;
const IPV4: u8 = 2;
const ARP: u8 = 3;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;
/// The input hook is 1 for IP, and 0 for ARP, where 1 is the output hook.
const INPUT: u32 = 1;
const ARP_INPUT: u32 = 0;
const FORWARD: u32 = 2;

/// Which bridged packets `br_netfilter` passes to the chains of each family (`net.bridge.bridge-nf-call-*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bridged {
    /// `bridge-nf-call-iptables`.
    pub ipv4: bool,
    /// `bridge-nf-call-ip6tables`.
    pub ipv6: bool,
    /// `bridge-nf-call-arptables`.
    pub arp: bool,
}

impl DroppingChain {
    /// What traffic of a pool the chain drops, and the sysctl that makes bridged packets reach it, if one does.
    fn takes(&self, bridged: Bridged) -> Option<(&'static str, Option<&'static str>)> {
        let inside = "neighbour discovery and what is forwarded inside pools";
        let to_device = "neighbour discovery, ARP, DHCP and DNS from containers to the device";
        match (self.family, self.hook) {
            (IPV6 | INET, FORWARD) if bridged.ipv6 => Some((inside, Some("bridge-nf-call-ip6tables"))),
            (IPV4 | INET, FORWARD) if bridged.ipv4 => {
                Some(("what is forwarded inside pools", Some("bridge-nf-call-iptables")))
            }
            (ARP, FORWARD) if bridged.arp => Some(("ARP inside pools", Some("bridge-nf-call-arptables"))),
            (BRIDGE, FORWARD) => Some((inside, None)),
            (BRIDGE, INPUT) => Some((to_device, None)),
            (IPV6 | INET, INPUT) => Some(("neighbour discovery, DHCP and DNS from containers to the device", None)),
            (IPV4, INPUT) => Some(("DHCP and DNS from containers to the device", None)),
            (ARP, ARP_INPUT) => Some(("ARP from containers to the device", None)),
            _ => None,
        }
    }

    fn family(&self) -> &'static str {
        match self.family {
            INET => "inet",
            IPV4 => "ip",
            ARP => "arp",
            BRIDGE => "bridge",
            _ => "ip6",
        }
    }
}

/// The conditions, with a remedy each, about traffic that `chains` take from the pools on `bridges`. `named` are the
/// bridges that rules of a chain's table mention: the administrator has considered those, so there is no condition
/// about them.
#[must_use]
pub fn kept_by_firewall(
    chains: &[DroppingChain],
    bridged: Bridged,
    bridges: &BTreeSet<&str>,
    named: impl Fn(&DroppingChain, &str) -> bool,
) -> Vec<String> {
    let mut conditions = Vec::new();
    for chain in chains {
        let Some((lost, sysctl)) = chain.takes(bridged) else { continue };
        let concerned: Vec<&str> = bridges.iter().copied().filter(|bridge| !named(chain, bridge)).collect();
        let [first, ..] = concerned[..] else { continue };
        let (family, table, name) = (chain.family(), &chain.table, &chain.name);
        let why =
            sysctl.map(|key| format!(", and bridged packets meet it (net.bridge.{key} is 1)")).unwrap_or_default();
        let or = sysctl.map(|key| format!("sysctl net.bridge.{key}=0, or ")).unwrap_or_default();
        let word = if matches!(chain.family, BRIDGE) { "meta ibrname" } else { "iifname" };
        conditions.push(format!(
            "the host's firewall drops by policy in chain {family} {table} {name}{why}, and no rule names {}: {lost} may \
             be dropped: {or}nft insert rule {family} {table} {name} {word} {first} accept",
            concerned.join(", ")
        ));
    }
    conditions
}

/// The condition about strict reverse path filtering on a device with several uplinks. `filters` are the uplinks with
/// their effective `rp_filter`.
#[must_use]
pub fn strict_filters(filters: &[(&str, u32)]) -> Option<String> {
    let strict: Vec<&str> = filters.iter().filter(|(_, filter)| *filter == 1).map(|(name, _)| *name).collect();
    if filters.len() < 2 || strict.is_empty() {
        return None;
    }
    Some(format!(
        "uplinks {}: rp_filter is strict, and there are several uplinks: what comes by one and is answered by another is \
         dropped by the device's stack: sysctl net.ipv4.conf.LINK.rp_filter=2",
        strict.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Bridged = Bridged { ipv4: true, ipv6: true, arp: true };

    fn chain(family: u8, hook: u32) -> DroppingChain {
        DroppingChain { family, table: "filter".to_owned(), name: "CHAIN".to_owned(), hook }
    }

    #[test]
    fn chains_that_pools_meet_are_conditions() {
        for (what, chain, bridged, said) in [
            (
                "ip6 forward",
                chain(IPV6, FORWARD),
                ALL,
                Some(
                    "sysctl net.bridge.bridge-nf-call-ip6tables=0, or nft insert rule ip6 filter CHAIN iifname pvbr3 accept",
                ),
            ),
            ("ip6 forward, not bridged", chain(IPV6, FORWARD), Bridged::default(), None),
            ("inet forward", chain(INET, FORWARD), ALL, Some("neighbour discovery and what is forwarded inside pools")),
            (
                "inet forward, IPv4 alone",
                chain(INET, FORWARD),
                Bridged { ipv6: false, ..ALL },
                Some("bridge-nf-call-iptables=0"),
            ),
            ("ip forward", chain(IPV4, FORWARD), ALL, Some("bridge-nf-call-iptables is 1")),
            ("arp forward", chain(ARP, FORWARD), ALL, Some("ARP inside pools")),
            ("bridge forward", chain(BRIDGE, FORWARD), Bridged::default(), Some("meta ibrname pvbr3 accept")),
            ("inet input", chain(INET, INPUT), Bridged::default(), Some("DHCP and DNS from containers to the device")),
            (
                "ip input",
                chain(IPV4, INPUT),
                Bridged::default(),
                Some("nft insert rule ip filter CHAIN iifname pvbr3 accept"),
            ),
            ("ARP output", chain(ARP, INPUT), ALL, None),
            ("ip output", chain(IPV4, 3), ALL, None),
        ] {
            let found = kept_by_firewall(&[chain], bridged, &["pvbr3", "pvbr4"].into(), |_, _| false);
            match said {
                Some(said) => assert!(found.len() == 1 && found[0].contains(said), "{what}: {found:?}"),
                None => assert_eq!(found, Vec::<String>::new(), "{what}"),
            }
        }
    }

    #[test]
    fn a_bridge_that_rules_name_is_somebodys_decision() {
        let chains = [chain(INET, INPUT)];
        let found = |named: &[&str]| {
            kept_by_firewall(&chains, ALL, &["pvbr3", "pvbr4"].into(), |_, bridge| named.contains(&bridge))
        };
        assert!(found(&["pvbr3"])[0].contains("no rule names pvbr4:"));
        assert_eq!(found(&["pvbr3", "pvbr4"]), Vec::<String>::new());
    }

    #[test]
    fn strict_filters_matter_where_there_are_several_ways() {
        assert_eq!(strict_filters(&[("up0", 1)]), None);
        assert_eq!(strict_filters(&[("up0", 2), ("up1", 0)]), None);
        assert!(strict_filters(&[("up0", 2), ("up1", 1)]).is_some_and(|why| why.starts_with("uplinks up1:")));
    }
}
