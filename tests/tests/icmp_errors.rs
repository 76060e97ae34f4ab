//! ICMP and ICMPv6 errors about translated flows: every type and code, every kind of quote, both directions. The test
//! computes each expected packet with all its checksums, and compares byte by byte.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::{Container, Device, Namespace, frame, raw::RawSocket};
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

/// Addresses that nobody has, so that no kernel answers for them.
const ABSENT: [&str; 2] = ["192.0.2.50", "2001:db8:1::50"];
const PATIENCE: Duration = Duration::from_secs(10);

/// The types and codes of a family: RFC 792, RFC 1122, RFC 1812, RFC 4443.
fn kinds(family: usize) -> Vec<(u8, u8)> {
    if family == 0 {
        return (0..=15).map(|code| (3, code)).chain([(11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]).collect();
    }
    (0..=6).map(|code| (1, code)).chain([(2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)]).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Proto {
    Tcp,
    Udp,
    Echo,
}

#[derive(Clone, Copy, Debug)]
enum Opener {
    /// A flow by masquerade, opened by the container.
    Inside,
    /// A flow by a published port, opened from outside.
    Outside,
}

type Pair = ((IpAddr, u16), (IpAddr, u16));

/// A flow: its inner end, the same end as seen outside, and its outer end.
#[derive(Clone, Copy, Debug)]
struct Flow {
    proto: Proto,
    opener: Opener,
    inside: (IpAddr, u16),
    device: (IpAddr, u16),
    outside: (IpAddr, u16),
}

/// The kind of quote in an error.
#[derive(Clone, Copy, Debug)]
enum Quote {
    /// The header and eight bytes.
    Short,
    Long,
    /// With IPv4 options; for IPv6 a longer packet.
    Options,
    /// Of a first fragment.
    Fragment,
    /// Of a datagram whose translated checksum would be zero, and must be sent as another value.
    ZeroSum,
}

const QUOTES: [Quote; 5] = [Quote::Short, Quote::Long, Quote::Options, Quote::Fragment, Quote::ZeroSum];

struct Lab {
    _device: Device,
    _outside: Namespace,
    web: Container,
    wan: RawSocket,
    lan: RawSocket,
    macs: Macs,
}

struct Macs {
    wan: [u8; 6],
    uplink: [u8; 6],
    lan: [u8; 6],
    gateway: [u8; 6],
}

fn lab() -> Result<Lab> {
    let config = configs::masqueraded();
    let mut device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    let macs = Macs {
        wan: outside.mac("eth0")?,
        uplink: device.ns.mac("up0")?,
        lan: web.mac()?,
        gateway: device.ns.mac("pvbr3")?,
    };
    let wan_mac = macs.wan.map(|b| format!("{b:02x}")).join(":");
    for host in ABSENT {
        device.ns.ip(&format!("neigh replace {host} lladdr {wan_mac} dev up0 nud permanent"))?;
    }
    // Without addresses the container's kernel does not answer.
    web.ns.ip("addr flush dev eth0")?;
    let (wan, lan) = (RawSocket::open(&outside, "eth0")?, RawSocket::open(&web.ns, "eth0")?);
    Ok(Lab { _device: device, _outside: outside, web, wan, lan, macs })
}

fn header(addr: IpAddr) -> usize {
    if addr.is_ipv4() { 20 } else { 40 }
}

/// A packet of the flow; with `reply` an echo is a reply.
fn packet(proto: Proto, (src, dst): Pair, reply: bool, payload: &[u8]) -> Vec<u8> {
    match proto {
        Proto::Tcp => frame::tcp(src, dst, if reply { 0x12 } else { 0x02 }, payload),
        Proto::Udp => frame::udp(src, dst, payload),
        Proto::Echo => {
            let kind = match (src.0.is_ipv4(), reply) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            let [a, b] = src.1.to_be_bytes();
            frame::icmp(src.0, dst.0, &[&[kind, 0, 0, 0, a, b, 0, 1], payload].concat())
        }
    }
}

fn hop(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        frame::fix_ipv4(&mut packet);
    } else {
        packet[7] -= 1;
    }
    packet
}

fn as_fragment(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let mut all = packet.to_vec();
        all[6] = 0x20;
        frame::fix_ipv4(&mut all);
        return all;
    }
    let mut all = [&packet[..40], &[packet[6], 0, 0, 1, 1, 2, 3, 4], &packet[40..]].concat();
    all[6] = 44;
    let length = u16::from_be_bytes([all[4], all[5]]) + 8;
    all[4..6].copy_from_slice(&length.to_be_bytes());
    all
}

