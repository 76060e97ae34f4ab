//! Modules of WebAssembly that pv-net starts by wasmtime and WasmEdge, with the sockets that their `run.json` grants.
//!
//! The module is `tests/wasm/agent.c`: it does with sockets what it is asked for.

use crate::start::lives;
use crate::starter::Starter;
use crate::story::{COLUMNS, PAGE, README, published, row};
use anyhow::{Context, Result, ensure};
use harness::{Namespace, SOON, eventually};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where set-up has unpacked the runtimes.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/unpacked");
/// The module for each of them, and what calls wasmtime's library.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/wasm");
/// The user by which runtimes run unless `run.json` names another one.
const NOBODY: u32 = 65534;
/// The host behind the uplink.
const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8:1::9"];

/// Containers of one of the runtimes.
struct Modules {
    starter: Starter,
    user: u32,
}

/// Whether anybody may enter a directory.
fn is_public(dir: &Path) -> bool {
    let may_enter = |dir: &Path| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    dir.canonicalize().is_ok_and(|dir| dir.ancestors().all(may_enter))
}

impl Modules {
    /// A device with a runner; nothing where set-up could not unpack the runtime.
    fn new(cli: &'static str, test: &str) -> Result<Option<Self>> {
        let dir = Path::new(UNPACKED).join(cli);
        if !dir.exists() {
            harness::skip(test, &format!("{cli} is not unpacked: cargo xtask setup does that with apt-get"));
            return Ok(None);
        }
        let starter = Starter::new(cli)?;
        let own = starter.lab.device.file("");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
        let dir = dir.display();
        let command = match cli {
            "wasmtime" => format!("PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={dir} exec python3 {HERE}/wasmtime_run.py"),
            _ => format!("exec {dir}/lib/ld-linux-x86-64.so.2 --library-path {dir}/lib {dir}/bin/wasmedge"),
        };
        let program = own.join(cli);
        fs::write(&program, format!("#!/bin/sh\n{command} \"$@\"\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let module = if cli == "wasmtime" { "agent-wasip2.wasm" } else { "agent-wasmedge.wasm" };
        fs::copy(Path::new(HERE).join(module), own.join("agent.wasm"))?;
        // A checkout in a directory that is its owner's alone.
        let user = if is_public(Path::new(UNPACKED)) && is_public(Path::new(HERE)) { NOBODY } else { 0 };
        Ok(Some(Self { starter, user }))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.starter.lab.device.file(name)
    }

    /// Declares a container whose agent listens on these ports.
    fn declare(&self, name: &str, pool: &str, ports: &[&str], sockets: Value, published: &[&str]) -> Result<()> {
        let network = json!({"pool": pool, "ports": published, "sockets": sockets});
        let mut runtime = json!({
            "cli": self.starter.kind, "program": self.file(self.starter.kind), "module": self.file("agent.wasm"),
            "args": ports, "env": {"GREETING": "good morning"},
        });
        if self.user != NOBODY {
            runtime["user"] = json!(self.user);
        }
        let run = json!({"name": name, "type": "wasm", "runtime": runtime, "stop_timeout": 60, "network": network});
        self.starter.write(name, &run)?;
        self.starter.lab.device.cli(&["reload"]).ok()?;
        Ok(())
    }

    /// Starts a container, and waits until its agent listens on its first port.
    fn start(&self, name: &str, port: u16) -> Result<[IpAddr; 2]> {
        self.starter.act("start", name)?;
        let [v4, v6] = self.starter.lab.attached(name)?;
        let addresses = [v4.parse()?, v6.parse()?];
        eventually(SOON, || self.asked(SocketAddr::new(addresses[0], port), "env GREETING").map(drop))
            .with_context(|| self.starter.log())?;
        Ok(addresses)
    }

    /// What an agent answers; the question comes from the device.
    fn asked(&self, at: SocketAddr, line: &str) -> Result<String> {
        let said = self.starter.lab.device.ns.run(|| asked(at, line));
        said.with_context(|| format!("{at}: {line}"))
    }

    /// The agent of `one`, at its port 80, asks for a page.
    fn reaches(&self, one: IpAddr, to: IpAddr, port: u16) -> Result<String> {
        self.asked(SocketAddr::new(one, 80), &format!("ask {to} {port}"))
    }

    /// What decides about a flow.
    fn decides(&self, from: &str, to: &str, traffic: &str) -> Result<(String, String)> {
        let said = self.starter.lab.device.json(&["policy", "explain", from, to, traffic])?;
        let text = |key: &str| said[key].as_str().map(str::to_owned).with_context(|| format!("{said}"));
        Ok((text("verdict")?, text("reason")?))
    }
}

fn asked(at: SocketAddr, line: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    ensure!(!said.is_empty(), "no answer");
    Ok(said.trim().to_owned())
}

/// Both families of two containers in the same order.
fn both(one: [IpAddr; 2], other: [IpAddr; 2]) -> [(IpAddr, IpAddr); 2] {
    [(one[0], other[0]), (one[1], other[1])]
}

/// The story of the other runtimes, told by agents.
fn story(cli: &'static str, test: &str) -> Result<()> {
    let Some(mut modules) = Modules::new(cli, test)? else { return Ok(()) };
    let peer = |name: &str| json!({"to": {"container": name}, "ports": ["tcp/80"]});
    let sockets = |peers: Value| json!({"listen": ["tcp/80"], "connect": peers, "resolve": true});
    modules.declare("web", "internal", &["80"], sockets(json!([peer("db")])), &["8080:80"])?;
    modules.declare("db", "internal", &["80"], sockets(json!([peer("web")])), &[])?;
    // What is granted still has to pass the pools' settings.
    modules.declare("other", "management", &["80"], sockets(json!([peer("web")])), &[])?;
    let (web, db) = (modules.start("web", 80)?, modules.start("db", 80)?);
    let other = modules.start("other", 80)?;
    is_confined(&modules, "web")?;
    // Names, by the pool's servers.
    for name in ["web.pv.local", "web"] {
        let said = modules.asked(SocketAddr::new(db[0], 80), &format!("resolve {name}"))?;
        ensure!(web.iter().all(|address| said.contains(&address.to_string())), "{name}: {said}");
    }
    for (one, to) in both(db, web).into_iter().chain(both(web, db)) {
        let said = modules.reaches(one, to, 80)?;
        ensure!(said.contains(PAGE), "{one} to {to}: {said}");
    }
    published(&modules.starter.lab)?;
    for (one, to) in both(other, web) {
        let said = modules.reaches(one, to, 80)?;
        ensure!(said.starts_with("not connected"), "{one} to {to}, in another pool: {said}");
    }
    let (verdict, reason) = modules.decides("other", "web", "tcp/80")?;
    ensure!(verdict == "deny" && reason.contains("isolated"), "{reason}");
    // That one's own way works, so what does not arrive was refused.
    let said = modules.asked(SocketAddr::new(other[0], 80), "resolve other.pv.local")?;
    ensure!(said.contains(&other[0].to_string()), "{said}");
    // Rules hold too.
    let mut config: Value = serde_json::from_str(&fs::read_to_string(modules.starter.lab.device.config())?)?;
    let before = config.clone();
    config["network"]["policies"] = json!([{
        "name": "quiet", "from": {"container": "db"}, "to": {"container": "web"}, "action": "deny",
    }]);
    modules.starter.lab.device.configure(&config)?;
    modules.starter.lab.device.cli(&["reload"]).ok()?;
    for (one, to) in both(db, web) {
        let said = modules.reaches(one, to, 80)?;
        ensure!(said.starts_with("not connected"), "{one} to {to}, against a rule: {said}");
    }
    let decided = modules.decides("db", "web", "tcp/80")?;
    ensure!(decided == ("deny".to_owned(), "rule quiet says deny".to_owned()), "{decided:?}");
    modules.starter.lab.device.configure(&before)?;
    modules.starter.lab.device.cli(&["reload"]).ok()?;
    for name in ["db", "other", "web"] {
        modules.starter.act("stop", name)?;
    }
    modules.starter.lab.no_links()?;
    // Starts, restarts, kills and ends, as for the other runtimes.
    lives(&mut modules.starter)?;
    ensure!(README.contains(&row(cli, &["yes"; COLUMNS.len()])), "the README has no row of {cli}");
    Ok(())
}

/// The runtime's process has nothing of the device: neither its network nor its rights.
fn is_confined(modules: &Modules, name: &str) -> Result<()> {
    let (_, pid) = modules.starter.runs(name)?;
    let proc = PathBuf::from(format!("/proc/{}", pid.context("no process")?));
    let own = |path: &Path| anyhow::Ok(fs::metadata(path)?.ino());
    let device = modules.starter.lab.device.ns.path();
    ensure!(own(&proc.join("ns/net"))? != own(&device)?, "it is in the device's network");
    let status = fs::read_to_string(proc.join("status"))?;
    let field =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    ensure!(field("Uid:").split_whitespace().all(|user| user == modules.user.to_string()), "{status}");
    ensure!(field("Groups:").is_empty() && field("NoNewPrivs:") == "1", "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        ensure!(field(set).trim_matches('0').is_empty(), "{set} {}", field(set));
    }
    let open = fs::read_dir(proc.join("fd"))?.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let strange: Vec<PathBuf> = open.filter(|to| to.starts_with(modules.file("run"))).collect();
    ensure!(strange.is_empty(), "it has open files of pv-net: {strange:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_wasmtime() -> Result<()> {
    story("wasmtime", "the_story_holds_for_wasmtime")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_wasmedge() -> Result<()> {
    story("wasmedge", "the_story_holds_for_wasmedge")
}

/// A server outside that answers each connection.
fn serves(outside: &Namespace, port: u16) -> Result<()> {
    let listeners = outside.run(|| {
        let all = OUTSIDE.map(|address| TcpListener::bind((address, port)));
        all.into_iter().collect::<Result<Vec<_>, _>>().context("bind")
    })?;
    for listener in listeners {
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 64]).and_then(|_| stream.write_all(b"from outside\n"));
            }
        });
    }
    Ok(())
}

