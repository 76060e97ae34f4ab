//! A container has at most as many flows in the flow table as its pool allows. Further flows work, but more slowly, and
//! other containers are not affected.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use harness::configs::{self, DEVICE, HOST};
use harness::{Container, Device, Namespace, echo, eventually};
use nix::sys::signal::Signal;
use pv_net_common::FlowLimit;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const PORT: u16 = 7000;
const LIMIT: u64 = 40;
const MORE: usize = 100;
/// Longer than two sweeps of the daemon.
const SWEEPS: Duration = Duration::from_secs(20);

struct Lab {
    device: Device,
    outside: Namespace,
    greedy: Container,
    peer: Container,
}

fn lab() -> Result<Lab> {
    let mut config = configs::masqueraded();
    config["network"]["flow_table"] = json!(4096);
    // The shortest time-out makes the daemon sweep every five seconds.
    config["network"]["flow_timeouts"] = json!({"other": 5});
    config["network"]["pools"]["internal"]["max_flows"] = json!(LIMIT);
    let mut device = Device::new(&config)?;
    let outside = device.outside(configs::UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let greedy = device.attach_run(&json!({"name": "greedy", "network":
        {"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]}}))?;
    let peer = device.attach("peer", "internal")?;
    for (ns, port) in [(&greedy.ns, 80), (&outside, PORT)] {
        echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
    }
    Ok(Lab { device, outside, greedy, peer })
}

fn address(network: &str) -> Result<IpAddr> {
    Ok(network.split('/').next().context("address")?.parse()?)
}

/// An open connection or UDP flow that is answered.
enum Held {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Held {
    fn tcp(ns: &Namespace, at: SocketAddr) -> Result<Self> {
        let mut stream = echo::connect(ns, at)?;
        let mut byte = [0u8];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        Ok(Self::Tcp(stream))
    }

    fn udp(ns: &Namespace, at: SocketAddr) -> Result<Self> {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = ns.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(at)?;
            socket.set_read_timeout(Some(echo::PATIENCE))?;
            Ok(socket)
        })?;
        let mut held = Self::Udp(socket);
        held.lives()?;
        Ok(held)
    }

    fn lives(&mut self) -> Result<()> {
        let mut back = [0; 200];
        let n = match self {
            Self::Tcp(stream) => {
                stream.write_all(b"still here")?;
                stream.read_exact(&mut back[..10])?;
                10
            }
            Self::Udp(socket) => {
                socket.send(b"still here")?;
                socket.recv(&mut back)?
            }
        };
        ensure!(back[..n].ends_with(b"still here"), "{:?}", &back[..n]);
        Ok(())
    }
}

impl Lab {
    fn flows_of(&self, name: &str) -> Result<u64> {
        let all = self.device.json(&["containers"])?;
        let found = all.as_array().context("a list")?.iter().find(|c| c["name"] == name).context("container")?;
        ensure!(found["interfaces"][0]["max_flows"] == json!(LIMIT), "{found}");
        found["interfaces"][0]["flows"].as_u64().with_context(|| found.to_string())
    }

    /// The same number as [`Self::flows_of`], counted in the flow table itself.
    fn flows_in_table(&self, container: &Container) -> Result<u64> {
        let all = self.device.json(&["flows"])?;
        let own = container.addresses().map(|a| json!(a.to_string()));
        // Only entries that the container opened, or that came to it from outside.
        let outside = |at: &str| at == "192.0.2.9" || at == "2001:db8:1::9";
        let counts = |f: &&serde_json::Value| {
            f["state"] == "established"
                && f["direction"] == "original"
                && (own.contains(&f["src"]) || f["src"].as_str().is_some_and(outside))
        };
        Ok(all.as_array().context("a list")?.iter().filter(counts).count() as u64)
    }

    fn expect(&self, name: &str, flows: u64) -> Result<()> {
        eventually(Duration::from_secs(5), || {
            let now = self.flows_of(name)?;
            ensure!(now == flows, "{name} has {now} flows, not {flows}");
            Ok(())
        })
    }

    fn others_are_fine(&self, held: &mut [Held], far: SocketAddr) -> Result<()> {
        for one in held {
            one.lives().context("a flow of the peer from before")?;
        }
        let before = self.flows_of("peer")?;
        let mut new = [Held::tcp(&self.peer.ns, far)?, Held::udp(&self.peer.ns, far)?];
        for one in &mut new {
            one.lives().context("a new flow of the peer")?;
        }
        self.expect("peer", before + 2).context("the peer's new flows are not in the table")
    }
}

#[test]
fn the_table_is_not_one_containers() -> Result<()> {
    let lab = lab()?;
    for (device, host) in DEVICE.iter().zip(HOST) {
        let (far, published) = (SocketAddr::new(address(host)?, PORT), SocketAddr::new(address(device)?, 8080));
        let mut held = [Held::tcp(&lab.peer.ns, far)?, Held::udp(&lab.peer.ns, far)?];
        let before = lab.flows_of("greedy")?;
        ensure!(before == 0, "{before} flows of nobody");
        type Open = fn(&Namespace, SocketAddr) -> Result<Held>;
        for (what, open, ns, at) in [
            ("TCP out", Held::tcp as Open, &lab.greedy.ns, far),
            ("TCP in", Held::tcp, &lab.outside, published),
            ("UDP out", Held::udp, &lab.greedy.ns, far),
            ("UDP in", Held::udp, &lab.outside, published),
        ] {
            let what = format!("{what} to {at}");
            let start = lab.device.counters()?["flow-limit"];
            let mut many = (0..MORE).map(|_| open(ns, at)).collect::<Result<Vec<_>>>().context(what.clone())?;
            for one in &mut many {
                one.lives().with_context(|| what.clone())?;
            }
            lab.expect("greedy", LIMIT).with_context(|| what.clone())?;
            let refused = lab.device.counters()?["flow-limit"] - start;
            ensure!(refused >= MORE as u64 - LIMIT, "{what}: {refused} counted");
            lab.others_are_fine(&mut held, far).with_context(|| what.clone())?;
            // A flow to the container counts for the container that opens it.
            Held::tcp(&lab.peer.ns, SocketAddr::new(lab.greedy.addresses()[usize::from(at.is_ipv6())], 80))?;
            let is_tcp = what.starts_with("TCP");
            drop(many);
            if !is_tcp {
                // When an address is removed, the daemon removes its flows.
                let same = |verb: &str| lab.device.ns.ip(&format!("addr {verb} {device} dev up0"));
                same("del")?;
                lab.expect("greedy", 0).with_context(|| what.clone())?;
                same("add")?;
                held = eventually(Duration::from_secs(10), || {
                    Ok([Held::tcp(&lab.peer.ns, far)?, Held::udp(&lab.peer.ns, far)?])
                })?;
            }
            lab.expect("greedy", 0).with_context(|| what.clone())?;
            let mut again = open(ns, at)?;
            again.lives()?;
            if is_tcp {
                lab.expect("greedy", 1).with_context(|| format!("{what}: the first one after"))?;
                drop(again);
                lab.expect("greedy", 0).with_context(|| what.clone())?;
            } else {
                lab.expect("greedy", 1).with_context(|| format!("{what}: the first one after"))?;
                lab.device.ns.ip(&format!("addr del {device} dev up0"))?;
                lab.expect("greedy", 0)?;
                lab.device.ns.ip(&format!("addr add {device} dev up0"))?;
                held = eventually(Duration::from_secs(10), || {
                    Ok([Held::tcp(&lab.peer.ns, far)?, Held::udp(&lab.peer.ns, far)?])
                })?;
            }
        }
    }
    Ok(())
}

/// Falsifies the daemon's count for every link by `flows`.
fn disturb(device: &Device, flows: u64) -> Result<()> {
    let path = device.pins().join("maps/flow_limits");
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let mut map: HashMap<_, u32, FlowLimit> = HashMap::try_from(Map::HashMap(data))?;
    let all: Vec<(u32, FlowLimit)> = map.iter().collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "nothing is counted");
    for (link, limit) in all {
        map.insert(link, FlowLimit { freed: limit.freed.wrapping_add(flows), ..limit }, 0)?;
    }
    Ok(())
}

#[test]
fn a_count_that_is_wrong_is_set_right() -> Result<()> {
    let mut lab = lab()?;
    let mut held = Vec::new();
    for host in HOST {
        let far = SocketAddr::new(address(host)?, PORT);
        for _ in 0..5 {
            held.push(Held::tcp(&lab.greedy.ns, far)?);
        }
    }
    lab.expect("greedy", 10)?;
    let right = |lab: &Lab| {
        eventually(SWEEPS, || {
            let (counted, there) = (lab.flows_of("greedy")?, lab.flows_in_table(&lab.greedy)?);
            ensure!(counted == there && there == 10, "{counted} counted, {there} there");
            Ok(())
        })
    };
    for flows in [3, 3u64.wrapping_neg()] {
        disturb(&lab.device, flows)?;
        ensure!(lab.flows_of("greedy")? != 10, "it was not disturbed");
        right(&lab)?;
    }
    // As if a daemon had died after it removed flows and before it counted them.
    lab.device.stop(Signal::SIGKILL)?;
    disturb(&lab.device, 2)?;
    lab.device.start()?;
    right(&lab)?;
    for one in &mut held {
        one.lives()?;
    }
    // A right count survives a restart.
    lab.device.stop(Signal::SIGKILL)?;
    lab.device.start()?;
    lab.expect("greedy", 10)?;
    held.clear();
    lab.expect("greedy", 0)
}

#[test]
fn two_cpus_count_what_is_there() -> Result<()> {
    let lab = lab()?;
    let far = HOST.map(|h| address(h).map(|a| SocketAddr::new(a, PORT)));
    // Flows below and above the limit, opened and closed on all CPUs at the same time.
    std::thread::scope(|scope| {
        let work = |far: SocketAddr| {
            let lab = &lab;
            scope.spawn(move || {
                for n in 0..300 {
                    echo::tcp(&lab.greedy.ns, far, b"short").with_context(|| format!("connection {n}"))?;
                }
                anyhow::Ok(())
            })
        };
        let [v4, v6] = far;
        let threads = [work(v4?), work(v6?)];
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    lab.expect("greedy", 0)
}