/// The quote of the flow's packet from `pair.0` to `pair.1`. All views of a packet have the same payload, which ends
/// with `filler`.
fn quoted(flow: &Flow, pair: Pair, reply: bool, quote: Quote, filler: [u8; 2]) -> Vec<u8> {
    let payload = match quote {
        Quote::Options if pair.0.0.is_ipv6() => [&[0x5a; 500][..], &filler].concat(),
        _ => [&[0x5a; 40][..], &filler].concat(),
    };
    let mut whole = packet(flow.proto, pair, reply, &payload);
    let ip = header(pair.0.0);
    // A UDP checksum of zero means "none" (RFC 768).
    if flow.proto == Proto::Udp && whole[ip + 6..ip + 8] == [0, 0] {
        whole[ip + 6..ip + 8].copy_from_slice(&[0xff, 0xff]);
    }
    match quote {
        Quote::Short => whole[..ip + 8].to_vec(),
        Quote::Options if pair.0.0.is_ipv4() => frame::with_options(&whole),
        Quote::Fragment => {
            let all = as_fragment(&whole);
            all[..all.len() - 20].to_vec()
        }
        _ => whole,
    }
}

/// The payload's last bytes for which the checksum of the packet from `pair.0` to `pair.1` is zero.
fn zero_sum(flow: &Flow, pair: Pair, reply: bool) -> [u8; 2] {
    let whole = quoted(flow, pair, reply, Quote::Long, [0, 0]);
    let at = header(pair.0.0) + if flow.proto == Proto::Udp { 6 } else { return [0, 0] };
    [whole[at], whole[at + 1]]
}

/// An ICMP error from `src` to `dst`.
fn error(src: IpAddr, dst: IpAddr, (kind, code): (u8, u8), quote: &[u8]) -> Vec<u8> {
    frame::icmp(src, dst, &[&[kind, code, 0, 0, 0, 0, 5, 0xdc], quote].concat())
}

impl Lab {
    fn send_outside(&self, packet: &[u8]) -> Result<()> {
        let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
        self.wan.send(&frame::ethernet(self.macs.wan, self.macs.uplink, kind, packet))
    }

    fn send_inside(&self, packet: &[u8]) -> Result<()> {
        let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
        self.lan.send(&frame::ethernet(self.macs.lan, self.macs.gateway, kind, packet))
    }

    /// The next packet from `src` to `dst` that arrives at `socket`.
    fn arrives(&self, socket: &RawSocket, (src, dst): (IpAddr, IpAddr)) -> Result<Vec<u8>> {
        let got = socket.receive(PATIENCE, |f| addresses(f) == Some((src, dst)))?;
        let got = got.with_context(|| format!("nothing from {src} to {dst}"))?;
        Ok(got[14..].to_vec())
    }

    /// Opens a flow, and answers it.
    fn open(&self, family: usize, proto: Proto, opener: Opener, port: u16) -> Result<Flow> {
        let outside: IpAddr = ABSENT[family].parse()?;
        let (_, device) = HOSTS[family];
        let inside = self.web.addresses()[family];
        let mut flow = match opener {
            Opener::Inside => {
                let far = if proto == Proto::Echo { port } else { 7000 };
                Flow { proto, opener, inside: (inside, port), device: (device, port), outside: (outside, far) }
            }
            Opener::Outside => {
                Flow { proto, opener, inside: (inside, 80), device: (device, 8080), outside: (outside, port) }
            }
        };
        let first_reply = |flow: &Flow| match opener {
            Opener::Inside => {
                self.send_inside(&packet(proto, (flow.inside, flow.outside), false, b"first"))?;
                self.arrives(&self.wan, (device, outside)).map(Some)
            }
            Opener::Outside => {
                self.send_outside(&packet(proto, (flow.outside, flow.device), false, b"first"))?;
                self.arrives(&self.lan, (outside, inside)).map(|_| None)
            }
        };
        if let Some(seen) = first_reply(&flow)? {
            // The port that masquerade has chosen.
            let at = header(outside) + if proto == Proto::Echo { 4 } else { 0 };
            flow.device.1 = u16::from_be_bytes([seen[at], seen[at + 1]]);
            if proto == Proto::Echo {
                flow.outside.1 = flow.device.1;
            }
            self.send_outside(&packet(proto, (flow.outside, flow.device), true, b"reply"))?;
            self.arrives(&self.lan, (outside, inside))?;
        } else {
            self.send_inside(&packet(proto, (flow.inside, flow.outside), true, b"reply"))?;
            self.arrives(&self.wan, (device, outside))?;
        }
        Ok(flow)
    }

    /// Sends an error from outside about a packet of the container; fails unless it arrives as expected.
    fn inwards(&self, flow: &Flow, from: IpAddr, kind: (u8, u8), quote: Quote, options: bool) -> Result<()> {
        let reply = matches!(flow.opener, Opener::Outside);
        let (sent, wanted) = ((flow.device, flow.outside), (flow.inside, self.far(flow)));
        let filler = if matches!(quote, Quote::ZeroSum) { zero_sum(flow, wanted, reply) } else { [7, 7] };
        let outer = |p: Vec<u8>| if options { frame::with_options(&p) } else { p };
        let told = outer(error(from, flow.device.0, kind, &quoted(flow, sent, reply, quote, filler)));
        let want = outer(error(from, flow.inside.0, kind, &quoted(flow, wanted, reply, quote, filler)));
        self.send_outside(&told)?;
        same(&self.arrives(&self.lan, (from, flow.inside.0))?, &hop(want))
    }

