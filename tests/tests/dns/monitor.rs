//! `pv-net monitor --dns`.

use super::upstream::outside;
use super::*;
use std::os::unix::net::UnixStream;

/// What the command prints to a file.
struct Monitor {
    file: std::path::PathBuf,
    _process: Process,
}

impl Monitor {
    fn start(device: &Device, words: &[&str]) -> Result<Self> {
        let file = device.file(&format!("monitor{}", words.len()));
        let mut command = device.command();
        command.args(["monitor", "--dns"]).args(words).stdout(fs::File::create(&file)?);
        Ok(Self { file, _process: Process::start(&mut command)? })
    }

    /// Repeats `ask` until a line is right, since it is heard only when the command listens.
    fn says(&self, ask: impl Fn() -> Result<()>, is_right: impl Fn(&str) -> bool) -> Result<String> {
        eventually(SOON, || {
            ask()?;
            let text = fs::read_to_string(&self.file)?;
            let line = text.lines().find(|line| is_right(line)).map(str::to_owned);
            line.with_context(|| format!("no such line in: {text}"))
        })
    }
}

#[test]
fn questions_are_shown_with_who_asked_and_what_was_answered() -> Result<()> {
    let (device, _host, _server, web) = outside(&masqueraded())?;
    let db = device.attach("db", "internal")?;
    let (ns, own, asked) = (&web.ns, own(&web), own(&db));
    let (text, lines) = (Monitor::start(&device, &[])?, Monitor::start(&device, &["--json"])?);
    for (family, kind) in ["A", "AAAA"].into_iter().enumerate() {
        let gateway = GATEWAYS[family];
        let ask = |words: &str| dig(ns, gateway, words).map(drop);
        let local = |part: String| move |line: &str| line.contains(&part) && line.contains("(this device, ");
        text.says(
            || ask(&format!("db.pv.local {kind}")),
            local(format!(" web {kind} db.pv.local → {}", asked[family])),
        )?;
        text.says(|| ask("nobody.pv.local"), local(" web A nobody.pv.local → NXDOMAIN".to_owned()))?;
        let name = format!("n{family}.example.net");
        let far = format!(" web A {name} → 198.51.100.7 (192.0.2.9:53, ");
        text.says(|| ask(&name), |line| line.contains(&far))?;
        let kept = format!(" web A {name} → 198.51.100.7 (192.0.2.9:53, some time ago, ");
        text.says(|| ask(&name), |line| line.contains(&kept))?;
        let is_right = |line: &str| {
            let view: Value = serde_json::from_str(line).unwrap_or_default();
            view["container"] == "web"
                && view["pool"] == "internal"
                && view["client"] == own[family]
                && view["transport"] == "tcp"
                && view["name"] == "DB.pv.local"
                && view["type"] == kind
                && view["status"] == "NOERROR"
                && view["source"] == "own"
                && view["records"][0]["data"] == asked[family]
                && view["took_secs"].as_f64().is_some_and(|took| took > 0.0)
                && view["time"].as_f64().is_some_and(|time| time > 1.0)
        };
        lines.says(|| ask(&format!("DB.pv.local {kind} +tcp")), is_right)?;
    }
    Ok(())
}

/// Whoever does not read misses questions, is told how many, and holds up nobody.
#[test]
fn who_watches_too_slowly_misses_questions() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let mut slow = UnixStream::connect(lab.device.file("run").join("api.sock"))?;
    slow.write_all(b"GET /dns/queries HTTP/1.1\r\nhost: pv-net\r\n\r\n")?;
    let socket = lab.web.ns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.connect("10.0.3.1:53")?;
    socket.set_read_timeout(Some(LONG))?;
    let (asked, mut answer) = (question(7, "db.pv.local"), [0; 512]);
    let missed = || -> Result<u64> {
        let text = metrics(&lab.device)?;
        let line = text.lines().find_map(|line| line.strip_prefix("pv_net_dns_monitor_missed_total "));
        Ok(line.context("a counter")?.parse()?)
    };
    // The kernel's buffers take some of them.
    for _ in 0..20 {
        for _ in 0..1000 {
            socket.send(&asked)?;
            socket.recv(&mut answer)?;
        }
    }
    slow.set_read_timeout(Some(LONG))?;
    let (mut text, mut buffer) = (String::new(), vec![0; 1 << 16]);
    while !text.contains("{\"missed\":") {
        let n = slow.read(&mut buffer)?;
        ensure!(n > 0, "the daemon hung up: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    ensure!(missed()? > 0);
    drop(slow);
    // The listener is gone, and nothing more is missed.
    let before = eventually(SOON, || {
        let before = missed()?;
        socket.send(&asked)?;
        socket.recv(&mut answer.clone())?;
        std::thread::sleep(Duration::from_millis(50));
        ensure!(missed()? == before, "it still listens");
        Ok(before)
    })?;
    for _ in 0..5000 {
        socket.send(&asked)?;
        socket.recv(&mut answer)?;
    }
    ensure!(missed()? == before, "{} and then {}", before, missed()?);
    Ok(())
}
