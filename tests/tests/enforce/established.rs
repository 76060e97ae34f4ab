//! Established flows when the policy changes.

use crate::lab::{self, Lab, PORT, PUBLISHED, WEB, beyond, gateway, uplink};
use crate::probe::{Seen, Traffic, is_refusal, send, udp_socket};
use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, SOON, echo, eventually, patience};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a flow may go on after the reload that denies it.
const END: Duration = Duration::from_millis(200);

/// A kind of flow: client, destination, server, and the rule that denies it.
struct Way<'a> {
    name: &'a str,
    opener: &'a Namespace,
    to: [IpAddr; 2],
    port: u16,
    server: (&'a Namespace, u16),
    deny: Value,
    /// Whether the client, and the server, are containers: these are told of the refusal.
    local: [bool; 2],
}

fn ways(lab: &Lab) -> Vec<Way<'_>> {
    let (a, b) = (json!({"container": "a"}), json!({"container": "b"}));
    let deny = |from: &Value, to: Value| json!([{"from": from, "to": to, "action": "deny"}]);
    let (device, outside) = (&lab.device.ns, &lab.outside);
    let way = |name, opener, to, port, server, deny, local| Way { name, opener, to, port, server, deny, local };
    vec![
        way("in a pool", &lab.b.ns, lab.a.addresses(), PORT, (&lab.a.ns, PORT), deny(&b, a.clone()), [true, true]),
        way("masqueraded", &lab.a.ns, beyond(), PORT, (outside, PORT), deny(&a, json!("world")), [true, false]),
        way(
            "published",
            outside,
            uplink(),
            PUBLISHED,
            (&lab.a.ns, WEB),
            deny(&json!("world"), a.clone()),
            [false, true],
        ),
        way("by a peer's port", &lab.b.ns, uplink(), PUBLISHED, (&lab.a.ns, WEB), deny(&b, a.clone()), [true, true]),
        way("hairpin", &lab.a.ns, gateway(), PUBLISHED, (&lab.a.ns, WEB), deny(&a, a.clone()), [true, true]),
        way("to the device", &lab.a.ns, gateway(), PORT, (device, PORT), deny(&a, json!("host")), [true, false]),
        way(
            "from the device",
            device,
            lab.a.addresses(),
            PORT,
            (&lab.a.ns, PORT),
            deny(&json!("host"), a),
            [false, true],
        ),
    ]
}

/// A socket of a flow; its calls never wait.
enum End {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl End {
    fn write(&mut self) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(&[7; 200]),
            Self::Udp(socket) => socket.send(&[7; 200]),
        }
    }

    fn read(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 65_536];
        match self {
            Self::Tcp(stream) => stream.read(&mut buffer),
            Self::Udp(socket) => socket.recv(&mut buffer),
        }
    }

    fn never_wait(&self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true)?,
            Self::Udp(socket) => socket.set_nonblocking(true)?,
        }
        Ok(())
    }
}

/// Opens a flow, and lets both ends send something.
fn open(way: &Way<'_>, to: IpAddr, tcp: bool) -> Result<[End; 2]> {
    let (at, (ns, port)) = (SocketAddr::new(to, way.port), way.server);
    let mut ends = if tcp {
        let listener = ns.run(|| Ok(TcpListener::bind(("::", port))?))?;
        let opener = echo::connect(way.opener, at)?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(echo::PATIENCE))?;
        [End::Tcp(opener), End::Tcp(server)]
    } else {
        // The device must answer from the address that the client has used.
        let own = if way.local[1] || at.ip() == beyond()[0] || at.ip() == beyond()[1] { "::".parse()? } else { to };
        let server = ns.run(|| Ok(UdpSocket::bind((own, port))?))?;
        server.set_read_timeout(Some(echo::PATIENCE))?;
        let opener = udp_socket(way.opener, at)?;
        opener.set_read_timeout(Some(echo::PATIENCE))?;
        opener.send(b"hello")?;
        let (_, client) = server.recv_from(&mut [0; 100]).context("the first datagram")?;
        ns.run(|| Ok(server.connect(client)?))?;
        server.send(b"hello")?;
        opener.recv(&mut [0; 100]).context("the first answer")?;
        [End::Udp(opener), End::Udp(server)]
    };
    for _ in 0..3 {
        let [opener, server] = &mut ends;
        opener.write()?;
        server.read().context("from the opener")?;
        server.write()?;
        opener.read().context("from the server")?;
    }
    Ok(ends)
}