/// What is not granted is refused, and the reason says by whom.
fn refused(cli: &'static str, test: &str) -> Result<()> {
    let Some(modules) = Modules::new(cli, test)? else { return Ok(()) };
    let peers = json!([
        {"to": {"container": "web"}, "ports": ["tcp/80"]},
        {"to": {"cidr": "192.0.2.9/32"}, "ports": ["tcp/7000"]}, {"to": {"cidr": "2001:db8:1::9"}, "ports": ["tcp/7000"]},
    ]);
    modules.declare("web", "internal", &["80", "81"], json!({"listen": ["tcp/80-81"]}), &[])?;
    modules.declare("db", "internal", &["80"], json!({"listen": ["tcp/80"], "connect": peers}), &[])?;
    let (web, db) = (modules.start("web", 80)?, modules.start("db", 80)?);
    for port in [7000, 7001] {
        serves(&modules.starter.lab.outside, port)?;
    }
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    // A port that is not granted: the runtimes open it, and nobody reaches it.
    let said = modules.asked(at(db[0], 80), "listen 90")?;
    ensure!(said == "listening", "{said}");
    let denied = ("deny".to_owned(), "container db: sockets grants no such flow".to_owned());
    for address in db {
        let reached = modules.asked(at(address, 90), "GET /");
        ensure!(reached.is_err(), "{address}, port 90: {reached:?}");
        ensure!(modules.asked(at(address, 80), "GET /")?.contains(PAGE), "{address}, port 80");
    }
    for from in ["host", "web", "world"] {
        let decided = modules.decides(from, "db", "tcp/90")?;
        ensure!(decided.0 == "deny" && decided.1.ends_with("sockets grants no such flow"), "{from}: {decided:?}");
    }
    // A destination that is not granted: another port of a container, another one outside, and any other container.
    for (one, to) in both(db, web) {
        ensure!(modules.asked(at(to, 81), "GET /")?.contains(PAGE), "{to}, port 81 from the device");
        ensure!(modules.reaches(one, to, 80)?.contains(PAGE), "{one} to {to}, port 80");
        let said = modules.reaches(one, to, 81)?;
        ensure!(said.starts_with("not connected"), "{one} to {to}, port 81: {said}");
        let back = modules.reaches(to, one, 80)?;
        ensure!(back.starts_with("not connected"), "{to} to {one}, of which nothing is granted: {back}");
    }
    for (one, to) in db.into_iter().zip(OUTSIDE.map(|address| address.parse::<IpAddr>())) {
        let to = to?;
        let said = modules.reaches(one, to, 7000)?;
        ensure!(said.contains("from outside"), "{one} to {to}, port 7000: {said}");
        let said = modules.reaches(one, to, 7001)?;
        ensure!(said.starts_with("not connected"), "{one} to {to}, port 7001: {said}");
    }
    for (to, traffic) in [("web", "tcp/81"), ("web", "udp/80"), ("192.0.2.9", "tcp/7001"), ("web", "icmp")] {
        let decided = modules.decides("db", to, traffic)?;
        ensure!(decided == denied, "{to} {traffic}: {decided:?}");
    }
    // Names that are not granted: by the runtime where it can, and in any case by the data plane.
    let begun = Instant::now();
    let said = modules.asked(at(db[0], 80), "resolve web.pv.local")?;
    ensure!(said.starts_with("not resolved"), "{said}");
    eprintln!("{cli}: {said}, after {:?}", begun.elapsed());
    for gateway in ["10.0.3.1", "fd00:5056:0:3::1"] {
        let decided = modules.decides("db", gateway, "udp/53")?;
        ensure!(decided == denied, "{gateway}: {decided:?}");
    }
    without_any(&modules)?;
    not_attached(&modules)
}

