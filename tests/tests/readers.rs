//! Readers of the API do not wait for operations that change something, and are told what was changed.

use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, configs, eventually, unix_http};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take for an answer that needs no work, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A reload reads its file and does not finish; reads are answered meanwhile.
#[test]
fn reads_wait_for_no_change() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let web = device.attach("web", "internal")?;
    let socket = device.file("run/api.sock");
    // The policy probe is loaded with the first question.
    let verdict = "/policy/verdict?from=web&to=world&proto=tcp&port=80";
    unix_http::ask(&socket, "GET", verdict, "")?;
    // A FIFO to which nobody has written yet.
    let config = std::fs::read_to_string(device.config())?;
    std::fs::remove_file(device.config())?;
    nix::unistd::mkfifo(&device.config(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    let reload = Process::start(device.command().arg("reload"))?;
    // Opening the FIFO without blocking succeeds once the daemon has opened it; the daemon then waits for data.
    let mut writer = eventually(SOON, || {
        let mut file = File::options();
        Ok(file.write(true).custom_flags(nix::libc::O_NONBLOCK).open(device.config())?)
    })?;
    let late = Process::start(device.command().args(["detach", "web"]))?;
    for path in [
        "/status",
        "/containers",
        "/containers/web",
        "/pools",
        "/leases",
        "/ports",
        "/flows",
        "/policies",
        verdict,
        "/health",
        "/metrics",
    ] {
        let begun = Instant::now();
        let answer = unix_http::ask(&socket, "GET", path, "")?;
        ensure!(begun.elapsed() < AT_ONCE, "{path} took {:?}", begun.elapsed());
        if path == "/containers/web" {
            let view: Value = serde_json::from_str(&answer)?;
            // The operations that wait for the reload have not been done.
            ensure!(view["state"] == "attached" && view["ipv4_address"] == web.v4.to_string(), "{view}");
        }
    }
    writer.write_all(config.as_bytes())?;
    drop(writer);
    reload.finish(SOON)?;
    late.finish(SOON)?;
    ensure!(device.json(&["containers"])? == json!([]), "still there");
    // A usual file for the next start.
    std::fs::remove_file(device.config())?;
    std::fs::write(device.config(), &config)?;
    device.stop(Signal::SIGTERM)
}

/// A running `pv-net monitor`.
struct Monitor {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    fn of(device: &Device) -> Result<Self> {
        let mut child = device.command().args(["--json", "monitor"]).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Self { child, lines })
    }

    /// The next changes, each with the name of its container; at most `most`.
    fn changes(&mut self, most: usize) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        while all.len() < most {
            let event: Value = serde_json::from_str(&self.lines.next().context("no more events")??)?;
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            if !event["event"].is_null() {
                all.push((word("event"), word("container") + &word("text")));
            }
        }
        Ok(all)
    }
}

#[test]
fn changes_are_events() -> Result<()> {
    let mut device = Device::started(&configs::two_pools())?;
    let mut monitor = Monitor::of(&device)?;
    // The monitor may not have subscribed yet, so the reload is repeated.
    let first = std::thread::scope(|scope| {
        let heard = scope.spawn(|| monitor.changes(1));
        while !heard.is_finished() {
            device.cli(&["reload"]).ok()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })?;
    ensure!(first == [("reloaded".to_owned(), String::new())], "{first:?}");
    let web = device.attach("web", "internal")?;
    drop(web);
    device.cli(&["detach", "web"]).ok()?;
    device.stop(Signal::SIGTERM)?;
    // Listeners do not delay the daemon's end, and are told about it.
    let mut rest = Vec::new();
    while let Ok(mut change) = monitor.changes(1) {
        rest.append(&mut change);
    }
    // The first reloads, and conditions from the first look at the device, are events too.
    rest.retain(|(event, _)| event == "attached" || event == "detached");
    let expected = ["attached", "detached"].map(|event| (event.to_owned(), "web".to_owned()));
    ensure!(rest == expected, "{rest:?}");
    eventually(SOON, || {
        ensure!(monitor.child.try_wait()?.is_some(), "the monitor goes on");
        Ok(())
    })
}
