//! A completely full flow table that the daemon sweeps: live flows lose nothing, idle ones are removed after their
//! time-out, and new ones work.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use harness::configs::{self, DEVICE, HOST, HOSTS};
use harness::{Container, Device, Namespace, Process, SOON, echo, eventually, patience};
use nix::sys::signal::Signal;
use pv_net_common::flow::DEFAULT_FLOWS;
use pv_net_common::ip_proto::{IPPROTO_TCP, IPPROTO_UDP};
use pv_net_common::{FlowEntry, FlowKey};
use serde_json::{Value, json};
use std::collections::HashMap as StdMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORT: u16 = 7000;
const TCP: u32 = IPPROTO_TCP as u32;
const UDP: u32 = IPPROTO_UDP as u32;
/// How long a sweep may take at most, in a debug build too.
const SWEEP: Duration = Duration::from_secs(1);
/// The time-out of idle UDP flows in this test.
const IDLE: Duration = Duration::from_secs(25);
/// The time between two sweeps, and a margin for a busy machine.
const LATE: Duration = Duration::from_secs(12);

struct Lab {
    device: Device,
    outside: Namespace,
    live: Container,
    idle: Container,
    flows: HashMap<MapData, FlowKey, FlowEntry>,
}

fn lab() -> Result<Lab> {
    let mut config = configs::masqueraded();
    // The shortest time-out makes the daemon sweep every five seconds.
    config["network"]["flow_timeouts"] = json!({"udp": IDLE.as_secs(), "udp_opening": 5});
    let mut device = Device::new(&config)?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let (live, idle) = (device.attach("live", "internal")?, device.attach("idle", "internal")?);
    echo::serve(&outside, Ipv6Addr::UNSPECIFIED.into(), PORT)?;
    let path = device.pins().join("maps/flows");
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let flows = HashMap::try_from(Map::HashMap(data))?;
    Ok(Lab { device, outside, live, idle, flows })
}

/// A UDP socket that has received an answer.
fn asked(ns: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = ns.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(patience(echo::PATIENCE)))?;
        Ok(socket)
    })?;
    for _ in 0..3 {
        socket.send(b"there?")?;
        let n = socket.recv(&mut [0; 200]).with_context(|| format!("no answer of {at}"))?;
        ensure!(n > 6, "{n} bytes");
    }
    Ok(socket)
}