/// Without a grant wasmtime itself refuses; WasmEdge has no such setting, and the data plane refuses.
fn without_any(modules: &Modules) -> Result<()> {
    modules.declare("mute", "internal", &["80"], json!({}), &[])?;
    modules.starter.act("start", "mute").map(drop).or_else(|e| {
        // It may have ended before anybody has looked.
        ensure!(format!("{e:#}").contains("at once"), "{e:#}");
        Ok(())
    })?;
    let decided = modules.decides("host", "mute", "tcp/80");
    if modules.starter.kind == "wasmtime" {
        eventually(SOON, || {
            let log = modules.starter.log();
            ensure!(log.contains("agent: port 80: Permission denied"), "{log}");
            Ok(())
        })?;
        modules.starter.becomes("mute", "failed")?;
        return Ok(());
    }
    modules.starter.becomes("mute", "running")?;
    let said = decided?;
    ensure!(said == ("deny".to_owned(), "container mute: sockets grants no such flow".to_owned()), "{said:?}");
    for address in modules.starter.lab.attached("mute")? {
        let reached = modules.asked(SocketAddr::new(address.parse()?, 80), "GET /");
        ensure!(reached.is_err(), "{address}: {reached:?}");
    }
    Ok(())
}

/// A module that cannot be attached is never executed, and nothing of it is left.
fn not_attached(modules: &Modules) -> Result<()> {
    let agents = |modules: &Modules| modules.starter.log().matches("agent: ready").count();
    modules.declare("lost", "internal", &["80"], json!({"listen": ["tcp/80"]}), &[])?;
    let file = modules.file("containers/lost/run.json");
    let mut run: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    run["network"]["pool"] = json!("gone");
    fs::write(&file, run.to_string())?;
    modules.starter.lab.device.cli(&["reload"]).ok()?;
    let before = agents(modules);
    let failed = modules.starter.lab.device.cli(&["containers", "start", "lost"]);
    ensure!(failed.code != Some(0) && failed.stderr.contains("lost"), "{failed:?}");
    // A program that is not there is said so.
    run["network"]["pool"] = json!("internal");
    run["runtime"]["program"] = json!("/nowhere/wasm");
    fs::write(&file, run.to_string())?;
    modules.starter.lab.device.cli(&["reload"]).ok()?;
    let missing = modules.starter.lab.device.cli(&["containers", "start", "lost"]);
    ensure!(missing.code == Some(1) && missing.stderr.contains("/nowhere/wasm: No such file"), "{missing:?}");
    std::thread::sleep(Duration::from_millis(300));
    ensure!(agents(modules) == before, "{}", modules.starter.log());
    ensure!(!modules.file("run-runner/lost.process").exists(), "it is written down");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_a_module_of_wasmtime_is_not_granted_is_refused() -> Result<()> {
    refused("wasmtime", "what_a_module_of_wasmtime_is_not_granted_is_refused")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_a_module_of_wasmedge_is_not_granted_is_refused() -> Result<()> {
    refused("wasmedge", "what_a_module_of_wasmedge_is_not_granted_is_refused")
}

impl Drop for Modules {
    /// Modules go on without their runner.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.starter.log());
        }
        self.starter.runner = None;
        let files = fs::read_dir(self.file("run-runner")).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in files.filter(|file| file.extension().is_some_and(|end| end == "process")) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if let Some(pid) = text.split(' ').next().and_then(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
