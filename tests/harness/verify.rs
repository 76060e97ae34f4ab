//! Computes every checksum of a packet anew, and compares.

use crate::frame::checksum;
use anyhow::{Result, bail, ensure};

/// The upper layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// IPv6.
    pub v6: bool,
    /// IP protocol number.
    pub proto: u8,
    /// The kernel has left the upper layer's checksum to the network card.
    pub partial: bool,
    /// A UDP datagram without a checksum.
    pub zero: bool,
}

/// Fails when a checksum of the Ethernet frame is wrong; `Ok(None)` when the frame has no IP packet with a whole upper
/// layer.
///
/// With `partial` the upper layer's checksum must be that of the pseudo-header alone, since the card adds the rest.
/// ICMP has a whole checksum in any case. With `quotes` the packet that an ICMP error quotes is checked too. Do not set
/// it where senders leave checksums to the card: the quote then has none.
///
/// # Errors
/// A text that says which checksum is wrong.
pub fn frame(frame: &[u8], partial: bool, quotes: bool) -> Result<Option<Seen>> {
    match frame.get(12..14) {
        Some([0x08, 0x00] | [0x86, 0xdd]) => ip(&frame[14..], partial, Some(quotes)),
        _ => Ok(None),
    }
}

/// As [`frame`], for an IP packet. `quotes` is `None` for a quoted packet, which may be cut.
fn ip(packet: &[u8], partial: bool, quotes: Option<bool>) -> Result<Option<Seen>> {
    let v6 = packet.first().is_some_and(|b| b >> 4 == 6);
    let header = if v6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
    ensure!(packet.len() >= header, "a header of {} bytes", packet.len());
    let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let length = if v6 { 40 + number(4) } else { number(2) };
    // A BIG TCP packet has no length in its header; a cut quote is shorter than its header says.
    let (end, cut) = match length {
        0 | 40 if packet.len() > 65_535 => (packet.len(), false),
        _ => (length.min(packet.len()), length > packet.len()),
    };
    ensure!(!cut || quotes.is_none(), "{} of {length} bytes", packet.len());
    let (proto, addresses) = if v6 { (packet[6], &packet[8..40]) } else { (packet[9], &packet[12..20]) };
    if !v6 {
        ensure!(checksum(&[&packet[..header]]) == [0, 0], "IPv4 header: {:02x?}", &packet[..header]);
        if number(6) & 0x3fff != 0 {
            return Ok(None);
        }
    }
    if cut {
        return Ok(None);
    }
    let segment = &packet[header..end];
    let total = u32::try_from(segment.len())?.to_be_bytes();
    let pseudo = [addresses, &total, &[0, 0, 0, proto]].concat();
    let seen = Seen { v6, proto, partial, zero: proto == 17 && segment.get(6..8) == Some(&[0, 0]) };
    let (at, pseudo) = match proto {
        6 => (16, pseudo),
        17 => (6, pseudo),
        1 if !v6 => (2, Vec::new()),
        58 if v6 => (2, pseudo),
        _ => return Ok(None),
    };
    ensure!(segment.len() >= at + 2, "{} bytes of protocol {proto}", segment.len());
    if seen.zero {
        ensure!(!v6 && !partial, "a datagram without a checksum: {seen:?}");
    } else if partial && !matches!(proto, 1 | 58) {
        let sum = checksum(&[&pseudo]).map(|b| !b);
        ensure!(
            segment[at..at + 2] == sum,
            "{seen:?}: a pseudo-header's sum {:02x?}, not {sum:02x?}",
            &segment[at..at + 2]
        );
    } else if checksum(&[&pseudo, segment]) != [0, 0] {
        bail!("{seen:?}: checksum {:02x?} of {} bytes", &segment[at..at + 2], segment.len());
    }
    let error = matches!((v6, proto, segment[0]), (false, 1, 3 | 11 | 12) | (true, 58, 1..=4));
    if error && quotes == Some(true) {
        ip(&segment[8..], false, None)?;
    }
    Ok(Some(seen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{IPV4, IPV6, ethernet, udp};
    use std::net::IpAddr;

    #[test]
    fn a_wrong_byte_is_found() {
        for (kind, host) in [(IPV4, IpAddr::from([10, 0, 0, 1])), (IPV6, IpAddr::from([1u16; 8]))] {
            let good = ethernet([1; 6], [2; 6], kind, &udp((host, 1), (host, 2), b"odd"));
            assert!(frame(&good, false, true).is_ok_and(|s| s.is_some()));
            assert!(frame(&good, true, true).is_err(), "a whole checksum passed for a partial one");
            for at in good.len() - 11..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert!(frame(&bad, false, true).is_err(), "byte {at}");
            }
        }
    }
}
