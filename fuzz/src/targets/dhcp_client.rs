//! The client of DHCPv4 and SLAAC: whatever servers, routers and neighbours send, it takes no address that a host cannot
//! have, says nothing that a `resolv.conf` would not mean, sends in its own name only, and never busies itself.

use etherparse::{Ethernet2Slice, PacketBuilder};
use pv_net::dhcp_client::{Client, Now};
use pv_net::model::{Asker, Mac, Terms};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 7]);
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const HOSTS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Where the number of a question is in its frame, and where options begin in a message.
const XID: std::ops::Range<usize> = 46..50;
const OPTIONS: usize = 240;
/// Times that the client may act one after the other without the time going on.
const AT_ONCE: usize = 4;

pub fn words() -> Vec<Vec<u8>> {
    vec![
        vec![1, 22, 192, 0, 2, 50, 53, 1, 2, 54, 4, 192, 0, 2, 1],
        vec![53, 1, 5],
        vec![1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 0, 100],
        vec![3, 4, 64, 0xc0, 0, 0, 0x23, 0x28, 0, 0, 0x11, 0x94, 0, 0, 0, 0, 0xfd, 0],
        vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
    ]
}

/// A network, as the client sees it.
struct Lan {
    client: Client,
    now: Now,
    begun: Instant,
    /// The number of its last question.
    xid: [u8; 4],
}

impl Lan {
    fn new(known: &Terms, holds: bool) -> Self {
        let begun = Instant::now();
        let now = Now { unix: 1000, at: begun };
        let asker = Asker { mac: OWN, hostname: "web".to_owned() };
        let client = if holds { Client::holding(&asker, known, now, 7) } else { Client::asking(&asker, known, now, 7) };
        Self { client, now, begun, xid: [0; 4] }
    }

    fn note(&mut self, frames: Vec<Vec<u8>>) {
        for frame in frames {
            let read = Ethernet2Slice::from_slice_without_fcs(&frame).expect("a frame");
            assert_eq!(read.source(), OWN.0, "in somebody else's name");
            if frame.get(34..38) == Some(&[0, 68, 0, 67]) {
                self.xid.copy_from_slice(&frame[XID]);
            }
        }
        is_right(&self.client.terms());
    }

    /// Lets the time go on until the client acts.
    fn wait(&mut self) {
        let Some(next) = self.client.next() else { return };
        let at = next.max(self.now.at);
        self.now = Now { at, unix: 1000 + at.duration_since(self.begun).as_secs() };
        let mut acts = 0;
        while self.client.next().is_some_and(|next| next <= self.now.at) {
            let frames = self.client.wake(self.now);
            self.note(frames);
            acts += 1;
            assert!(acts <= AT_ONCE, "it never comes to rest");
        }
    }

    fn hear(&mut self, frame: &[u8]) {
        if let Some(answer) = self.client.speak_for_itself(frame) {
            self.note(vec![answer]);
        }
        let frames = self.client.hear(frame, self.now);
        self.note(frames);
    }

    /// A server says this: an address, and options.
    fn serve(&mut self, said: &[u8]) {
        let Some((address, options)) = said.split_first_chunk::<4>() else { return };
        let mut message = vec![0; OPTIONS];
        message[..4].copy_from_slice(&[2, 1, 6, 0]);
        message[4..8].copy_from_slice(&self.xid);
        message[16..20].copy_from_slice(address);
        message[28..34].copy_from_slice(&OWN.0);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        message.extend(options);
        let packet = PacketBuilder::ethernet2(OTHER, [0xff; 6]).ipv4([192, 0, 2, 1], [255; 4], 64).udp(67, 68);
        let mut frame = Vec::new();
        packet.write(&mut frame, &message).expect("short");
        self.hear(&frame);
    }

    /// A router says this.
    fn advertise(&mut self, said: &[u8]) {
        let Some((head, rest)) = said.split_first_chunk::<4>() else { return };
        let packet = PacketBuilder::ethernet2(OTHER, [0x33, 0x33, 0, 0, 0, 1]).ipv6(ROUTER, HOSTS, 255);
        let mut frame = Vec::new();
        packet.icmpv6_raw(134, 0, *head).write(&mut frame, rest).expect("short");
        self.hear(&frame);
    }
}

/// Target `dhcp_client`. The input is a frame; and steps: how many octets, what they are, and the octets.
pub fn check(input: &[u8]) {
    let mut lan = Lan::new(&Terms::default(), false);
    lan.wait();
    lan.hear(input);
    let mut lan = Lan::new(&Terms::default(), false);
    lan.wait();
    let mut rest = input;
    while let Some((head, more)) = rest.split_first_chunk::<2>() {
        let (said, more) = more.split_at(more.len().min(head[1].into()));
        match head[0] % 4 {
            0 => lan.wait(),
            1 => lan.serve(said),
            2 => lan.advertise(said),
            _ => lan.hear(said),
        }
        rest = more;
    }
    // What it has outlives it: the next one goes on with it, and ends it some time.
    let terms = lan.client.terms();
    let text = serde_json::to_string(&terms).expect("written");
    assert_eq!(serde_json::from_str::<Terms>(&text).expect("read"), terms);
    let mut next = Lan::new(&terms, true);
    assert_eq!(next.client.terms(), terms);
    for _ in 0..64 {
        next.wait();
    }
    let asks = Lan::new(&terms, false);
    assert!(asks.client.terms().is_empty() && asks.now.at.elapsed() < Duration::from_secs(3600));
}

fn is_right(terms: &Terms) {
    if let Some(terms) = &terms.v4 {
        let given = &terms.given;
        let is_host = |a: Ipv4Addr| !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !a.is_broadcast();
        assert!(is_host(given.address) && given.dns.iter().all(|a| is_host(*a)), "{given:?}");
        assert!((8..=32).contains(&given.prefix) && given.gateway.is_none_or(|a| is_host(a) && a != given.address));
        assert!(terms.renew <= terms.rebind && terms.rebind <= terms.expires, "{terms:?}");
        names(&given.search);
    }
    if let Some(terms) = &terms.v6 {
        let given = &terms.given;
        let is_host = !given.address.is_multicast() && !given.address.is_unicast_link_local();
        assert!(is_host && !given.address.is_loopback() && matches!(given.prefix, 64 | 128), "{given:?}");
        assert!(given.dns.len() <= 3);
        names(&given.search);
    }
}

fn names(search: &[String]) {
    let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    assert!(search.len() <= 16 && search.iter().all(|name| !name.is_empty() && name.bytes().all(sign)), "{search:?}");
}