    /// Sends an error from the container about a packet from outside; fails unless it arrives as expected.
    fn outwards(&self, flow: &Flow, kind: (u8, u8), quote: Quote) -> Result<()> {
        let reply = matches!(flow.opener, Opener::Inside);
        let (sent, wanted) = ((self.far(flow), flow.inside), (flow.outside, flow.device));
        let filler = if matches!(quote, Quote::ZeroSum) { zero_sum(flow, wanted, reply) } else { [7, 7] };
        let told = error(flow.inside.0, flow.outside.0, kind, &quoted(flow, sent, reply, quote, filler));
        let want = error(flow.device.0, flow.outside.0, kind, &quoted(flow, wanted, reply, quote, filler));
        self.send_inside(&told)?;
        same(&self.arrives(&self.wan, (flow.device.0, flow.outside.0))?, &hop(want))
    }

    /// The outer end as the container sees it; for an echo it has the container's own identifier.
    fn far(&self, flow: &Flow) -> (IpAddr, u16) {
        let port = if flow.proto == Proto::Echo { flow.inside.1 } else { flow.outside.1 };
        (flow.outside.0, port)
    }
}

fn addresses(f: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let four = |at: usize| f.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
    let six = |at: usize| f.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from);
    match u16::from_be_bytes([*f.get(12)?, *f.get(13)?]) {
        frame::IPV4 => Some((four(26)?, four(30)?)),
        frame::IPV6 => Some((six(22)?, six(38)?)),
        _ => None,
    }
}

fn same(got: &[u8], want: &[u8]) -> Result<()> {
    let first = got.iter().zip(want).position(|(a, b)| a != b);
    ensure!(got == want, "differs from byte {first:?} on:\n got {got:02x?}\nwant {want:02x?}");
    Ok(())
}

/// Flows of all kinds, with different ports from `first` on.
fn flows(lab: &Lab, family: usize, first: u16) -> Result<Vec<Flow>> {
    use Opener::{Inside, Outside};
    use Proto::{Echo, Tcp, Udp};
    let all = [(Tcp, Inside), (Udp, Inside), (Echo, Inside), (Tcp, Outside), (Udp, Outside)];
    let one = |((proto, opener), port): ((Proto, Opener), u16)| {
        lab.open(family, proto, opener, port).with_context(|| format!("{proto:?} opened by {opener:?}"))
    };
    all.into_iter().zip(first..).map(one).collect()
}

#[test]
fn from_outside_they_reach_the_container() -> Result<()> {
    let lab = lab()?;
    for family in [0, 1] {
        let (router, _) = HOSTS[family];
        for flow in flows(&lab, family, 5000)? {
            for kind in kinds(family) {
                for quote in QUOTES {
                    // From a router on the way, and from the host itself.
                    for from in [router, flow.outside.0] {
                        lab.inwards(&flow, from, kind, quote, false)
                            .with_context(|| format!("{kind:?} {quote:?} from {from}: {flow:?}"))?;
                    }
                }
            }
            if family == 0 {
                lab.inwards(&flow, router, (3, 1), Quote::Long, true).context("with options of its own")?;
            }
        }
    }
    Ok(())
}

#[test]
fn from_the_container_they_reach_outside() -> Result<()> {
    let lab = lab()?;
    for family in [0, 1] {
        for flow in flows(&lab, family, 5000)? {
            for kind in kinds(family) {
                for quote in QUOTES {
                    lab.outwards(&flow, kind, quote).with_context(|| format!("{kind:?} {quote:?}: {flow:?}"))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn about_unknown_flows_they_reach_nobody() -> Result<()> {
    let lab = lab()?;
    for family in [0, 1] {
        let (router, _) = HOSTS[family];
        let known = flows(&lab, family, 5000)?;
        for flow in &known {
            // There is no flow on the next port; for a published port a flow also needs the client's port.
            let mut unknown = *flow;
            unknown.outside.1 += 100;
            if flow.proto == Proto::Echo {
                unknown.device.1 += 100;
                unknown.inside.1 += 100;
            }
            for kind in kinds(family) {
                for quote in QUOTES {
                    let about = quoted(&unknown, (unknown.device, unknown.outside), false, quote, [7, 7]);
                    lab.send_outside(&error(router, unknown.device.0, kind, &about))?;
                    let about = quoted(&unknown, (unknown.outside, unknown.inside), false, quote, [7, 7]);
                    lab.send_inside(&error(unknown.inside.0, unknown.outside.0, kind, &about))?;
                    // To the container's own address instead of the device's.
                    let about = quoted(&unknown, (unknown.inside, unknown.outside), false, quote, [7, 7]);
                    lab.send_outside(&error(router, unknown.inside.0, kind, &about))?;
                }
            }
        }
        // The valid errors that are sent next must be the first to arrive.
        for flow in &known {
            let kind = kinds(family)[0];
            lab.inwards(flow, router, kind, Quote::Long, false).context("something else came before, inside")?;
            lab.outwards(flow, kind, Quote::Long).context("something else came before, outside")?;
        }
    }
    Ok(())
}
