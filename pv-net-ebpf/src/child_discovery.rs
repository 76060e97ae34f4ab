//! Neighbour discovery (RFC 4861) where macvlan interfaces are: a message may name only the link-layer address that its
//! frame comes from.

use crate::{
    guard::{self, same_mac},
    packet::{Packet, load},
};
use pv_net_common::DropReason;

/// The number of options that are checked; messages with more are dropped.
const MAX_OPTIONS: u32 = 12;

/// Checks the options of router solicitations and advertisements and of neighbour messages: every link-layer address in
/// one is the frame's source. Other packets pass.
#[inline(always)]
pub fn names_its_sender(packet: &Packet) -> Result<(), DropReason> {
    if !guard::is_discovery(packet) {
        return Ok(());
    }
    // RFC 4861 sections 4.1 to 4.4. A redirect names another host's.
    let head = match packet.l4_info {
        133 => 8,
        134 => 16,
        135 | 136 => 24,
        _ => return Ok(()),
    };
    // Hosts should ignore fragmented neighbour discovery (RFC 6980), but not every receiver does.
    if packet.fragment {
        return Err(DropReason::SpoofedNd);
    }
    let mut at = packet.l4 + head;
    for _ in 0..MAX_OPTIONS {
        if at + 8 > packet.end {
            break;
        }
        let option: [u8; 8] = load(packet.skb, at)?;
        if option[1] == 0 {
            return Err(DropReason::Malformed);
        }
        let mac = [option[2], option[3], option[4], option[5], option[6], option[7]];
        // Option types 1 and 2: source and target link-layer address.
        if (option[0] == 1 || option[0] == 2) && !same_mac(mac, packet.eth.src) {
            return Err(DropReason::SpoofedNd);
        }
        at += option[1] as u32 * 8;
    }
    if at == packet.end { Ok(()) } else { Err(DropReason::Malformed) }
}