fn connected(ns: &Namespace, at: SocketAddr) -> Result<TcpStream> {
    let mut stream = echo::connect(ns, at)?;
    let mut byte = [0u8];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

/// Sends blocks of ever different bytes and reads them back; gives their number, and the longest time that one took.
fn stream(mut stream: TcpStream, until: &'static AtomicBool) -> JoinHandle<Result<(u32, Duration)>> {
    std::thread::spawn(move || {
        let (mut rounds, mut worst) = (0u32, Duration::ZERO);
        let mut back = vec![0; 8192];
        while !until.load(Ordering::Relaxed) {
            let block: Vec<u8> =
                (0..2048u32).flat_map(|i| (i.wrapping_mul(0x9e37_79b9) ^ rounds).to_be_bytes()).collect();
            let start = Instant::now();
            stream.write_all(&block)?;
            stream.read_exact(&mut back).with_context(|| format!("round {rounds}"))?;
            ensure!(back == block, "round {rounds}: other bytes came back");
            worst = worst.max(start.elapsed());
            rounds += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((rounds, worst))
    })
}

impl Lab {
    fn table(&self) -> StdMap<FlowKey, FlowEntry> {
        self.flows.iter().filter_map(Result::ok).collect()
    }

    /// The entries of both directions of the flow that `socket` opened.
    fn pair_of(&self, socket: &UdpSocket) -> Result<[(FlowKey, FlowEntry); 2]> {
        let port = socket.local_addr()?.port().to_be();
        let own = self.idle.addresses().map(pv_net_common::Ip::from);
        let table = self.table();
        let (key, entry) =
            table.iter().find(|(k, _)| k.sport_be == port && own.contains(&k.src)).context("it is no flow")?;
        let opposite = entry.opposite_key(key.proto);
        Ok([(*key, *entry), (opposite, *table.get(&opposite).context("half a flow")?)])
    }

    /// Fills the table with copies of the flows of `sockets`, three quarters of them UDP; gives the entries of each
    /// protocol.
    fn fill(&mut self, sockets: &[UdpSocket]) -> Result<StdMap<u32, usize>> {
        let like = sockets.iter().map(|socket| self.pair_of(socket)).collect::<Result<Vec<_>>>()?;
        let now = self.table().values().map(|entry| entry.last_used).max().context("no live flow")?;
        let mut filled = StdMap::new();
        for n in 0..DEFAULT_FLOWS as u16 {
            let [mut forward, mut reply] = like[usize::from(n) % like.len()];
            let (own, far) = ((1024 + n / 2).to_be(), 9000u16.to_be());
            let proto = if (n / 2).is_multiple_of(4) { TCP } else { UDP };
            (forward.0.sport_be, forward.0.dport_be, forward.0.proto) = (own, far, proto);
            (forward.1.sport_be, forward.1.dport_be) = (own, far);
            (reply.1.sport_be, reply.1.dport_be) = (far, own);
            reply.0 = forward.1.opposite_key(proto);
            ensure!(reply.1.opposite_key(proto) == forward.0, "they are no pair");
            (forward.1.last_used, reply.1.last_used) = (now, now);
            if self.flows.insert(forward.0, forward.1, 0).is_err() {
                return Ok(filled);
            }
            if self.flows.insert(reply.0, reply.1, 0).is_err() {
                self.flows.remove(&forward.0)?;
                return Ok(filled);
            }
            *filled.entry(proto).or_default() += 2;
        }
        bail!("the table has no end")
    }

    /// How many idle entries exist, by protocol.
    fn idle_entries(&self, proto: u32) -> usize {
        let far = 9000u16.to_be();
        self.table().keys().filter(|k| k.proto == proto && (k.dport_be == far || k.sport_be == far)).count()
    }

    fn has_room_for(&self, own: u16) -> bool {
        self.table().keys().any(|key| key.sport_be == own.to_be())
    }

    /// The state of the flow with port `own` of the live container, as `pv-net flows` shows it.
    fn state_of(&self, own: u16) -> Result<Value> {
        let (all, from) = (self.device.json(&["flows"])?, self.live.addresses().map(|a| json!(a.to_string())));
        let found = all.as_array().context("a list")?.iter().find(|f| f["sport"] == own && from.contains(&f["src"]));
        Ok(found.with_context(|| format!("no flow of port {own}"))?["state"].clone())
    }

    /// The logged duration of each sweep that read at least `entries` entries.
    fn sweeps(&self, entries: usize) -> Result<Vec<Duration>> {
        let mut all = Vec::new();
        for line in self.device.log().lines().filter(|line| line.contains("flow table swept")) {
            let part =
                |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)).context(line.to_owned());
            if part("read=")?.parse::<usize>()? >= entries {
                all.push(duration(part("took=")?).with_context(|| line.to_owned())?);
            }
        }
        Ok(all)
    }

    /// Processor time of the daemon; `/proc` counts it in ticks of 10 ms.
    fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.device.daemon()?.pid()))?;
        let after_name = stat.rsplit(')').next().context("stat")?;
        let field = |n: usize| anyhow::Ok(after_name.split_whitespace().nth(n).context("stat")?.parse::<u64>()?);
        Ok(Duration::from_millis(10 * (field(11)? + field(12)?)))
    }
}

/// Parses the `Debug` output of a duration.
fn duration(text: &str) -> Result<Duration> {
    for (unit, secs) in [("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(Duration::from_secs_f64(number.parse::<f64>()? * secs));
        }
    }
    bail!("{text} is no duration")
}

