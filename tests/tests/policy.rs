//! Policy in the kernel: compares the programs' verdicts with a direct evaluation of the rules, and with nftables. And
//! one generation of the policy replaces another.

#[path = "../../pv-net/src/policy/tests/random.rs"]
mod random;
#[path = "../../pv-net/src/policy/tests/reference.rs"]
mod reference;

use anyhow::{Context, Result, ensure};
use harness::raw::RawSocket;
use harness::{Device, Namespace, eventually, frame};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use pv_net::kernel::bpf::{DataPlane, Options, PolicyProbe, PolicyTables};
use pv_net::model::{Action, Peer, PortMatch, Rule, Selector, Sockets};
use pv_net::policy::{Compiled, LinkLocal, Member, PairKey, Topology, compile};
use pv_net_common::policy::{POLICY_ALLOW, POLICY_DENY, POLICY_NO_RULE, POLICY_TCP};
use pv_net_common::{PolicyQuery, PolicySide, PolicyVerdict};
use reference::Packet;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// The policy's maps and the probe program, on a BPF file system of the test's own.
struct Kernel {
    tables: PolicyTables,
    probe: PolicyProbe,
    _plane: DataPlane,
    _device: Device,
}

impl Kernel {
    fn new() -> Result<Self> {
        let device = Device::new(&json!({}))?;
        let options = Options { pin_dir: device.pins(), flow_entries: 1024 };
        let (mut plane, _) = DataPlane::open(&options)?;
        plane.take_over()?;
        let (tables, probe) = (plane.policy_tables()?, PolicyProbe::open(&device.pins())?);
        Ok(Self { tables, probe, _plane: plane, _device: device })
    }

    fn ask(&mut self, generation: u32, packet: &Packet) -> Result<PolicyVerdict> {
        Ok(self.probe.ask(&query(generation, packet))?)
    }
}

fn query(generation: u32, packet: &Packet) -> PolicyQuery {
    PolicyQuery {
        generation,
        src: PolicySide { identity: packet.src_identity, addr: packet.src.into() },
        dst: PolicySide { identity: packet.dst_identity, addr: packet.dst.into() },
        port_be: packet.port.to_be(),
        proto: packet.proto,
        reserved: 0,
    }
}

fn expected(rules: &[Rule], topology: &Topology, packet: &Packet) -> PolicyVerdict {
    match reference::verdict(rules, topology, packet) {
        None => PolicyVerdict::NOTHING,
        Some((rule, action)) => PolicyVerdict {
            rule: u32::try_from(rule).unwrap_or(POLICY_NO_RULE),
            action: if action == Action::Allow { POLICY_ALLOW } else { POLICY_DENY },
        },
    }
}

/// Runs `check` over random rules and packets.
fn over_random_policies(cases: u32, check: impl Fn(&[Rule], &[Packet]) -> Result<()>) {
    let input = (random::rules(), prop::collection::vec(random::packet(), 60));
    let mut runner =
        TestRunner::new(Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() });
    let result = runner
        .run(&input, |(rules, packets)| check(&rules, &packets).map_err(|e| TestCaseError::fail(format!("{e:#}"))));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, (rules, _))) => panic!("{why}\n{rules:#?}"),
        Err(other) => panic!("{other}"),
    }
}

/// Loads policies one after the other, and compares what the programs say.
struct Compared(RefCell<(Kernel, u32)>);

impl Compared {
    fn new() -> Self {
        Self(RefCell::new((Kernel::new().expect("a data plane"), 0)))
    }

