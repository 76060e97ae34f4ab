//! Router discovery: what is read is what an independent parser reads, and what is written says what it should.

use etherparse::icmpv6::{NdpOptionSlice, NdpOptionsIterator, RouterAdvertisementHeader};
use ipnetwork::Ipv6Network;
use pv_net::model::{Mac, RaMode, RouterPreference};
use pv_net::ra::{Advert, Prefix, solicitation};
use std::net::Ipv6Addr;

pub fn words() -> Vec<Vec<u8>> {
    vec![vec![133, 0, 0, 0, 0, 0, 0, 0], vec![1, 1, 2, 0, 0, 0, 0, 1], vec![14, 1, 1, 2, 3, 4, 5, 6]]
}

/// Target `ra`. The input is a message of a host; and what an advertisement is made of.
pub fn check(input: &[u8]) {
    let host = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    for from in [host, Ipv6Addr::UNSPECIFIED] {
        let valid = solicitation::is_valid(input, from, 255);
        assert!(!solicitation::is_valid(input, from, 254));
        if valid {
            assert_eq!(input[..2], [133, 0]);
            let options: Vec<_> = NdpOptionsIterator::from_slice(&input[8..]).collect();
            let own = |option: &NdpOptionSlice<'_>| matches!(option, NdpOptionSlice::SourceLinkLayerAddress(_));
            // It refuses more: options of a kind that it knows and that are longer than they should be.
            let read = options.iter().map_while(|option| option.as_ref().ok());
            assert!(!from.is_unspecified() || !read.into_iter().any(own));
        }
    }
    let Some((head, rest)) = input.split_at_checked(16) else { return };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let net = |bytes: &[u8; 17]| {
        let address = u128::from_be_bytes(std::array::from_fn(|i| bytes[i + 1]));
        let net = Ipv6Network::new(address.into(), bytes[0] % 129).expect("a prefix length");
        Ipv6Network::new(net.network(), net.prefix()).expect("the same one")
    };
    let nets: Vec<Ipv6Network> = rest.as_chunks::<17>().0.iter().take(16).map(net).collect();
    let modes = [RaMode::Slaac, RaMode::Stateless, RaMode::Stateful, RaMode::RouteOnly];
    let preferences = [RouterPreference::Low, RouterPreference::Medium, RouterPreference::High];
    let said = Advert {
        mode: modes[usize::from(head[0] % 4)],
        router_secs: u16::from_be_bytes([head[1], head[2]]),
        option_secs: word(3),
        preference: preferences[usize::from(head[7] % 3)],
        mac: Mac([2, 0, head[8], head[9], head[10], head[11]]),
        mtu_bytes: word(12),
        prefixes: nets
            .iter()
            .take(2)
            .map(|net| Prefix { net: *net, preferred_secs: word(8), valid_secs: word(4) })
            .collect(),
        routes: nets.clone(),
        server: (head[7] & 0x80 != 0).then(|| Ipv6Addr::from(u128::from(word(9)))),
        domain: String::from_utf8_lossy(&rest[..rest.len().min(300)]).into_owned(),
    };
    written(&said);
    written(&said.clone().withdrawn());
}

fn written(said: &Advert) {
    let message = said.encode();
    assert_eq!((message[0], message.len() % 8), (134, 0));
    let header = RouterAdvertisementHeader::from_bytes([message[4], message[5], message[6], message[7]]);
    assert_eq!((header.router_lifetime, header.managed_address_config), (said.router_secs, said.mode.is_managed()));
    assert!(said.router_secs > 0 || message[5] & 0x18 == 0);
    let (mut prefixes, mut others) = (0, Vec::new());
    for option in NdpOptionsIterator::from_slice(&message[16..]) {
        match option.expect("what was written") {
            NdpOptionSlice::SourceLinkLayerAddress(option) => assert_eq!(option.link_layer_address(), said.mac.0),
            NdpOptionSlice::Mtu(option) => assert_eq!(option.mtu(), said.mtu_bytes),
            NdpOptionSlice::PrefixInformation(option) => {
                let (read, wanted) = (option.prefix_information(), said.prefixes[prefixes]);
                assert_eq!((read.prefix, read.prefix_length), (wanted.net.ip().octets(), wanted.net.prefix()));
                assert!(read.on_link && read.preferred_lifetime <= read.valid_lifetime);
                assert_eq!(read.autonomous_address_configuration, said.mode.is_autonomous());
                prefixes += 1;
            }
            other => others.push(other.as_bytes().to_vec()),
        }
    }
    assert_eq!(prefixes, said.prefixes.len());
    let routes: Vec<&Vec<u8>> = others.iter().filter(|o| o[0] == 24).collect();
    assert_eq!(routes.len(), said.routes.len());
    for (option, route) in routes.iter().zip(&said.routes) {
        let mut address = [0; 16];
        address[..option.len() - 8].copy_from_slice(&option[8..]);
        assert_eq!((Ipv6Addr::from(address), option[2]), (route.ip(), route.prefix()));
        assert_eq!(option[4..8], said.option_secs.to_be_bytes());
    }
    let servers: Vec<&[u8]> = others.iter().filter(|o| o[0] == 25).map(|o| &o[8..]).collect();
    assert_eq!(servers, said.server.iter().map(|s| s.octets()).collect::<Vec<_>>());
    for search in others.iter().filter(|o| o[0] == 31) {
        let name = pv_net::dns::name::from_text(&said.domain).expect("a name that was written");
        let mut rest = &search[8..];
        for label in name.iter() {
            let (len, tail) = rest.split_first().expect("a label");
            assert_eq!((usize::from(*len), &tail[..label.len()]), (label.len(), label));
            rest = &tail[label.len()..];
        }
        assert!(!rest.is_empty() && rest.iter().all(|byte| *byte == 0));
    }
}
