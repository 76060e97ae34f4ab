//! The examples of RFC 6724 section 10.1, the kernel's own additions, and that the compiled networks give the same
//! source as the direct choice.

use super::*;
use proptest::prelude::*;

/// Parses `ADDRESS/LENGTH`; at the end `!` marks an address to avoid, `?` a temporary one, and `+` a secondary one.
fn candidate(text: &str) -> Candidate {
    Candidate {
        address: text.trim_end_matches(['!', '?', '+']).parse().expect("network"),
        avoided: text.contains('!'),
        temporary: text.contains('?'),
        secondary: text.contains('+'),
    }
}

fn candidates(text: &str) -> Vec<Candidate> {
    text.split_whitespace().map(candidate).collect()
}

/// The source that `sources` have for `to`: the programs find it by the longest matching prefix.
fn said(sources: &Sources, to: IpAddr) -> Option<IpAddr> {
    let found = sources.others.iter().filter(|(net, _)| net.contains(to)).max_by_key(|(net, _)| net.prefix());
    found.map(|(_, source)| *source).or(sources.usual)
}

#[test]
fn ipv6_sources_are_those_of_rfc_6724() {
    for (what, have, temporary, to, want) in [
        ("the only one", "2001:db8::7/64", false, "2001:4860::1", "2001:db8::7"),
        ("10.1: appropriate scope", "2001:db8:3::1/64 fec0::1/64", false, "2001:db8:1::1", "2001:db8:3::1"),
        ("the same, the other way round", "fec0::1/64 2001:db8:3::1/64", false, "2001:db8:1::1", "2001:db8:3::1"),
        ("10.1: longest prefix", "2001:db8:1::2/64 2001:db8:3::2/64", false, "2001:db8:1::1", "2001:db8:1::2"),
        ("the same, the other way round", "2001:db8:3::2/64 2001:db8:1::2/64", false, "2001:db8:1::1", "2001:db8:1::2"),
        (
            "10.1: label of 6to4",
            "2002:c633:6401::2/64 2001:db8:1::2/64",
            false,
            "2002:c633:6401::1",
            "2002:c633:6401::2",
        ),
        (
            "10.1: temporary where they are preferred",
            "2001:db8:1::2/64 2001:db8:1::d5e3:0/64?",
            true,
            "2001:db8:1::1",
            "2001:db8:1::d5e3:0",
        ),
        (
            "and public where they are not",
            "2001:db8:1::d5e3:0/64? 2001:db8:1::2/64",
            false,
            "2001:db8:1::1",
            "2001:db8:1::2",
        ),
        (
            "label before temporary",
            "2002:c633:6401::2/64 2001:db8:1::d5e3:0/64?",
            true,
            "2002:c633:6401::1",
            "2002:c633:6401::2",
        ),
        ("deprecated is avoided", "2001:db8:1::2/64! 2001:db8:3::2/64", false, "2001:db8:1::1", "2001:db8:3::2"),
        (
            "before a label is asked",
            "2002:c633:6401::2/64! 2001:db8:1::2/64",
            false,
            "2002:c633:6401::1",
            "2001:db8:1::2",
        ),
        ("but used when there is no other", "2001:db8:1::2/64!", false, "2001:4860::1", "2001:db8:1::2"),
        ("scope goes before", "fec0::1/64 2001:db8:1::2/64!", false, "2001:4860::1", "2001:db8:1::2"),
        ("unique local to the world", "fd00:1::2/64 2001:db8:1::2/64", false, "2001:4860::1", "2001:db8:1::2"),
        ("and to unique local", "2001:db8:1::2/64 fd00:1::2/64", false, "fd00:7::1", "fd00:1::2"),
        ("the nearer unique local", "fd00:1::2/64 fd00:7::2/64", false, "fd00:7::1", "fd00:7::2"),
        ("a deprecated one to unique local", "2001:db8:1::2/64 fd00:1::2/64!", false, "fd00:7::1", "2001:db8:1::2"),
        ("unique local alone", "fd00:1::2/64", false, "2001:4860::1", "fd00:1::2"),
        (
            "no more bits than the prefix has",
            "2001:db8:1::1/48 2001:db8:1::2/64",
            false,
            "2001:db8:1::1:1",
            "2001:db8:1::2",
        ),
        ("the first of equals", "2001:db8:1::3/64 2001:db8:1::2/64", false, "2001:4860::1", "2001:db8:1::3"),
        ("Teredo", "2001:db8:1::2/64 2001:0:1::2/64", false, "2001:0:9::1", "2001:0:1::2"),
    ] {
        let sources = sources6(&candidates(have), temporary);
        let want: IpAddr = want.parse().expect("address");
        assert_eq!(said(&sources, to.parse().expect("address")), Some(want), "{what}: {sources:?}");
    }
    assert_eq!(sources6(&candidates("192.0.2.7/24"), false), Sources::default());
}

