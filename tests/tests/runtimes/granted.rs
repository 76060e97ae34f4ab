//! What a module's `run.json` does not grant is refused, and the reason says by whom.

use crate::modules::{Modules, both};
use crate::story::PAGE;
use anyhow::{Context, Result, ensure};
use harness::{Namespace, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// The host behind the uplink.
const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8:1::9"];

/// Servers outside, for each family and transport, that answer everything.
fn serves(outside: &Namespace, port: u16) -> Result<()> {
    let bound = outside.run(|| {
        let each = OUTSIDE.map(|address| Ok((TcpListener::bind((address, port))?, UdpSocket::bind((address, port))?)));
        each.into_iter().collect::<std::io::Result<Vec<_>>>().context("bind")
    })?;
    for (listener, socket) in bound {
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 64]).and_then(|_| stream.write_all(b"from outside\n"));
            }
        });
        std::thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(b"from outside\n", from);
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
        {"to": {"cidr": "192.0.2.9/32"}, "ports": ["tcp/7000", "udp/7000"]},
        {"to": {"cidr": "2001:db8:1::9"}, "ports": ["tcp/7000", "udp/7000"]},
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
        for word in ["ask", "send"] {
            let said = |port: u16| modules.asked(at(one, 80), &format!("{word} {to} {port}"));
            ensure!(said(7000)?.contains("from outside"), "{one}: {word} {to} 7000: {}", said(7000)?);
            let refused = said(7001)?;
            ensure!(refused.starts_with("no"), "{one}: {word} {to} 7001: {refused}");
        }
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
    not_attached(&modules)?;
    without_state(modules, db, web)
}

/// A daemon that has lost its state learns the containers from their links, and what they may from their declarations: those that
/// it finds, or those that are right later.
fn without_state(mut modules: Modules, db: [IpAddr; 2], web: [IpAddr; 2]) -> Result<()> {
    let file = modules.file("containers/db/run.json");
    let right = fs::read_to_string(&file)?;
    for found in [right.as_str(), "{"] {
        modules.starter.lab.device.stop(Signal::SIGKILL)?;
        fs::remove_file(modules.file("state/state.json"))?;
        fs::write(&file, found)?;
        modules.starter.lab.device.start()?;
        if found != right {
            fs::write(&file, &right)?;
            modules.starter.lab.device.cli(&["reload"]).ok()?;
        }
        for (one, to) in both(db, web) {
            ensure!(modules.reaches(one, to, 80)?.contains(PAGE), "{one} to {to}, port 80");
            let said = modules.reaches(one, to, 81)?;
            ensure!(said.starts_with("not connected"), "{one} to {to}, port 81: {said}");
        }
    }
    Ok(())
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
    run["network"]["pool"] = json!("internal");
    let refused = |run: &Value, why: &str| {
        fs::write(&file, run.to_string())?;
        modules.starter.lab.device.cli(&["reload"]).ok()?;
        let refused = modules.starter.lab.device.cli(&["containers", "start", "lost"]);
        ensure!(refused.code == Some(2) && refused.stderr.contains(why), "{refused:?}");
        anyhow::Ok(())
    };
    // The user of another container, by its number.
    run["runtime"]["user"] = json!(0x74b5_e57f);
    refused(&run, "container web has the same user")?;
    // A program that is not there is said so.
    run["runtime"]["user"] = json!(12345);
    run["runtime"]["program"] = json!("/nowhere/wasm");
    refused(&run, "/nowhere/wasm: No such file")?;
    // One that runs goes on when it could not be started again.
    let (module, away) = (modules.file("agent.wasm"), modules.file("away.wasm"));
    let runs = modules.starter.runs("web")?;
    fs::rename(&module, &away)?;
    let again = modules.starter.lab.device.cli(&["containers", "restart", "web"]);
    fs::rename(&away, &module)?;
    ensure!(again.code == Some(2) && again.stderr.contains("agent.wasm: No such file"), "{again:?}");
    ensure!(modules.starter.runs("web")? == runs, "it was ended: {:?}", modules.starter.runs("web")?);
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
