//! DNS as containers use it, asked with real programs.

mod clients;
mod device;
mod flood;
mod monitor;
mod resolved;
mod services;
mod tls;
mod upstream;

use anyhow::{Context, Result, ensure};
use harness::configs::{DEVICE, HOST, HOSTS, UPLINK, masqueraded, two_pools};
use harness::nameserver::Nameserver;
use harness::{Container, Device, Namespace, Process, SOON, eventually};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// The gateways of pool `internal`.
const GATEWAYS: [&str; 2] = ["10.0.3.1", "fd00:5056:0:3::1"];
/// The gateways of pool `management`.
const OTHERS: [&str; 2] = ["10.0.4.1", "fd00:5056:0:4::1"];
const LONG: Duration = Duration::from_secs(5);

/// What `dig` prints for a question.
fn dig(ns: &Namespace, server: &str, words: &str) -> Result<String> {
    let mut command = ns.command("dig");
    command.arg(format!("@{server}")).args(["+tries=1", "+time=6"]).args(words.split_whitespace());
    harness::output(&mut command)
}

/// The data of the records in the answer, sorted.
fn short(ns: &Namespace, server: &str, words: &str) -> Result<Vec<String>> {
    let said = dig(ns, server, &format!("{words} +short"))?;
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// Fails unless the output of `dig` has all of `parts`.
fn says(ns: &Namespace, server: &str, words: &str, parts: &[&str]) -> Result<()> {
    let said = dig(ns, server, words)?;
    for part in parts {
        ensure!(said.contains(part), "{words} of {server}: no {part:?} in {said}");
    }
    Ok(())
}

fn metrics(device: &Device) -> Result<String> {
    harness::unix_http::ask(&device.file("run").join("api.sock"), "GET", "/metrics", "")
}

fn own(container: &Container) -> [String; 2] {
    container.addresses().map(|a| a.to_string())
}

struct Lab {
    device: Device,
    web: Container,
    db: Container,
    other: Container,
}

impl Lab {
    fn new(config: &Value) -> Result<Self> {
        let device = Device::started(config)?;
        let run = json!({"name": "db", "network": {"pool": "internal", "aliases": ["sql", "cache.x"]}});
        let db = device.attach_run(&run)?;
        let (web, other) = (device.attach("web", "internal")?, device.attach("other", "management")?);
        Ok(Self { device, web, db, other })
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect()
}

/// A question for an `A` record on the wire.
fn question(id: u16, name: &str) -> Vec<u8> {
    let name = pv_net::dns::name::from_text(name).expect("a name");
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.into(), RecordType::A));
    message.to_vec().expect("a question")
}

#[test]
fn containers_find_each_other_by_name() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let (web, [v4, v6]) = (&lab.web.ns, own(&lab.db));
    for gateway in GATEWAYS {
        for tcp in ["", "+tcp"] {
            for name in ["db", "DB", "db.internal", "eth0.db", "sql", "cache.x"] {
                let ask = |kind: &str| short(web, gateway, &format!("{name}.pv.local {kind} {tcp}"));
                ensure!(ask("A")? == [v4.clone()], "{name} of {gateway} {tcp}: {:?}", ask("A")?);
                ensure!(ask("AAAA")? == [v6.clone()], "{name} of {gateway} {tcp}: {:?}", ask("AAAA")?);
            }
        }
        for address in [&v4, &v6] {
            ensure!(short(web, gateway, &format!("-x {address}"))? == ["db.pv.local."], "{address}");
        }
        ensure!(short(web, gateway, "gateway.pv.local A")? == [GATEWAYS[0]]);
        ensure!(short(web, gateway, "gateway.pv.local AAAA")? == [GATEWAYS[1]]);
        ensure!(short(web, gateway, &format!("-x {}", GATEWAYS[0]))? == ["gateway.pv.local."]);
        says(web, gateway, "db.pv.local", &["status: NOERROR", "flags: qr aa rd ra", "db.pv.local.\t\t5\tIN\tA"])?;
        says(web, gateway, "db.pv.local +cookie=0123456789abcdef", &["COOKIE: 0123456789abcdef", "(good)"])?;
        // The answer has the letters of the question.
        says(web, gateway, "dB.Pv.LoCaL", &["dB.Pv.LoCaL."])?;
        for (words, parts) in [
            ("db.pv.local TXT", &["NOERROR", "ANSWER: 0, AUTHORITY: 1", "IN\tSOA\tgateway.pv.local."][..]),
            ("internal.pv.local", &["NOERROR", "ANSWER: 0, AUTHORITY: 1"]),
            ("nobody.pv.local", &["NXDOMAIN", "AUTHORITY: 1", "\t5\tIN\tSOA"]),
            ("x.db.pv.local", &["NXDOMAIN"]),
            ("pv.local SOA", &["ANSWER: 1", "SOA\tgateway.pv.local. hostmaster.pv.local."]),
            ("pv.local NS", &["ANSWER: 1", "NS\tgateway.pv.local.", "ADDITIONAL: 3"]),
            ("localhost", &["127.0.0.1"]),
            ("x.localhost AAAA", &["::1"]),
            ("printer.local", &["NXDOMAIN"]),
            ("x.invalid", &["NXDOMAIN"]),
            ("db", &["NXDOMAIN"]),
            ("-x 10.77.0.1", &["NXDOMAIN", "10.in-addr.arpa."]),
            ("3.0.10.in-addr.arpa PTR", &["NOERROR", "ANSWER: 0"]),
            ("-x fd99::1", &["NXDOMAIN", "d.f.ip6.arpa."]),
            ("db.pv.local CH A", &["REFUSED"]),
            ("pv.local AXFR +tcp", &["Transfer failed"]),
            ("db.pv.local +opcode=NOTIFY", &["NOTIMP"]),
            ("db.pv.local +edns=1 +noednsneg", &["BADVERS"]),
            ("db.pv.local ANY", &["ANSWER: 2"]),
        ] {
            says(web, gateway, words, parts)?;
        }
    }
    let drill = harness::output(web.command("drill").args(["@10.0.3.1", "db.pv.local", "AAAA"]))?;
    ensure!(drill.contains(&v6), "{drill}");
    // As programs ask: by the `resolv.conf` that is made for the container.
    let file = lab.device.file("run").join("resolv/web.conf");
    let text = fs::read_to_string(&file)?;
    ensure!(text.ends_with("search pv.local\nnameserver 10.0.3.1\nnameserver fd00:5056:0:3::1\n"), "{text}");
    let by_libc = |program: &str| {
        let line = format!("mount --bind {} /etc/resolv.conf && exec {program}", file.display());
        harness::output(web.command("unshare").args(["-m", "sh", "-c", &line]))
    };
    let found = by_libc("getent ahosts db")?;
    ensure!(found.contains(&v4) && found.contains(&v6), "{found}");
    let found = by_libc("busybox nslookup db.pv.local")?;
    ensure!(found.contains(&v4) && found.contains(&v6), "{found}");
    Ok(())
}

