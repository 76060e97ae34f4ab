//! A million random flows through a small flow table, by the real programs: every flow has both entries, and no two
//! flows share a tuple.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::testrun::{CHECKSUM_COMPLETE, Program};
use harness::{Container, Device, Namespace, SOON, eventually, frame};
use pv_net_common::{FlowEntry, FlowKey, HalfOpenFlow, flow::FLOW_NEIGHBOUR};
use serde_json::json;
use std::collections::{BTreeMap, HashMap as StdMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

const REDIRECT: u32 = 7;
/// How many flows each of two threads opens.
const OPENINGS: u32 = 500_000;
/// How many pairs of flows are opened at the same instant, for each family.
const ROUNDS: u32 = 1000;

struct Lab {
    device: Device,
    _outside: Namespace,
    containers: Vec<Container>,
    wan_mac: [u8; 6],
    uplink_mac: [u8; 6],
    gateway_mac: [u8; 6],
}

fn lab(flow_table: u32) -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["flow_table"] = json!(flow_table);
    // One container alone may fill the table.
    config["network"]["pools"]["internal"]["max_flows"] = json!(flow_table / 2);
    let mut device = Device::new(&config)?;
    let outside = device.outside("up0", &DEVICE, &HOST)?;
    device.ns.ip("route add default via 192.0.2.9")?;
    device.ns.ip("-6 route add default via 2001:db8:1::9")?;
    device.start()?;
    let web = device.attach_run(&json!({"name": "web", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    let other = device.attach("other", "internal")?;
    let (wan_mac, uplink_mac) = (outside.mac("eth0")?, device.ns.mac("up0")?);
    let gateway_mac = device.ns.mac("pvbr3")?;
    // The neighbour entries exist from the start: a program in a test run cannot make the kernel look for the next hop.
    let router = outside.ip("-br link show eth0")?.split_whitespace().nth(2).context("a MAC")?.to_owned();
    for host in ["192.0.2.9", "2001:db8:1::9"] {
        device.ns.ip(&format!("neigh replace {host} lladdr {router} dev up0 nud permanent"))?;
    }
    Ok(Lab { device, _outside: outside, containers: vec![web, other], wan_mac, uplink_mac, gateway_mac })
}

/// A xorshift generator: the same flows in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 24) % u64::from(n)) as u16
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proto {
    Tcp,
    Udp,
    Echo,
}

const PROTOS: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Echo];

fn build(proto: Proto, src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Vec<u8> {
    match proto {
        Proto::Tcp => frame::tcp(src, dst, flags, b""),
        Proto::Udp => frame::udp(src, dst, b"pv"),
        Proto::Echo if flags & 0x10 == 0 => frame::echo(src.0, dst.0, src.1, 1),
        Proto::Echo => {
            let kind = if src.0.is_ipv4() { 0 } else { 129 };
            let [a, b] = src.1.to_be_bytes();
            frame::icmp(src.0, dst.0, &[kind, 0, 0, 0, a, b, 0, 1, b'p', b'v'])
        }
    }
}

/// Source and destination, each an address and a port.
type Ends = ((IpAddr, u16), (IpAddr, u16));

/// Source and destination of the IP packet in a frame; for an echo both ports are its identifier.
fn ends(f: &[u8]) -> Option<Ends> {
    let v6 = f.get(12..14)? == frame::IPV6.to_be_bytes();
    let (src, dst, proto, l4): (IpAddr, IpAddr, u8, usize) = if v6 {
        let at = |i: usize| <[u8; 16]>::try_from(f.get(i..i + 16)?).ok();
        (at(22)?.into(), at(38)?.into(), f[20], 54)
    } else {
        let at = |i: usize| <[u8; 4]>::try_from(f.get(i..i + 4)?).ok();
        (at(26)?.into(), at(30)?.into(), f[23], 34)
    };
    let port = |i: usize| Some(u16::from_be_bytes([*f.get(l4 + i)?, *f.get(l4 + i + 1)?]));
    let (sport, dport) = if matches!(proto, 1 | 58) { (port(4)?, port(4)?) } else { (port(0)?, port(2)?) };
    Some(((src, sport), (dst, dport)))
}

/// The programs that a thread runs: those of the containers, and the uplink's.
struct Programs {
    containers: Vec<Program>,
    uplink: Program,
}

impl Programs {
    fn of(lab: &Lab) -> Result<Self> {
        let program = |c: &Container| Program::of(&lab.device, "pv_from_container", c.host_if());
        let containers = lab.containers.iter().map(program).collect::<Result<_>>()?;
        Ok(Self { containers, uplink: Program::of(&lab.device, "pv_from_uplink", "up0")? })
    }
}

impl Lab {
    fn inside_frame(&self, container: usize, packet: &[u8]) -> Result<Vec<u8>> {
        let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
        Ok(frame::ethernet(self.containers[container].mac()?, self.gateway_mac, kind, packet))
    }

    fn outside_frame(&self, packet: &[u8]) -> Vec<u8> {
        let kind = if packet[0] >> 4 == 4 { frame::IPV4 } else { frame::IPV6 };
        frame::ethernet(self.wan_mac, self.uplink_mac, kind, packet)
    }
}

fn far(random: &mut Random, v6: bool) -> IpAddr {
    let n = random.below(3) + 1;
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, n).into() } else { Ipv4Addr::new(198, 51, 100, n as u8).into() }
}

/// Opens a random flow. Some flows are answered, and some of those closed. True when the first packet got through.
fn one(lab: &Lab, programs: &Programs, random: &mut Random) -> Result<bool> {
    let v6 = random.below(2) == 1;
    let proto = PROTOS[usize::from(random.below(3))];
    let container = usize::from(random.below(2));
    let port = 1000 + random.below(3000);
    let host = far(random, v6);
    let own = lab.containers[container].addresses()[usize::from(v6)];
    let answered = random.below(4);
    if random.below(4) == 0 && proto != Proto::Echo {
        // A client of the published port.
        let (_, device) = HOSTS[usize::from(v6)];
        let opening = lab.outside_frame(&build(proto, (host, port), (device, 8080), 2));
        let (verdict, seen) = programs.uplink.run(&opening, 0)?;
        if verdict == REDIRECT && answered > 0 {
            let (client, server) = ends(&seen).context("no packet")?;
            let reply = lab.inside_frame(0, &build(proto, server, client, 0x12))?;
            programs.containers[0].run(&reply, 0)?;
        }
        return Ok(verdict == REDIRECT);
    }
    let far_port = if proto == Proto::Echo { port } else { 80 + random.below(2) };
    let opening = lab.inside_frame(container, &build(proto, (own, port), (host, far_port), 2))?;
    let (verdict, seen) = programs.containers[container].run(&opening, 0)?;
    if verdict == REDIRECT && answered > 0 {
        let (ours, theirs) = ends(&seen).context("no packet")?;
        programs.uplink.run(&lab.outside_frame(&build(proto, theirs, ours, 0x12)), 0)?;
        if answered > 1 && proto == Proto::Tcp {
            // Both ends close the connection, or one resets it, which makes room for others.
            let flags = if answered == 2 { 0x11 } else { 0x14 };
            programs.uplink.run(&lab.outside_frame(&build(proto, theirs, ours, flags)), 0)?;
            let fin = lab.inside_frame(container, &build(proto, (own, port), (host, far_port), flags))?;
            programs.containers[container].run(&fin, 0)?;
        }
    }
    Ok(verdict == REDIRECT)
}

fn table<V: aya::Pod>(device: &Device, name: &str) -> Result<StdMap<FlowKey, V>> {
    let path = device.pins().join("maps").join(name);
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let map: HashMap<_, FlowKey, V> = match name {
        "half_open" => HashMap::try_from(Map::LruHashMap(data))?,
        _ => HashMap::try_from(Map::HashMap(data))?,
    };
    Ok(map.iter().collect::<Result<_, _>>()?)
}

/// Fails unless the tables are consistent; gives the number of entries.
fn consistent(device: &Device) -> Result<usize> {
    let flows: StdMap<FlowKey, FlowEntry> = table(device, "flows")?;
    let half_open: StdMap<FlowKey, HalfOpenFlow> = table(device, "half_open")?;
    let mut outside = HashSet::new();
    for (key, entry) in &flows {
        let opposite = entry.opposite_key(key.proto);
        let other = flows.get(&opposite).with_context(|| format!("half a pair: {key:?} {entry:?}"))?;
        ensure!(other.opposite_key(key.proto) == *key, "{key:?} leads to {opposite:?}, that leads elsewhere");
        if entry.flags & FLOW_NEIGHBOUR != 0 {
            let tuple = (entry.src, entry.sport_be, entry.dst, entry.dport_be, key.proto);
            ensure!(outside.insert(tuple), "two flows are {tuple:?} outside");
        }
    }
    for (key, flow) in &half_open {
        ensure!(flow.forward.opposite_key(key.proto) == *key, "{key:?} is not its flow's: {flow:?}");
        if let Some(entry) = flows.get(key) {
            let holder = entry.opposite_key(key.proto);
            ensure!(holder == flow.origin, "{key:?} is of {holder:?} and of {:?}", flow.origin);
        }
    }
    Ok(flows.len())
}

#[test]
fn a_million_flows_leave_whole_pairs() -> Result<()> {
    let lab = lab(4096)?;
    let before = lab.device.counters()?;
    let opened: u32 = std::thread::scope(|scope| {
        let work = |seed: u64| {
            let lab = &lab;
            scope.spawn(move || {
                lab.device.ns.run(|| {
                    let programs = Programs::of(lab)?;
                    let mut random = Random(seed);
                    let mut opened = 0;
                    for _ in 0..OPENINGS {
                        opened += u32::from(one(lab, &programs, &mut random)?);
                    }
                    Ok(opened)
                })
            })
        };
        let threads = [work(0x9e37_79b9_7f4a_7c15), work(0xd1b5_4a32_d192_ed03)];
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<u32>>| {
            t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        };
        threads.into_iter().map(join).sum::<Result<u32>>()
    })?;
    // The daemon removes entries that a race has left without their partner.
    let entries = eventually(SOON, || consistent(&lab.device))?;
    let after = lab.device.counters()?;
    let grown: BTreeMap<_, _> = after.iter().map(|(name, n)| (name, n - before.get(name).unwrap_or(&0))).collect();
    println!("{opened} of {} opened, {entries} entries, {grown:?}", 2 * OPENINGS);
    ensure!(opened > OPENINGS, "only {opened} flows were opened");
    // More flows than the table has room for: some have ended, and others have taken their places.
    ensure!(grown[&"flows-created".to_owned()] > 2048, "{grown:?}");
    ensure!(grown[&"flow-table-full".to_owned()] > 0, "the table was never full: {grown:?}");
    Ok(())
}

/// Opens a flow of container `n` in each round, and gives its source and destination outside.
fn openings(lab: &Lab, n: usize, v6: bool, arrived: &AtomicU32) -> Result<Vec<Ends>> {
    lab.device.ns.run(|| {
        let programs = Programs::of(lab)?;
        let own = lab.containers[n].addresses()[usize::from(v6)];
        let mut seen = Vec::new();
        for round in 0..ROUNDS {
            let port = 1000 + u16::try_from(round)?;
            let opening = lab.inside_frame(n, &build(Proto::Udp, (own, port), (far(&mut Random(1), v6), 53), 0))?;
            arrived.fetch_add(1, Ordering::AcqRel);
            let (start, mut spins) = (Instant::now(), 0u32);
            while arrived.load(Ordering::Acquire) < 2 * (round + 1) {
                ensure!(start.elapsed() < SOON, "the other container does not come to round {round}");
                // Other threads may need this processor; but sleeping here would miss the instant.
                spins = spins.wrapping_add(1);
                if spins.is_multiple_of(10_000) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
            let (verdict, frame) = programs.containers[n].run(&opening, 0)?;
            ensure!(verdict == REDIRECT, "round {round} of container {n}: verdict {verdict}");
            seen.push(ends(&frame).context("no packet")?);
        }
        Ok(seen)
    })
}

#[test]
fn two_openings_at_one_instant_have_two_ports() -> Result<()> {
    // The tables have room for all: no claim is evicted for another, and no destination runs out of ports.
    let lab = lab(65_536)?;
    for v6 in [false, true] {
        let arrived = AtomicU32::new(0);
        let [first, second] = std::thread::scope(|scope| {
            let threads = [0, 1].map(|n| {
                scope.spawn({
                    let (lab, arrived) = (&lab, &arrived);
                    move || openings(lab, n, v6, arrived)
                })
            });
            threads.map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        });
        let (first, second) = (first?, second?);
        let same: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a == b).collect();
        ensure!(same.is_empty(), "IPv6 {v6}: {} of {ROUNDS} share a tuple, as {:?}", same.len(), same[0]);
    }
    Ok(())
}

#[test]
fn a_sum_of_the_whole_packet_stays_right() -> Result<()> {
    let lab = lab(4096)?;
    lab.device.ns.run(|| {
        let programs = Programs::of(&lab)?;
        let probe = lab.outside_frame(&frame::udp((far(&mut Random(1), false), 1), ([192, 0, 2, 1].into(), 1), b"x"));
        if !programs.uplink.knows(&probe, CHECKSUM_COMPLETE)? {
            harness::skip("a_sum_of_the_whole_packet_stays_right", "needs kernel 6.17");
            return Ok(());
        }
        for v6 in [false, true] {
            for proto in PROTOS {
                let (own, host) = (lab.containers[0].addresses()[usize::from(v6)], far(&mut Random(1), v6));
                let far_port = if proto == Proto::Echo { 5000 } else { 80 };
                // The first packet opens the flow, the second one takes the fast path.
                for round in ["slow", "fast"] {
                    let what = || format!("{proto:?}, IPv6 {v6}, {round}");
                    let sent = lab.inside_frame(0, &build(proto, (own, 5000), (host, far_port), 2))?;
                    let (verdict, seen) = programs.containers[0].run(&sent, CHECKSUM_COMPLETE).with_context(what)?;
                    ensure!(verdict == REDIRECT, "{}: verdict {verdict}", what());
                    harness::verify::frame(&seen, false, true).with_context(what)?.context("no packet")?;
                    let (ours, theirs) = ends(&seen).context("no packet")?;
                    let answer = lab.outside_frame(&build(proto, theirs, ours, 0x12));
                    let (verdict, seen) = programs.uplink.run(&answer, CHECKSUM_COMPLETE).with_context(what)?;
                    ensure!(verdict == REDIRECT, "{}: the answer's verdict {verdict}", what());
                    harness::verify::frame(&seen, false, true).with_context(what)?.context("no packet")?;
                    let about = build(proto, ours, theirs, 2);
                    let kind = if v6 { 1 } else { 3 };
                    let error = frame::icmp(host, ours.0, &[&[kind, 1, 0, 0, 0, 0, 0, 0][..], &about].concat());
                    let error = lab.outside_frame(&error);
                    let (verdict, seen) = programs.uplink.run(&error, CHECKSUM_COMPLETE).with_context(what)?;
                    ensure!(verdict == REDIRECT, "{}: the error's verdict {verdict}", what());
                    harness::verify::frame(&seen, false, true).with_context(what)?.context("no packet")?;
                }
            }
        }
        Ok(())
    })
}