#[test]
fn one_address_needs_no_networks() {
    for have in ["2001:db8::7/64", "2001:db8::7/64 2001:db8::8/64", "2001:db8::7/64 fd00::1/64! 192.0.2.1/24"] {
        assert_eq!(sources6(&candidates(have), false).others, [], "{have}");
        assert_eq!(sources4(&candidates(have)).others, [], "{have}");
    }
}

#[test]
fn ipv4_sources_are_in_the_next_hops_network() {
    for (what, have, hop, want) in [
        ("the only one", "192.0.2.7/24", "192.0.2.9", Some("192.0.2.7")),
        ("the first one", "192.0.2.7/24 192.0.2.8/24+", "192.0.2.9", Some("192.0.2.7")),
        ("a secondary one listed first", "192.0.2.8/24+ 192.0.2.7/24", "192.0.2.9", Some("192.0.2.7")),
        ("the next hop's network", "192.0.2.7/24 198.51.100.7/24", "198.51.100.1", Some("198.51.100.7")),
        ("neither's network", "192.0.2.7/24 198.51.100.7/24", "203.0.113.1", Some("192.0.2.7")),
        ("the first that has it", "10.0.0.7/8 10.1.0.7/16 192.0.2.7/24", "10.1.0.1", Some("10.0.0.7")),
        ("a longer one that is first", "10.1.0.7/16 10.0.0.7/8", "10.1.0.1", Some("10.1.0.7")),
        ("and beside it", "10.1.0.7/16 10.0.0.7/8", "10.2.0.1", Some("10.0.0.7")),
        ("only a secondary one", "192.0.2.8/24+", "192.0.2.9", Some("192.0.2.8")),
        ("none", "2001:db8::7/64", "192.0.2.9", None),
    ] {
        let sources = sources4(&candidates(have));
        let want = want.map(|a| a.parse::<IpAddr>().expect("address"));
        assert_eq!(said(&sources, hop.parse().expect("address")), want, "{what}: {sources:?}");
    }
}

/// Few distinct networks, so that they share bits.
fn address() -> impl Strategy<Value = Ipv6Addr> {
    let first =
        prop::sample::select(vec![0x2001_0db8_u32, 0x2001_0000, 0x2001_0010, 0x2002_c633, 0xfd00_0001, 0xfec0_0000]);
    (first, 0u32..4, 0u64..4).prop_map(|(first, second, low)| {
        (u128::from(first) << 96 | u128::from(second) << 94 | u128::from(low) << 62 | u128::from(low)).into()
    })
}

proptest! {
    #[test]
    fn networks_say_what_the_choice_says(
        have in prop::collection::vec((address(), prop::sample::select(vec![32u8, 64, 66, 128]), any::<bool>(), any::<bool>()), 1..6),
        to in address(),
        temporary: bool,
    ) {
        let all: Vec<Candidate> = have.into_iter().map(|(addr, length, avoided, temporary)| Candidate {
            address: IpNetwork::new(addr.into(), length).expect("network"),
            avoided,
            temporary,
            secondary: false,
        }).collect();
        let direct = choose(&all, Destination::new(to, 128), temporary).map(IpAddr::from);
        let sources = sources6(&all, temporary);
        prop_assert_eq!(said(&sources, to.into()), direct, "{:?}", sources);
    }
}