#[test]
fn a_container_sees_its_pools_and_what_rules_let_it_reach() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let (web, other, [db4, db6]) = (&lab.web.ns, &lab.other.ns, own(&lab.db));
    let hidden = |from: &Namespace, gateway: &str| -> Result<()> {
        for name in ["db.pv.local", "db.internal.pv.local", "eth0.db.pv.local", "sql.pv.local"] {
            says(from, gateway, name, &["NXDOMAIN"])?;
        }
        says(from, gateway, &format!("-x {db4}"), &["NXDOMAIN"])?;
        says(from, gateway, &format!("-x {db6}"), &["NXDOMAIN"])
    };
    for gateway in OTHERS {
        hidden(other, gateway)?;
        says(other, gateway, "internal.pv.local", &["NXDOMAIN"])?;
        ensure!(short(other, gateway, "other.pv.local AAAA")? == [own(&lab.other)[1].clone()]);
    }
    // The other pool's gateway does not answer clients of this pool.
    for gateway in OTHERS {
        ensure!(dig(web, gateway, "other.pv.local +time=1").is_err(), "{gateway} answers web");
    }
    // A rule opens one direction only.
    let mut config = two_pools();
    config["network"]["policies"] = json!([{
        "from": {"container": "other"}, "to": {"container": "db"}, "ports": ["tcp/5432"], "action": "allow",
    }]);
    lab.device.configure(&config)?;
    lab.device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        ensure!(short(other, OTHERS[0], "db.pv.local A")? == *std::slice::from_ref(&db4));
        ensure!(short(other, OTHERS[0], &format!("-x {db6}"))? == ["db.pv.local."]);
        Ok(())
    })?;
    says(other, OTHERS[0], "web.pv.local", &["NXDOMAIN"])?;
    says(web, GATEWAYS[0], "other.pv.local", &["NXDOMAIN"])?;
    // Two pools that are open to each other.
    lab.device.configure(&harness::configs::open_pools())?;
    lab.device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        ensure!(short(web, GATEWAYS[0], "other.pv.local A")? == [own(&lab.other)[0].clone()]);
        Ok(())
    })?;
    // A detached container has no name.
    lab.device.cli(&["detach", "db"]).ok()?;
    eventually(SOON, || hidden(web, GATEWAYS[1]))?;
    ensure!(!lab.device.file("run").join("resolv/db.conf").exists(), "its file is still there");
    Ok(())
}