    fn check(&self, rules: &[Rule], topology: &Topology, packets: &[Packet]) -> Result<()> {
        let (kernel, generation) = &mut *self.0.borrow_mut();
        let old = *generation;
        *generation += 1;
        kernel.tables.load(&compile(rules, topology)?, *generation)?;
        kernel.tables.forget(old)?;
        for packet in packets {
            let (got, want) = (kernel.ask(*generation, packet)?, expected(rules, topology, packet));
            ensure!(got == want, "{packet:?}: {got:?}, not {want:?}");
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_programs_say_what_the_rules_mean() {
    let (topology, kernel) = (random::topology(), Compared::new());
    over_random_policies(120, |rules, packets| kernel.check(rules, &topology, packets));
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_programs_refuse_what_containers_are_not_granted() {
    let kernel = Compared::new();
    let limits = RefCell::new(TestRunner::new(Config::default()));
    over_random_policies(60, |rules, packets| {
        let one = || random::sockets().new_tree(&mut limits.borrow_mut()).map(|tree| tree.current());
        let one = || one().map_err(|why| anyhow::anyhow!("no sockets: {why}"));
        let topology = random::limited(one()?, one()?);
        kernel.check(rules, &topology, packets).with_context(|| format!("{topology:#?}"))?;
        // And without any rule.
        kernel.check(&[], &topology, packets).with_context(|| format!("without rules: {topology:#?}"))
    });
}

fn packet(src: (u32, &str), dst: (u32, &str), proto: u8, port: u16) -> Packet {
    let (src_identity, dst_identity) = (src.0, dst.0);
    Packet { src_identity, src: random::name(src.1), dst_identity, dst: random::name(dst.1), proto, port }
}

fn rule(from: Selector, to: Selector, ports: &[&str], action: Action) -> Rule {
    let ports = ports.iter().map(|p| random::name(p)).collect();
    Rule { name: None, from, to, ports, action }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_generation_takes_anothers_place() -> Result<()> {
    let topology = random::topology();
    let mut kernel = Kernel::new()?;
    let c1 = || Selector::Container(random::name("c1"));
    let old = compile(&[rule(c1(), Selector::World, &["tcp/80"], Action::Deny)], &topology)?;
    let new = compile(&[rule(c1(), Selector::World, &["tcp/80"], Action::Allow)], &topology)?;
    let web = packet((11, "10.0.1.2"), (0, "8.8.8.8"), 6, 80);
    kernel.tables.load(&old, 1)?;
    kernel.tables.load(&new, 2)?;
    ensure!(kernel.ask(1, &web)?.action == POLICY_DENY, "the old one changed when the new one was written");
    ensure!(kernel.ask(2, &web)?.action == POLICY_ALLOW, "the new one does not answer");
    ensure!(kernel.ask(3, &web)? == PolicyVerdict::NOTHING, "a generation that is not there says something");
    // A container that was attached after this generation was loaded is unknown to it, whatever its address.
    let late = packet((99, "10.0.1.2"), (0, "8.8.8.8"), 6, 443);
    ensure!(kernel.ask(2, &late)? == PolicyVerdict::UNKNOWN, "a container that is not known has a verdict");
    kernel.tables.forget(1)?;
    ensure!(kernel.tables.entries(1)? == [0; 3], "something is left of the old one");
    ensure!(kernel.ask(2, &web)?.action == POLICY_ALLOW, "the new one went with the old one");
    // The next daemon removes what a daemon has left that died while it loaded a policy.
    kernel.tables.load(&old, 7)?;
    kernel.tables.keep_only(2)?;
    ensure!(kernel.tables.entries(7)? == [0; 3], "something is left of the unfinished one");
    ensure!(kernel.tables.entries(2)? == [new.ids.len(), new.cidrs.len(), new.pairs.len()]);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_policy_that_fails_half_way_leaves_the_old_one() -> Result<()> {
    let topology = random::topology();
    let mut kernel = Kernel::new()?;
    let old = compile(&[rule(Selector::World, Selector::Host, &["tcp"], Action::Deny)], &topology)?;
    kernel.tables.load(&old, 1)?;
    // More entries than the map takes: the kernel refuses in the middle.
    let pair = |n: u32| PairKey { src_class: n, dst_class: 1, proto: POLICY_TCP, port: 0, bits: 112 };
    let verdict = PolicyVerdict { rule: 0, action: POLICY_DENY };
    let large = Compiled { pairs: (1..=270_000).map(|n| (pair(n), verdict)).collect(), ..old.clone() };
    let error = kernel.tables.load(&large, 2).err().context("it was loaded")?;
    ensure!(error.to_string().contains("policy_pairs"), "{error}");
    ensure!(kernel.tables.entries(2)? == [0; 3], "half of the new one is left");
    ensure!(kernel.tables.entries(1)? == [old.ids.len(), old.cidrs.len(), old.pairs.len()]);
    ensure!(kernel.ask(1, &packet((0, "8.8.8.8"), (0, "192.0.2.7"), 6, 22))?.action == POLICY_DENY);
    // There is room again.
    kernel.tables.load(&old, 2)?;
    ensure!(kernel.tables.entries(2)? == kernel.tables.entries(1)?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_thousand_rules_fit_beside_ten_thousand() -> Result<()> {
    let topology = random::topology();
    let mut kernel = Kernel::new()?;
    let net = |i: u32| Selector::Cidr(random::name(&format!("172.{}.{}.0/24", 16 + i / 256, i % 256)));
    let rules: Vec<Rule> = (0..3000)
        .map(|i| rule(Selector::Container(random::name("c1")), net(i), &["tcp/1-65534"], Action::Deny))
        .chain((3000..10_000).map(|i| rule(Selector::Pool(random::name("a")), net(i), &["udp/53"], Action::Deny)))
        .collect();
    let compiled = compile(&rules, &topology)?;
    for generation in [1, 2] {
        let start = std::time::Instant::now();
        kernel.tables.load(&compiled, generation)?;
        println!("{} pairs loaded in {:?}", compiled.pairs.len(), start.elapsed());
    }
    for (i, proto, port) in [(0u32, 6, 65_534), (2999, 6, 1), (3000, 17, 53), (9999, 17, 53)] {
        let dst = format!("172.{}.{}.9", 16 + i / 256, i % 256);
        let packet = packet((11, "10.0.1.2"), (0, &dst), proto, port);
        let want = PolicyVerdict { rule: i, action: POLICY_DENY };
        ensure!(kernel.ask(2, &packet)? == want, "{packet:?}: {:?}", kernel.ask(2, &packet)?);
        let (_, took) = kernel.probe.ask_often(&query(2, &packet), 100_000)?;
        println!("{dst}: {took:?} a verdict");
        ensure!(took < Duration::from_micros(200), "{took:?} for one verdict");
    }
    // Every audit compares them.
    let start = std::time::Instant::now();
    ensure!(kernel.tables.holds(&compiled, 2)?);
    println!("compared in {:?}", start.elapsed());
    let mut other = compiled.clone();
    other.pairs[7].1.action = POLICY_ALLOW;
    ensure!(!kernel.tables.holds(&other, 2)?, "an entry with another verdict was not seen");
    let start = std::time::Instant::now();
    kernel.tables.forget(1)?;
    println!("forgotten in {:?}", start.elapsed());
    ensure!(kernel.tables.entries(1)? == [0; 3]);
    Ok(())
}

/// The same rules for nftables, which knows addresses only. Each frame has its own source MAC; the rule that decides
/// records that MAC, with the rule's number as the mark.
fn nft(rules: &[Rule], topology: &Topology) -> String {
    let mut sets = String::new();
    let mut lines = String::new();
    let ordered = |action| rules.iter().enumerate().filter(move |(_, r)| r.action == action);
    for (number, rule) in ordered(Action::Deny).chain(ordered(Action::Allow)) {
        for (family, proto) in [("ip", "ipv4"), ("ip6", "ipv6")] {
            let mut ends = Some(format!("meta nfproto {proto}"));
            for (direction, selector) in [("saddr", &rule.from), ("daddr", &rule.to)] {
                let Some((not, elements)) = elements(selector, topology, family == "ip6") else {
                    ends = None;
                    break;
                };
                let name = format!("r{number}_{family}_{direction}");
                let list = if elements.is_empty() {
                    String::new()
                } else {
                    format!("elements = {{ {} }}", elements.join(", "))
                };
                sets += &format!("set {name} {{ type {proto}_addr; flags interval; auto-merge; {list} }}\n");
                ends = ends.map(|e| format!("{e} {family} {direction} {not} @{name}"));
            }
            let Some(ends) = ends else { continue };
            let all = [String::new()];
            let ports: Vec<String> = rule.ports.iter().map(ports).collect();
            for ports in if rule.ports.is_empty() { &all[..] } else { &ports } {
                let mark = MARK + number;
                lines += &format!("{ends} {ports} meta mark set {mark} add @hits {{ ether saddr . meta mark }} drop\n");
            }
        }
    }
    format!(
        "table inet pv {{\nset hits {{ type ether_addr . mark; flags dynamic; size 65535; }}\n{sets}chain pre {{\n\
         type filter hook prerouting priority -300;\nether saddr & ff:ff:00:00:00:00 != 02:42:00:00:00:00 accept\n\
         {lines}meta mark set {NOTHING} add @hits {{ ether saddr . meta mark }} drop\n}}\n}}\n"
    )
}

const MARK: usize = 1000;
const NOTHING: usize = 7;

/// Addresses and networks of a selector, and whether the selector means all others. `None` when nobody is selected.
fn elements(selector: &Selector, topology: &Topology, v6: bool) -> Option<(&'static str, Vec<String>)> {
    let of_family = |addrs: Vec<IpAddr>| -> Vec<String> {
        addrs.into_iter().filter(|a| a.is_ipv6() == v6).map(|a| a.to_string()).collect()
    };
    let containers = |wanted: &dyn Fn(&Member) -> bool| {
        of_family(topology.containers.iter().filter(|c| wanted(c)).flat_map(|c| c.addresses.clone()).collect())
    };
    let found = match selector {
        Selector::Container(name) => containers(&|c| c.name == *name),
        Selector::Pool(name) => containers(&|c| c.pools.contains(name)),
        Selector::Cidr(net) => {
            if net.is_ipv6() != v6 {
                return None;
            }
            if net.prefix() == 0 {
                return Some(("!=", Vec::new()));
            }
            // A network also selects the link-local addresses of interfaces whose own addresses are in it.
            let links = topology.containers.iter().flat_map(|c| &c.link_local);
            let beside = links.filter(|l| net.contains(l.beside)).map(|l| l.addr.to_string());
            std::iter::once(net.to_string()).chain(beside).collect()
        }
        Selector::Host => of_family(topology.host.clone()),
        Selector::World => {
            let mut others = containers(&|_| true);
            others.extend(of_family(topology.host.clone()));
            others.extend(topology.networks.iter().filter(|n| n.is_ipv6() == v6).map(ToString::to_string));
            return Some(("!=", others));
        }
    };
    (!found.is_empty()).then_some(("", found))
}

fn ports(ports: &PortMatch) -> String {
    match ports {
        PortMatch::Icmp => "meta l4proto { icmp, icmpv6 }".to_owned(),
        PortMatch::Tcp(None) => "meta l4proto tcp".to_owned(),
        PortMatch::Udp(None) => "meta l4proto udp".to_owned(),
        PortMatch::Tcp(Some(r)) => format!("tcp dport {}-{}", r.start(), r.end()),
        PortMatch::Udp(Some(r)) => format!("udp dport {}-{}", r.start(), r.end()),
    }
}

/// Frames of `packets`; the source MAC `02:42:0:0:HIGH:LOW` has the packet's number.
fn frames(packets: &[&Packet], to: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let all = packets.iter().enumerate().map(|(i, p)| {
        let number = u16::try_from(i)?.to_be_bytes();
        let (src, dst) = ((p.src, 4000), (p.dst, p.port));
        let ip = match p.proto {
            6 => frame::tcp(src, dst, 2, b""),
            17 => frame::udp(src, dst, b"pv"),
            1 | 58 => frame::echo(p.src, p.dst, 9, 1),
            other => frame::ip(p.src, p.dst, other, &[0; 12]),
        };
        let kind = if p.src.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        Ok(frame::ethernet([2, 0x42, 0, 0, number[0], number[1]], to, kind, &ip))
    });
    all.collect()
}

/// Whether nftables can decide the packet too: a container at its own address, and ICMP of the right family.
fn is_plain(packet: &Packet, topology: &Topology) -> bool {
    let owner = |addr| topology.containers.iter().find(|c| c.addresses.contains(&addr)).map_or(0, |c| c.identity);
    let icmp = if packet.src.is_ipv4() { packet.proto != 58 } else { packet.proto != 1 };
    icmp && owner(packet.src) == packet.src_identity && owner(packet.dst) == packet.dst_identity
}

/// How many frames each mark has, by the frame's number.
fn hits(ns: &Namespace, want: usize) -> Result<BTreeMap<usize, usize>> {
    eventually(PATIENCE, || {
        let said: Value = serde_json::from_str(&ns.sh("nft -j list set inet pv hits")?)?;
        let sets = said["nftables"].as_array().context("sets")?;
        let elements = sets.iter().find_map(|s| s["set"]["elem"].as_array()).cloned().unwrap_or_default();
        let one = |e: &Value| -> Result<(usize, usize)> {
            let mac = frame::parse_mac(e["concat"][0].as_str().context("a MAC")?)?;
            let mark = e["concat"][1].as_u64().context("a mark")?;
            Ok((usize::from(u16::from_be_bytes([mac[4], mac[5]])), usize::try_from(mark)?))
        };
        let found: BTreeMap<usize, usize> = elements.iter().map(one).collect::<Result<_>>()?;
        ensure!(found.len() == want, "{} of {want} frames were seen: {said}", found.len());
        Ok(found)
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn nftables_agrees() {
    let topology = random::topology();
    let lab = || -> Result<_> {
        let (a, b) = (Namespace::new("nft-a")?, Namespace::new("nft-b")?);
        a.connect(("veth0", &[]), &b, ("veth0", &[]))?;
        let mac = b.mac("veth0")?;
        Ok((RawSocket::open(&a, "veth0")?, mac, b, a))
    };
    let (socket, mac, ns, _other) = lab().expect("two namespaces");
    let kernel = RefCell::new((Kernel::new().expect("a data plane"), 0u32));
    over_random_policies(25, |rules, packets| {
        let (kernel, generation) = &mut *kernel.borrow_mut();
        *generation += 1;
        kernel.tables.load(&compile(rules, &topology)?, *generation)?;
        let plain: Vec<&Packet> = packets.iter().filter(|p| is_plain(p, &topology)).collect();
        let text = format!("table inet pv\ndelete table inet pv\n{}", nft(rules, &topology));
        let mut command = ns.command("nft");
        feed(command.args(["-f", "-"]), &text).with_context(|| text.clone())?;
        for frame in frames(&plain, mac)? {
            socket.send(&frame)?;
        }
        for (i, mark) in hits(&ns, plain.len())? {
            let got = kernel.ask(*generation, plain[i])?;
            let want = match mark {
                NOTHING => PolicyVerdict::NOTHING,
                mark => PolicyVerdict {
                    rule: u32::try_from(mark - MARK)?,
                    action: if rules[mark - MARK].action == Action::Allow { POLICY_ALLOW } else { POLICY_DENY },
                },
            };
            ensure!(got == want, "{:?}: {got:?}, and nftables says {want:?}\n{text}", plain[i]);
        }
        kernel.tables.forget(*generation)?;
        Ok(())
    });
}

/// Runs a program with `text` on its standard input.
fn feed(command: &mut std::process::Command, text: &str) -> Result<()> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    let done = child.wait_with_output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
