//! Modules of WebAssembly that pv-net starts by wasmtime and WasmEdge.
//!
//! The module is `tests/wasm/agent.c`: it does with sockets what it is asked for.

use crate::starter::Starter;
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where set-up has unpacked the runtimes.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/unpacked");
/// The module for each of them, and what calls wasmtime's library.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/wasm");

/// Containers of one of the runtimes.
pub struct Modules {
    pub starter: Starter,
}

/// Whether anybody may enter a directory.
fn is_public(dir: &Path) -> bool {
    let may_enter = |dir: &Path| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    dir.canonicalize().is_ok_and(|dir| dir.ancestors().all(may_enter))
}

impl Modules {
    /// A device with a runner; nothing where set-up could not unpack the runtime.
    pub fn new(cli: &'static str, test: &str) -> Result<Option<Self>> {
        let dir = Path::new(UNPACKED).join(cli);
        if !dir.exists() {
            harness::skip(test, &format!("{cli} is not unpacked: cargo xtask setup does that with apt-get"));
            return Ok(None);
        }
        let starter = Starter::new(cli)?;
        let own = starter.lab.device.file("");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
        // A checkout in a directory that is its owner's alone cannot be read by a module's user.
        let (dir, here) = if is_public(&dir) && is_public(Path::new(HERE)) {
            (dir, PathBuf::from(HERE))
        } else {
            let copy = own.join("unpacked");
            output(Command::new("cp").arg("-r").arg(&dir).arg(&copy))?;
            fs::copy(Path::new(HERE).join("wasmtime_run.py"), own.join("wasmtime_run.py"))?;
            (copy, own.clone())
        };
        let (dir, here) = (dir.display(), here.display());
        let command = match cli {
            "wasmtime" => format!("PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={dir} exec python3 {here}/wasmtime_run.py"),
            _ => format!("exec {dir}/lib/ld-linux-x86-64.so.2 --library-path {dir}/lib {dir}/bin/wasmedge"),
        };
        let program = own.join(cli);
        // What it has inherited is in the log.
        let tells = "ls -l /proc/$$/fd; if [ -e /proc/keys ]; then cat /proc/keys; fi";
        fs::write(&program, format!("#!/bin/sh\n{tells}\n{command} \"$@\"\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let module = if cli == "wasmtime" { "agent-wasip2.wasm" } else { "agent-wasmedge.wasm" };
        fs::copy(Path::new(HERE).join(module), own.join("agent.wasm"))?;
        Ok(Some(Self { starter }))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.starter.lab.device.file(name)
    }

    /// Declares a container whose agent listens on these ports.
    pub fn declare(&self, name: &str, pool: &str, ports: &[&str], sockets: Value, published: &[&str]) -> Result<()> {
        let network = json!({"pool": pool, "ports": published, "sockets": sockets});
        let runtime = json!({
            "cli": self.starter.kind, "program": self.file(self.starter.kind), "module": self.file("agent.wasm"),
            "args": ports, "env": {"GREETING": "good morning"},
        });
        let run = json!({"name": name, "type": "wasm", "runtime": runtime, "stop_timeout": 60, "network": network});
        self.starter.write(name, &run)?;
        self.starter.lab.device.cli(&["reload"]).ok()?;
        let resolv_conf = self.file(&format!("run/resolv/{name}.conf"));
        eventually(SOON, || {
            ensure!(resolv_conf.exists(), "{} is not there", resolv_conf.display());
            Ok(())
        })
    }

    /// Starts a container, and waits until its agent listens on its first port.
    pub fn start(&self, name: &str, port: u16) -> Result<[IpAddr; 2]> {
        self.starter.act("start", name)?;
        let [v4, v6] = self.starter.lab.attached(name)?;
        let addresses = [v4.parse()?, v6.parse()?];
        eventually(SOON, || self.asked(SocketAddr::new(addresses[0], port), "env GREETING").map(drop))
            .with_context(|| self.starter.log())?;
        Ok(addresses)
    }

    /// What an agent answers; the question comes from the device.
    pub fn asked(&self, at: SocketAddr, line: &str) -> Result<String> {
        let said = self.starter.lab.device.ns.run(|| asked(at, line));
        said.with_context(|| format!("{at}: {line}"))
    }

    /// The agent of `one`, at its port 80, asks for a page.
    pub fn reaches(&self, one: IpAddr, to: IpAddr, port: u16) -> Result<String> {
        self.asked(SocketAddr::new(one, 80), &format!("ask {to} {port}"))
    }

    /// What decides about a flow.
    pub fn decides(&self, from: &str, to: &str, traffic: &str) -> Result<(String, String)> {
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
pub fn both(one: [IpAddr; 2], other: [IpAddr; 2]) -> [(IpAddr, IpAddr); 2] {
    [(one[0], other[0]), (one[1], other[1])]
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
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