/// The same bytes from the same client, whose answer the server has kept: it is another one as soon as the names are.
#[test]
fn the_answer_to_a_question_that_comes_again_follows_the_names() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let asked = question(7, "db.pv.local");
    let ask = |from: &Container| {
        from.ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(LONG))?;
            socket.send_to(&asked, (GATEWAYS[0], 53))?;
            let mut answer = vec![0; 512];
            let len = socket.recv(&mut answer)?;
            answer.truncate(len);
            Ok(answer)
        })
    };
    let says = |address: std::net::Ipv4Addr| -> Result<()> {
        for _ in 0..20 {
            let answer = ask(&lab.web)?;
            ensure!(answer.ends_with(&address.octets()) && answer[..2] == [0, 7], "not {address}: {answer:?}");
        }
        Ok(())
    };
    says(lab.db.v4)?;
    lab.device.cli(&["detach", "db"]).ok()?;
    eventually(SOON, || {
        let answer = ask(&lab.web)?;
        ensure!(answer[3] & 15 == 3, "{answer:?}");
        Ok(())
    })?;
    // Somebody else has the address first, so that the name comes back with another one.
    let _first = lab.device.attach("first", "internal")?;
    let db = lab.device.attach("db", "internal")?;
    eventually(SOON, || says(db.v4))
}

#[test]
fn a_pool_can_be_without_and_a_daemon_that_dies_comes_back() -> Result<()> {
    let mut config = two_pools();
    config["network"]["pools"]["management"]["dns"] = json!(false);
    let mut lab = Lab::new(&config)?;
    ensure!(!lab.device.file("run").join("resolv/other.conf").exists(), "a file for who can ask nobody");
    // pv-net does not use port 53 on the device's other addresses, so another server can.
    let taken = harness::output(lab.device.ns.command("ss").args(["-Hlntu", "sport = :53"]))?;
    ensure!(taken.contains(GATEWAYS[0]), "{taken}");
    for line in taken.lines() {
        ensure!(GATEWAYS.iter().any(|g| line.contains(*g)), "{line} in {taken}");
    }
    ensure!(short(&lab.web.ns, GATEWAYS[0], "db.pv.local A")? == [own(&lab.db)[0].clone()]);
    lab.device.stop(Signal::SIGKILL)?;
    ensure!(dig(&lab.web.ns, GATEWAYS[0], "db.pv.local +time=1").is_err(), "a dead daemon answers");
    lab.device.start()?;
    let (web, db) = (&lab.web.ns, own(&lab.db)[0].clone());
    eventually(SOON, || {
        ensure!(short(web, GATEWAYS[0], "db.pv.local A +time=1")? == *std::slice::from_ref(&db));
        Ok(())
    })?;
    // A bridge that somebody removes is made again, and so are its sockets.
    config["network"]["pools"]["management"]["dns"] = json!(true);
    lab.device.configure(&config)?;
    lab.device.cli(&["reload"]).ok()?;
    eventually(SOON, || says(&lab.other.ns, OTHERS[1], "other.pv.local AAAA +time=1", &["NOERROR", "ANSWER: 1"]))?;
    let conditions = lab.device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}

/// A DNS server of the device keeps its port on the device's own addresses.
#[test]
fn port_53_of_the_device_is_its_own() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let _beyond = lab.device.outside("own0", &DEVICE, &HOST)?;
    let mut server =
        Process::start(lab.device.ns.command("socat").args(["UDP4-RECVFROM:53,bind=192.0.2.1,fork", "EXEC:cat"]))?;
    eventually(SOON, || {
        ensure!(!server.has_ended()?, "the port is taken");
        let taken = harness::output(lab.device.ns.command("ss").args(["-Hlnu", "sport = :53"]))?;
        ensure!(taken.contains("192.0.2.1:53"), "{taken}");
        Ok(())
    })?;
    ensure!(short(&lab.web.ns, GATEWAYS[0], "db.pv.local A")? == [own(&lab.db)[0].clone()]);
    Ok(())
}

/// A container with a DNS server may publish port 53, on every address of the device.
#[test]
fn a_container_may_publish_port_53() -> Result<()> {
    let (device, host, _server, web) = upstream::outside(&masqueraded())?;
    says(&web.ns, GATEWAYS[0], "web.pv.local", &["NOERROR", "ANSWER: 1"])?;
    let dns = device.attach_run(&json!({"name": "dns", "network": {"pool": "internal", "ports": ["53:53/udp"]}}))?;
    for (address, (_, of_device)) in dns.addresses().into_iter().zip(HOSTS) {
        harness::echo::serve(&dns.ns, address, 53)?;
        harness::echo::udp(&host, SocketAddr::new(of_device, 53), b"a question")?;
    }
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    let said = || Ok(device.json(&["containers", "dns"])?["conditions"].to_string());
    let taken = |said: Result<String>| said.map(|said| said.contains("port 53:53/udp: containers that ask pv-net"));
    ensure!(taken(said())?, "nobody says where their questions go: {}", said()?);
    device.cli(&["detach", "dns"]).ok()?;
    let ports = json!([format!("{}:53:53/udp", HOSTS[0].1)]);
    device.attach_run(&json!({"name": "dns", "network": {"pool": "internal", "ports": ports}}))?;
    ensure!(!taken(said())?, "the gateways' questions are pv-net's: {}", said()?);
    device.cli(&["detach", "dns"]).ok()?;
    eventually(SOON, || says(&web.ns, GATEWAYS[0], "web.pv.local", &["NOERROR", "ANSWER: 1"]))
}