/// What an end has received, and how its flow ended.
#[derive(Debug, Default)]
struct Met {
    bytes: usize,
    last: Option<Instant>,
    error: Option<(Instant, ErrorKind)>,
}

impl Met {
    fn note(&mut self, done: std::io::Result<usize>) {
        match done.map_err(|e| e.kind()) {
            Ok(0) | Err(ErrorKind::WouldBlock) => {}
            Ok(n) => {
                self.bytes += n;
                self.last = Some(Instant::now());
            }
            Err(kind) if is_refusal(kind) || kind == ErrorKind::BrokenPipe => {
                self.error.get_or_insert((Instant::now(), kind));
            }
            // The queue is full, or the device does not let the datagram out.
            Err(_) => {}
        }
    }
}

/// Lets one end stream to the other, and denies the flow meanwhile.
fn streams_until_denied(lab: &Lab, way: &Way<'_>, denied: &Value, ends: [End; 2], from_opener: bool) -> Result<()> {
    let [opener, server] = ends;
    let (mut active, mut idle) = if from_opener { (opener, server) } else { (server, opener) };
    active.never_wait()?;
    idle.never_wait()?;
    let (mut sent, mut got) = (Met::default(), Met::default());
    let running = AtomicBool::new(false);
    let reload = || -> Result<()> {
        eventually(SOON, || running.load(Ordering::Relaxed).then_some(()).context("the flow does not run"))?;
        lab.reload(denied)
    };
    let denied = std::thread::scope(|scope| {
        let reload = scope.spawn(reload);
        let mut finished = None;
        while finished.is_none_or(|at: Instant| at.elapsed() < 2 * END) {
            if finished.is_none() && reload.is_finished() {
                finished = Some(Instant::now());
            }
            sent.note(active.write().map(|_| 0));
            got.note(idle.read());
            // Errors about sent datagrams are reported by reads too.
            sent.note(active.read().map(|_| 0));
            running.fetch_or(got.bytes > 400, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        reload.join().map_err(|_| anyhow::anyhow!("reload panicked"))??;
        // By this thread's own clock: data that it had not read yet do not count as late.
        finished.context("no reload")
    })?;
    let limit = denied + patience(END);
    ensure!(got.last.is_some_and(|at| at <= limit), "data {:?} after the reload", got.last.map(|at| at - denied));
    let tcp = matches!(active, End::Tcp(_));
    let (active_is_local, idle_is_local) =
        if from_opener { (way.local[0], way.local[1]) } else { (way.local[1], way.local[0]) };
    if active_is_local {
        let (at, kind) = sent.error.context("the container that sends is not told")?;
        ensure!(at <= limit, "{kind} only {:?} after the reload", at - denied);
    } else if tcp && idle_is_local {
        let (at, kind) = got.error.context("the container that reads is not told")?;
        ensure!(at <= limit, "{kind} only {:?} after the reload", at - denied);
    }
    Ok(())
}

fn all_ways(pick: impl Fn(&str) -> bool) -> Result<()> {
    let mut open_device = lab::config(json!([]));
    open_device["network"]["pools"]["internal"]["host_access"] = json!("all");
    let lab = Lab::quiet(&open_device)?;
    let ways = ways(&lab);
    let mut failures = Vec::new();
    for way in ways.iter().filter(|w| pick(w.name)) {
        for to in way.to {
            for (tcp, from_opener) in [(true, true), (true, false), (false, true), (false, false)] {
                let case = format!("{}, to {to}, TCP {tcp}, the opener sends {from_opener}", way.name);
                lab.reload(&open_device)?;
                let ends = open(way, to, tcp).with_context(|| format!("{case}: before the rule"))?;
                let mut with = open_device.clone();
                with["network"]["policies"] = way.deny.clone();
                if let Err(why) = streams_until_denied(&lab, way, &with, ends, from_opener) {
                    failures.push(format!("{case}: {why:#}"));
                }
            }
            lab.reload(&open_device)?;
            open(way, to, true).with_context(|| format!("{}, to {to}: after the rule", way.name))?;
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_deny_ends_flows_between_containers() -> Result<()> {
    all_ways(|name| ["in a pool", "by a peer's port", "hairpin"].contains(&name))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_deny_ends_flows_with_the_world() -> Result<()> {
    all_ways(|name| ["masqueraded", "published"].contains(&name))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_deny_ends_flows_with_the_device() -> Result<()> {
    all_ways(|name| name.ends_with("the device"))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn flows_that_stay_allowed_notice_nothing() -> Result<()> {
    let lab = Lab::quiet(&lab::config(json!([])))?;
    let other = json!([{"from": {"container": "c"}, "to": "world", "ports": ["tcp/1"], "action": "deny"}]);
    let mut pings = Vec::new();
    for to in [lab.a.addresses(), beyond(), gateway()].concat() {
        let mut ping = lab.b.ns.command("ping");
        pings.push(Process::start(ping.args(["-n", "-q", "-i", "0.01", &to.to_string()]).stdout(Stdio::piped()))?);
    }
    let server = Process::start(lab.a.ns.command("iperf3").args(["-s", "-1"]).stdout(Stdio::null()))?;
    lab.a.ns.listens(5201)?;
    let target = lab.a.v4.to_string();
    let mut udp = lab.b.ns.command("iperf3");
    udp.args(["-J", "-u", "-b", "5M", "-l", "1000", "-t", "4", "-c", &target]);
    let udp = Process::start(udp.stdout(Stdio::piped()))?;
    for n in 0..50 {
        lab.set_rules(if n % 2 == 0 { other.clone() } else { json!([]) })?;
    }
    let said: Value = serde_json::from_str(&udp.finish(SOON)?)?;
    let sum = &said["end"]["sum"];
    ensure!(sum["packets"].as_u64().is_some_and(|n| n > 1000) && sum["lost_packets"] == 0, "{sum}");
    for ping in pings {
        ping.signal(Signal::SIGINT)?;
        let said = ping.finish(SOON)?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    drop(server);
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_cannot_be_built_leaves_the_old_policy() -> Result<()> {
    let deny = json!([{"from": {"container": "b"}, "to": {"container": "a"}, "ports": ["udp/7000"], "action": "deny"}]);
    let lab = Lab::new(&lab::config(deny))?;
    let mut stream = echo::connect(&lab.b.ns, SocketAddr::new(lab.a.v4.into(), PORT))?;
    let mut still = |what: &str| -> Result<()> {
        stream.write_all(b"x").with_context(|| what.to_owned())?;
        ensure!(stream.read(&mut [0; 100]).with_context(|| what.to_owned())? > 0, "{what}: the connection ended");
        ensure!(send(&lab.b.ns, lab.a.v4.into(), Traffic::Udp(PORT), false)? == Seen::Refused, "{what}: not in force");
        Ok(())
    };
    still("before")?;
    let net = |i: u32| format!("172.{}.{}.0/24", 16 + i / 256, i % 256);
    let rule =
        |i| json!({"from": {"container": "b"}, "to": {"cidr": net(i)}, "ports": ["tcp/1-65534"], "action": "deny"});
    let large: Vec<Value> = (0..5000).map(rule).collect();
    let unknown = lab::config(json!([{"from": {"pool": "nowhere"}, "to": "world", "action": "allow"}]));
    for (what, text) in [
        ("too large", lab::config(json!(large)).to_string()),
        ("an unknown pool", unknown.to_string()),
        ("no JSON", "{\"network\":".to_owned()),
        ("empty", String::new()),
    ] {
        std::fs::write(lab.device.config(), text)?;
        let reply = lab.device.cli(&["reload"]);
        ensure!(reply.code == Some(2), "{what}: {reply:?}");
        still(what)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_address_inherits_no_right() -> Result<()> {
    let rules = json!([{"from": {"container": "old"}, "to": {"container": "c"}, "action": "allow"}]);
    let lab = Lab::new(&lab::config(rules))?;
    let attach = |device: &Device, name: &str| {
        let interface = json!({"name": "eth0", "pool": "internal", "ipv4_address": "10.0.3.77"});
        device.attach_run(&json!({"name": name, "network": {"interfaces": [interface]}}))
    };
    let old = attach(&lab.device, "old")?;
    let stream = echo::connect(&old.ns, SocketAddr::new(lab.c.v4.into(), PORT))?;
    ensure!(send(&old.ns, lab.c.v4.into(), Traffic::Udp(PORT), true)? == Seen::Passed, "the rule does nothing");
    lab.device.cli(&["detach", "old"]).ok()?;
    let new = attach(&lab.device, "new")?;
    ensure!(new.v4 == old.v4, "{} is not {}", new.v4, old.v4);
    for traffic in [Traffic::Tcp(PORT), Traffic::Udp(PORT), Traffic::Ping] {
        let seen = send(&new.ns, lab.c.v4.into(), traffic, false)?;
        ensure!(seen == Seen::Refused, "{traffic}: {seen:?}");
    }
    drop(stream);
    Ok(())
}
