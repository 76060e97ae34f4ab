//! Which address a new client gets.

use std::net::Ipv6Addr;

/// A free address between `first` and `last`. The search begins where the client's identity says, so that a client
/// tends to get the same address again, and looks at `most` addresses.
pub fn choose(
    (first, last): (Ipv6Addr, Ipv6Addr),
    client: &[u8],
    most: usize,
    is_free: impl Fn(Ipv6Addr) -> bool,
) -> Option<Ipv6Addr> {
    let (base, width) = (u128::from(first), u128::from(last).checked_sub(u128::from(first))?);
    let start = match width.checked_add(1) {
        Some(size) => hash(client) % size,
        None => hash(client),
    };
    let looks = u128::try_from(most).unwrap_or(u128::MAX).min(width.saturating_add(1));
    // Past the last address it goes on with the first.
    let at = |step: u128| if step <= width - start { base + start + step } else { base + (step - (width - start) - 1) };
    (0..looks).map(|step| Ipv6Addr::from(at(step))).find(|address| is_free(*address))
}

/// FNV-1a, which spreads identities that differ in few octets.
fn hash(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(first: &str, last: &str) -> (Ipv6Addr, Ipv6Addr) {
        (first.parse().expect("an address"), last.parse().expect("an address"))
    }

    #[test]
    fn a_range_is_given_out_to_its_last_address() {
        let range = range("fd00::fffd", "fd00::1:2");
        let mut taken = BTreeSet::new();
        for client in 0..6_u8 {
            let got = choose(range, &[client], taken.len() + 1, |a| !taken.contains(&a)).expect("one is free");
            assert!((range.0..=range.1).contains(&got) && taken.insert(got), "{got}");
        }
        assert_eq!(choose(range, &[9], 100, |a| !taken.contains(&a)), None);
        assert_eq!(choose((range.1, range.0), &[9], 100, |_| true), None);
    }

    #[test]
    fn a_client_gets_the_same_address_again() {
        let range = range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        let got = |client: &[u8]| choose(range, client, 1, |_| true);
        assert_eq!(got(b"one"), got(b"one"));
        assert_ne!(got(b"one"), got(b"two"));
    }
}