#[test]
fn a_full_table_costs_nobody_anything() -> Result<()> {
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    // SAFETY: this is the only test of the program, and no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("RUST_LOG", "pv_net=debug") };
    let mut lab = lab()?;
    let far = HOSTS.map(|(host, _)| SocketAddr::new(host, PORT));
    let idle = far.iter().map(|at| asked(&lab.idle.ns, *at)).collect::<Result<Vec<_>>>()?;
    let (mut pings, mut streams) = (Vec::new(), Vec::new());
    for at in far {
        let to = at.ip().to_string();
        let mut ping = lab.live.ns.command("ping");
        pings.push(Process::start(ping.args(["-n", "-q", "-i", "0.01", "-W", "5", &to]).stdout(Stdio::piped()))?);
        streams.push(stream(connected(&lab.live.ns, at)?, &ENOUGH));
    }
    eventually(SOON, || {
        let live = lab.live.addresses().map(pv_net_common::Ip::from);
        let there = lab.table().keys().filter(|key| live.contains(&key.src)).count();
        ensure!(there == 4, "{there} of the live flows are in the table");
        Ok(())
    })?;

    let filled = lab.fill(&idle)?;
    let start = Instant::now();
    let full = lab.table().len();
    println!("{full} entries; idle ones: {filled:?}");
    ensure!(full == DEFAULT_FLOWS as usize, "the table is not full");

    // New flows stay in the map `half_open`: they work nevertheless.
    let mut new = Vec::new();
    for at in far {
        let (mut tcp, udp) = (connected(&lab.live.ns, at)?, asked(&lab.live.ns, at)?);
        for port in [tcp.local_addr()?.port(), udp.local_addr()?.port()] {
            ensure!(!lab.has_room_for(port), "port {port} found room in a full table");
            ensure!(lab.state_of(port)? == "opening", "port {port} is {}", lab.state_of(port)?);
        }
        let block = vec![at.port() as u8; 100_000];
        let mut back = vec![0; block.len()];
        for _ in 0..5 {
            let mut writer = tcp.try_clone()?;
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| writer.write_all(&block));
                tcp.read_exact(&mut back)?;
                sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
                anyhow::Ok(())
            })
            .with_context(|| format!("new connection to {at}"))?;
            ensure!(back == block, "new connection to {at}: other bytes came back");
        }
        new.push((tcp, udp));
    }

    let (since, cpu) = (Instant::now(), lab.cpu()?);
    let before = lab.sweeps(full - 4)?.len();
    // No flow is removed before its time-out, and the daemon sweeps the full table several times until then.
    while start.elapsed() < IDLE - Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(500));
        ensure!(
            lab.idle_entries(UDP) >= filled[&UDP],
            "{} of {} after {:?}",
            lab.idle_entries(UDP),
            filled[&UDP],
            start.elapsed()
        );
    }
    let sweeps = lab.sweeps(full - 4)?;
    let used = (lab.cpu()? - cpu, since.elapsed());
    let (n, most) = (sweeps.len() - before, sweeps.iter().max());
    println!("sweeps of a full table: {sweeps:?}, at most {most:?}");
    println!("{n} of them cost the daemon {:?} of processor time in {:?}", used.0, used.1);
    ensure!(sweeps.len() >= 2, "{} sweeps of a full table", sweeps.len());
    for took in &sweeps {
        ensure!(*took < patience(SWEEP), "a sweep took {took:?}");
    }

    // Idle flows are removed, and no others.
    while lab.idle_entries(UDP) > 0 {
        ensure!(start.elapsed() < IDLE + patience(LATE), "{} are there", lab.idle_entries(UDP));
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("idle UDP flows went after {:?}; all sweeps: {:?}", start.elapsed(), lab.sweeps(0)?);
    ensure!(lab.idle_entries(TCP) == filled[&TCP], "idle TCP has its time: {} are there", lab.idle_entries(TCP));
    for took in lab.sweeps(0)? {
        ensure!(took < patience(SWEEP), "a sweep took {took:?}");
    }

    // There is room now: flows from `half_open` move into the table.
    for (mut tcp, _) in new {
        tcp.write_all(b"still")?;
        let mut back = [0; 5];
        tcp.read_exact(&mut back).context("a connection from when the table was full")?;
        ensure!(&back == b"still", "{back:?}");
        let port = tcp.local_addr()?.port();
        ensure!(lab.has_room_for(port), "port {port} is not in the table");
    }
    ENOUGH.store(true, Ordering::Relaxed);
    for (stream, at) in streams.into_iter().zip(far) {
        let (rounds, worst) = stream.join().map_err(|_| anyhow::anyhow!("a stream panicked"))??;
        println!("{at}: {rounds} blocks there and back, the slowest in {worst:?}");
        ensure!(rounds > 50, "{rounds} blocks only");
    }
    for ping in pings {
        ping.signal(Signal::SIGINT)?;
        let said = ping.finish(SOON)?;
        println!("{}", said.lines().skip(1).collect::<Vec<_>>().join(" ").trim());
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    drop(lab.outside);
    Ok(())
}
