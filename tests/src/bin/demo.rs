//! `cargo xtask demo`: shows pv-net on a device that is a network namespace. Every step is checked; when one fails, the
//! demo ends with exit status 1.

use anyhow::{Context, Result, bail, ensure};
use harness::{Device, Namespace, Process, Snapshot, eventually};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    let start = Instant::now();
    match demo() {
        Ok(()) => {
            println!("\nDone in {:.0?}. Nothing is left behind.", start.elapsed());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    // Ctrl-C ends the current step; everything is then removed as after a failure.
    let action = SigAction::new(SigHandler::Handler(interrupted), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.context("signals")?;
    }
    let mut device = device()?;
    let before = Snapshot::of(&device)?;

    title("The device: a network namespace, with examples/device.json")?;
    device.start()?;
    shown(&device, &["pools"])?;

    title("Three containers in two pools, each a network namespace of its own")?;
    let [web, db, shell] = ["web", "db", "shell"].map(|name| Container::attached(&device, name));
    let (web, db, shell) = (web?, db?, shell?);
    shown(&device, &["containers"])?;
    let status = shown(&device, &["status"])?;
    ensure!(status.contains("containers  3") && status.contains("pools       2"), "the status is another");

    title("web and db are in one pool: their packets go from one into the other in eBPF")?;
    pings(&web, &db)?;
    streams(&device, &web, &db)?;

    title("shell is in another pool, and pools are closed to each other: it answers at once, with an error")?;
    refused(&device, &web, &shell)?;

    title("The daemon is killed in the middle of a transfer: nobody notices")?;
    killed(&mut device, &web, &db)?;

    title("pv-net down: the device is as it was")?;
    shown(&device, &["down"])?;
    eventually(PATIENCE, || {
        let changed = before.diff(&Snapshot::of(&device)?);
        ensure!(changed.is_empty(), "`pv-net down` left behind:\n{changed}");
        Ok(())
    })?;
    println!("links, addresses, routes, sysctls, programs and pins are those from before the start");
    Ok(())
}

/// Prints a numbered headline; fails when the user has asked for the end.
fn title(text: &str) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    println!("\n== {}. {text}\n", NUMBER.fetch_add(1, Ordering::Relaxed));
    Ok(())
}

/// A device with the files of `examples`; its daemon does not run yet.
fn device() -> Result<Device> {
    let config = fs::read_to_string(Path::new(EXAMPLES).join("device.json")).context("examples/device.json")?;
    let device = Device::new(&serde_json::from_str::<Value>(&config).context("examples/device.json")?)?;
    for entry in fs::read_dir(Path::new(EXAMPLES).join("containers")).context("examples/containers")? {
        let from = entry?.path();
        let to = device.file("containers").join(from.file_name().context("a directory")?);
        fs::create_dir(&to)?;
        fs::copy(from.join("run.json"), to.join("run.json")).with_context(|| from.display().to_string())?;
    }
    Ok(device)
}

/// Runs a command and prints it with its output; fails when the command does.
fn shown(device: &Device, words: &[&str]) -> Result<String> {
    println!("$ pv-net {}", words.join(" "));
    let said = device.cli(words).ok()?;
    println!("{}\n", said.trim_end());
    Ok(said)
}

struct Container {
    name: &'static str,
    ns: Namespace,
    addresses: [IpAddr; 2],
}

impl Container {
    fn attached(device: &Device, name: &'static str) -> Result<Self> {
        let ns = Namespace::new(name)?;
        shown(device, &["attach", name, "--netns", &ns.path().display().to_string()])?;
        let all = device.json(&["containers"])?;
        let view = all.as_array().into_iter().flatten().find(|c| c["name"] == name).context("the container")?;
        let address = |key: &str| view[key].as_str().context("an address")?.parse().context("an address");
        Ok(Self { name, ns, addresses: [address("ipv4_address")?, address("ipv6_address")?] })
    }
}

fn pings(from: &Container, to: &Container) -> Result<()> {
    for address in to.addresses {
        from.ns.ping(address, 20)?;
        println!("{} pings {} at {address}: 20 of 20 answered", from.name, to.name);
    }
    Ok(())
}

/// Sends a TCP stream over each family, and prints which path its packets took.
fn streams(device: &Device, from: &Container, to: &Container) -> Result<()> {
    let server = Process::start(to.ns.command("iperf3").arg("-s").stdout(Stdio::null()).stderr(Stdio::null()))?;
    for address in to.addresses {
        let before = device.counters()?;
        // The server may not listen yet. With `-J` the exit status of iperf3 does not tell.
        let rate = eventually(PATIENCE, || {
            let said = from.ns.sh(&format!("iperf3 -J -t 2 -c {address}"))?;
            let said: Value = serde_json::from_str(&said).context("iperf3")?;
            said["end"]["sum_received"]["bits_per_second"].as_f64().with_context(|| said["error"].to_string())
        })?;
        let after = device.counters()?;
        println!("\n{} to {} at {address} by iperf3: {:.2} Gbit/s", from.name, to.name, rate / 1e9);
        for path in ["fast-path", "slow-path", "to-stack"] {
            println!("  {path:<10} {:>8} → {:>8} packets", before[path], after[path]);
        }
        let (fast, slow) = (after["fast-path"] - before["fast-path"], after["slow-path"] - before["slow-path"]);
        ensure!(
            rate > 1e6 && fast > 100 && fast > 20 * slow,
            "{fast} packets on the fast path, {slow} on the slow one"
        );
    }
    drop(server);
    Ok(())
}

