//! Source guard: a container sends only as itself, and answers neither DHCP nor router solicitations.

use crate::packet::{ETH_LEN, IPPROTO_ICMPV6, IPPROTO_UDP, Packet, load, read};
use pv_net_common::{DropReason, InterfaceInfo, Ip};

const DHCP_SERVER_BE: u16 = 67_u16.to_be();
const DHCP_CLIENT_BE: u16 = 68_u16.to_be();
const DHCPV6_SERVER_BE: u16 = 547_u16.to_be();

const ND_ROUTER_SOLICITATION: u8 = 133;
const ND_ROUTER_ADVERTISEMENT: u8 = 134;
const ND_NEIGHBOUR_SOLICITATION: u8 = 135;
const ND_NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ND_REDIRECT: u8 = 137;
const MLD_REPORT_V1: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD_REPORT_V2: u8 = 143;

/// ND options that are looked at; ND messages have one or two (RFC 4861 section 4.6).
const MAX_ND_OPTIONS: u32 = 4;

/// The frame's source MAC is the container's.
#[inline(always)]
pub fn mac(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    if same_mac(packet.eth.src, me.mac) { Ok(()) } else { Err(DropReason::SpoofedMac) }
}

/// Compares in halves of a word, not byte by byte.
#[inline(always)]
pub fn same_mac(a: [u8; 6], b: [u8; 6]) -> bool {
    let half = |m: &[u8; 6], at: usize| u16::from_ne_bytes([m[at], m[at + 1]]);
    half(&a, 0) == half(&b, 0) && half(&a, 2) == half(&b, 2) && half(&a, 4) == half(&b, 4)
}

/// ARP (RFC 826): the sender is the container, or nobody yet (probe, RFC 5227).
#[inline(always)]
pub fn arp(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    let head: [u8; 8] = read(packet.skb, ETH_LEN)?;
    let sender_mac: [u8; 6] = read(packet.skb, ETH_LEN + 8)?;
    let sender_ip: [u8; 4] = read(packet.skb, ETH_LEN + 14)?;
    // Ethernet and IPv4, with their address lengths.
    if head[0] != 0 || head[1] != 1 || head[2] != 8 || head[3] != 0 || head[4] != 6 || head[5] != 4 {
        return Err(DropReason::Malformed);
    }
    let ip = u32::from_ne_bytes(sender_ip);
    let own = !me.addr4.is_unspecified() && ip == me.addr4.words_be[3];
    if !same_mac(sender_mac, me.mac) || !(own || ip == 0) {
        return Err(DropReason::SpoofedArp);
    }
    Ok(())
}

/// IPv4: the container's address, or a DHCP client that has none yet; never a DHCP server.
#[inline(always)]
pub fn ipv4(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    let key = &packet.key;
    // Later fragments have no ports here, and are nothing without the first.
    let udp = packet.proto == IPPROTO_UDP;
    if udp && key.sport_be == DHCP_SERVER_BE {
        return Err(DropReason::RogueDhcp);
    }
    if key.src.words_be[3] == me.addr4.words_be[3] && !me.addr4.is_unspecified() {
        return Ok(());
    }
    if key.src.words_be[3] == 0 && udp && key.sport_be == DHCP_CLIENT_BE && key.dport_be == DHCP_SERVER_BE {
        return Ok(());
    }
    Err(DropReason::SpoofedIpv4)
}

/// IPv6: the container's address or its link-local one, `::` for duplicate address detection and group reports; no
/// advertisement of what is not its own.
#[inline(always)]
pub fn ipv6(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    let key = &packet.key;
    if packet.proto == IPPROTO_UDP && key.sport_be == DHCPV6_SERVER_BE {
        return Err(DropReason::RogueDhcp);
    }
    let icmp = packet.proto == IPPROTO_ICMPV6;
    if icmp {
        match packet.l4_info {
            ND_ROUTER_ADVERTISEMENT | ND_REDIRECT => return Err(DropReason::RogueRa),
            // Nodes ignore fragmented neighbour discovery (RFC 6980); an attacker's reader may not.
            ND_ROUTER_SOLICITATION | ND_NEIGHBOUR_SOLICITATION | ND_NEIGHBOUR_ADVERTISEMENT if packet.fragment => {
                return Err(DropReason::SpoofedNd);
            }
            ND_NEIGHBOUR_SOLICITATION | ND_NEIGHBOUR_ADVERTISEMENT => neighbour(packet, me)?,
            _ => {}
        }
    }
    if key.src == me.link_local || (key.src == me.addr6 && !me.addr6.is_unspecified()) {
        return Ok(());
    }
    let unspecified_may = matches!(
        packet.l4_info,
        ND_NEIGHBOUR_SOLICITATION | ND_ROUTER_SOLICITATION | MLD_REPORT_V1 | MLD_DONE | MLD_REPORT_V2
    );
    if icmp && key.src.is_unspecified() && unspecified_may {
        return Ok(());
    }
    Err(DropReason::SpoofedIpv6)
}

/// Router and neighbour discovery (RFC 4861 section 4).
#[inline(always)]
pub fn is_discovery(packet: &Packet) -> bool {
    packet.proto == IPPROTO_ICMPV6 && matches!(packet.l4_info, ND_ROUTER_SOLICITATION..=ND_REDIRECT)
}

/// A neighbour message of this very link: no router has had it in hand (RFC 4861 sections 7.1.1 and 7.1.2).
#[inline(always)]
pub fn is_neighbour(packet: &Packet) -> bool {
    let kind = matches!(packet.l4_info, ND_NEIGHBOUR_SOLICITATION | ND_NEIGHBOUR_ADVERTISEMENT);
    !packet.v4 && packet.proto == IPPROTO_ICMPV6 && kind && packet.ttl == 255
}

/// Neighbour messages (RFC 4861 sections 4.3 and 4.4): what is advertised is the container's, and so is every
/// link-layer address in an option.
#[inline(always)]
fn neighbour(packet: &Packet, me: &InterfaceInfo) -> Result<(), DropReason> {
    let target = Ip { words_be: load(packet.skb, packet.l4 + 8)? };
    let own = target == me.link_local || (target == me.addr6 && !me.addr6.is_unspecified());
    if packet.l4_info == ND_NEIGHBOUR_ADVERTISEMENT && !own {
        return Err(DropReason::SpoofedNd);
    }
    let mut at = packet.l4 + 24;
    for _ in 0..MAX_ND_OPTIONS {
        if at + 8 > packet.len() {
            return Ok(());
        }
        let option: [u8; 8] = load(packet.skb, at)?;
        if option[1] == 0 {
            return Err(DropReason::Malformed);
        }
        let mac = [option[2], option[3], option[4], option[5], option[6], option[7]];
        // Source and target link-layer address.
        if (option[0] == 1 || option[0] == 2) && !same_mac(mac, me.mac) {
            return Err(DropReason::SpoofedNd);
        }
        at += option[1] as u32 * 8;
    }
    Ok(())
}
