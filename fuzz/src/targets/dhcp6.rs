//! DHCPv6: whatever a client sends, the answer is a message that says what the server may say.

use dhcproto::v6::{Decodable, Decoder, DhcpOption, DhcpOptions, Encodable, Message, MessageType, OptionCode};
use ipnetwork::Ipv6Network;
use pv_net::dhcp::{Now, Origin};
use pv_net::dhcp6::{Answer, Ignored, Server, Table, answer, frame, wire};
use pv_net::ipam::Ipam;
use pv_net::lease::Step;
use pv_net::model::{Mac, PoolDhcp6, PoolName};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

const DUID: [u8; 4] = [0, 4, 7, 7];
const FIRST: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);
const LAST: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x13);
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);

pub fn words() -> Vec<Vec<u8>> {
    let own = [&[0, 2, 0, 4][..], &DUID].concat();
    let client = vec![0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 9];
    let association = vec![0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let address = [&[0, 5, 0, 24][..], &FIRST.octets(), &[0; 8]].concat();
    vec![own, client, association, address, vec![0, 14, 0, 0], vec![0, 6, 0, 6, 0, 23, 0, 24, 0, 56]]
}

/// Target `dhcp6`. The input is messages, each behind its length; the first octet of all says who sends them.
pub fn check(input: &[u8]) {
    let Some((who, mut rest)) = input.split_first() else { return };
    let pool: PoolName = "p".parse().expect("a name");
    let settings = PoolDhcp6 {
        range: (who & 1 == 0).then_some((FIRST, LAST)),
        leases_per_port: 4,
        lease_secs: 60,
        ntp: vec![OWN],
    };
    let server = Server {
        duid: &DUID,
        pool: &pool,
        net: Ipv6Network::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64).expect("a network"),
        settings: &settings,
        dns: Some(OWN),
        domain: "pv.local",
        container: (who & 2 != 0).then_some((who & 4 != 0).then_some(OWN)),
    };
    if let Some((_, message)) = frame::read(input) {
        assert!(message.len() + 48 <= input.len());
    }
    let (mut ipam, mut table) = (Ipam::default(), Table::default());
    let mut now = Now { unix: 1_800_000_000, at: Instant::now() };
    let mut writing = None;
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(more.len());
        let (message, next) = more.split_at(len);
        rest = next;
        let passed = u64::from(message.last().copied().unwrap_or_default());
        now = Now { unix: now.unix + passed, at: now.at + Duration::from_secs(passed) };
        let Some(request) = wire::read(message) else { continue };
        let [who, port, late] = request.xid();
        let from = Origin { mac: Mac([2, 0, 0, 0, 0, who % 3]), port: u32::from(port % 3) };
        let answered = answer(&server, &request, from, &mut table, now);
        if let Ok(Answer { steps, .. }) = &answered {
            assert!(server.container.is_none() || steps.is_empty(), "a container's lease is not a client's");
            table.begin(steps, from, now);
        }
        // What was being written is done after the next message was answered: other messages come meanwhile.
        if let Some((request, answered)) = writing.take() {
            written(&server, &request, answered, &mut table, &mut ipam);
        }
        match answered {
            Ok(answered) if late % 2 == 0 => writing = Some((request, answered)),
            Ok(Answer { steps, .. }) if late % 4 == 1 => table.undo(&steps),
            Ok(answered) => written(&server, &request, answered, &mut table, &mut ipam),
            Err(Ignored) => {}
        }
    }
    assert!(ipam.clients().count() <= 4);
}

/// The lease book has the steps of an answer.
fn written(server: &Server<'_>, request: &Message, with: Answer, table: &mut Table, ipam: &mut Ipam) {
    for step in &with.steps {
        match step {
            Step::Lend(lease) => ipam.lend(lease.clone()).expect("nobody else has it"),
            Step::End(key) => drop(ipam.end(key).expect("it was there")),
            other => panic!("{other:?}"),
        }
    }
    table.done(&with.steps);
    reply(server, request, &with.reply, ipam);
}

/// What is answered can be read, and lends no address that is not the client's.
fn reply(server: &Server<'_>, request: &Message, reply: &Message, ipam: &Ipam) {
    let bytes = reply.to_vec().expect("an answer that can be written");
    let read = Message::decode(&mut Decoder::new(&bytes)).expect("what was written");
    assert_eq!(read.xid(), request.xid());
    assert!(matches!(read.msg_type(), MessageType::Advertise | MessageType::Reply));
    assert_eq!(read.opts().get(OptionCode::ServerId), Some(&DhcpOption::ServerId(DUID.to_vec())));
    assert_eq!(read.opts().get(OptionCode::ClientId), request.opts().get(OptionCode::ClientId));
    for address in read.opts().iter().filter_map(association).flat_map(addresses) {
        let is_lent = |address: Ipv6Addr| ipam.clients().any(|lease| lease.address == address);
        match server.container {
            Some(own) => assert_eq!(own, Some(address)),
            None if read.msg_type() == MessageType::Advertise => assert!((FIRST..=LAST).contains(&address)),
            None => assert!((FIRST..=LAST).contains(&address) && is_lent(address), "{address}"),
        }
    }
}

fn association(option: &DhcpOption) -> Option<&DhcpOptions> {
    if let DhcpOption::IANA(ia) = option { Some(&ia.opts) } else { None }
}

/// The addresses that may be used.
fn addresses(opts: &DhcpOptions) -> Vec<Ipv6Addr> {
    let address = |option: &DhcpOption| match option {
        DhcpOption::IAAddr(address) if address.valid_life > 0 => Some(address.addr),
        _ => None,
    };
    opts.iter().filter_map(address).collect()
}