/// Opens a connection that policy refuses, and shows the event about it.
fn refused(device: &Device, from: &Container, to: &Container) -> Result<()> {
    let mut command = device.command();
    let mut monitor = command.arg("monitor").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(monitor.stdout.take().context("its output")?).lines();
    let (send, events) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
    let outcome = refusals(from, to, &events);
    monitor.kill()?;
    monitor.wait()?;
    println!("$ pv-net monitor\n{}", outcome?);
    let drops = device.counters()?["pool-isolated"];
    ensure!(drops >= 2, "{drops} drops are counted");
    println!("\n{drops} packets are counted as pool-isolated");
    Ok(())
}

fn refusals(from: &Container, to: &Container, events: &mpsc::Receiver<String>) -> Result<String> {
    for address in to.addresses {
        let start = Instant::now();
        let tried =
            from.ns.run(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(address, 22), PATIENCE).map(drop)))?;
        let why = tried.err().context("a connection into a closed pool was made")?;
        ensure!(why.kind() == std::io::ErrorKind::ConnectionRefused, "{address}: {why}");
        println!("{} to {} at {address}, TCP port 22: {why}, after {:.1?}", from.name, to.name, start.elapsed());
    }
    println!();
    // The monitor may have started too late for these: try again until it has seen one.
    let [address, _] = to.addresses;
    eventually(PATIENCE, || {
        let _ = from.ns.run(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(address, 22), PATIENCE).is_ok()))?;
        let line = events.recv_timeout(Duration::from_millis(200)).context("no event of the refused connection")?;
        ensure!(line.contains(from.name) && line.contains("pool-isolated"), "the event is another: {line}");
        Ok(line)
    })
}

/// A TCP connection with endless data, and how many bytes have arrived.
struct Transfer {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Transfer {
    fn start(from: &Container, to: &Container) -> Result<Self> {
        let [_, address] = to.addresses;
        let listener = to.ns.run(|| Ok(TcpListener::bind((address, 5000))?))?;
        let mut sender = from.ns.run(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(address, 5000), PATIENCE)?))?;
        let (mut receiver, _) = listener.accept()?;
        let (arrived, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (arrived.clone(), stop.clone());
        std::thread::spawn(move || {
            let block = [0x5a; 16_384];
            while !end.load(Ordering::Relaxed) && sender.write_all(&block).is_ok() {
                // Slow enough to leave the machine usable.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::spawn(move || {
            let mut block = [0; 65_536];
            while let Ok(n @ 1..) = receiver.read(&mut block) {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { arrived, stop })
    }

    fn bytes(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Waits until another million bytes have arrived since `before`, and gives the new count.
    fn goes_on(&self, before: u64) -> Result<u64> {
        eventually(PATIENCE, || match self.bytes() {
            now if now > before + 1_000_000 => Ok(now),
            now => bail!("the transfer stands still at {now} bytes"),
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn killed(device: &mut Device, from: &Container, to: &Container) -> Result<()> {
    let transfer = Transfer::start(from, to)?;
    let running = transfer.goes_on(0)?;
    println!("{} sends to {}: {running} bytes have arrived", from.name, to.name);
    println!("$ kill -KILL {}", device.daemon()?.pid());
    device.stop(Signal::SIGKILL)?;
    let at_kill = transfer.bytes();
    println!("$ pv-net status");
    let reply = device.cli(&["status"]);
    ensure!(reply.code == Some(3), "without a daemon: {reply:?}");
    println!("{}", reply.stderr.trim_end());
    let without = transfer.goes_on(at_kill)?;
    println!("\nwithout a daemon, on the same connection: {at_kill} → {without} bytes");
    pings(from, to)?;

    println!("\nThe daemon starts again and takes over what it finds:\n");
    device.start()?;
    let status = device.json(&["status"])?;
    let adopted = &status["adopted"];
    let all = adopted["maps"] == true && adopted["links"] == 3 && adopted["containers"] == 3;
    ensure!(all, "only this was adopted: {adopted}");
    let said = shown(device, &["status"])?;
    ensure!(said.contains("adopted     3 containers, 3 links, maps: yes"), "the status does not say it");
    shown(device, &["flows"])?;
    let again = transfer.goes_on(without)?;
    println!("with the new daemon, still on the same connection: {without} → {again} bytes");
    Ok(())
}
