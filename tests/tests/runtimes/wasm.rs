//! The story of the other runtimes for modules of WebAssembly, and their starts.

use crate::modules::{Modules, both};
use crate::start::lives;
use crate::story::{COLUMNS, PAGE, README, published, row};
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    has_no_programs(&modules)?;
    let users = [is_confined(&modules, "web")?, is_confined(&modules, "db")?];
    ensure!(users[0] != users[1], "both are user {}", users[0]);
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

/// There is nothing to execute beside the module, whose end can be waited for.
fn has_no_programs(modules: &Modules) -> Result<()> {
    let refused = modules.starter.lab.device.cli(&["containers", "exec", "web", "--", "true"]);
    ensure!(refused.code == Some(2) && refused.stderr.contains("no programs beside its module"), "{refused:?}");
    let late = modules.starter.lab.device.cli(&["containers", "wait", "web", "--timeout", "1"]);
    ensure!(late.code == Some(124) && late.stderr.contains("goes on"), "{late:?}");
    Ok(())
}

/// The runtime's process has nothing of the device: neither its network, its rights, its services nor its names. Returns its
/// user.
fn is_confined(modules: &Modules, name: &str) -> Result<u32> {
    let (_, pid) = modules.starter.runs(name)?;
    let proc = PathBuf::from(format!("/proc/{}", pid.context("no process")?));
    let own = |path: &Path| anyhow::Ok(fs::metadata(path)?.ino());
    let device = modules.starter.lab.device.ns.path();
    ensure!(own(&proc.join("ns/net"))? != own(&device)?, "it is in the device's network");
    ensure!(own(&proc.join("ns/ipc"))? != own(Path::new("/proc/self/ns/ipc"))?, "it has the device's IPC");
    let root = proc.join("root");
    let seen: Vec<_> = fs::read_dir(root.join("run"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(seen == ["etc"], "it sees {seen:?} in /run");
    let text = |path: PathBuf| fs::read_to_string(&path).with_context(|| path.display().to_string());
    let resolv_conf = modules.file(&format!("run/resolv/{name}.conf"));
    ensure!(text(root.join("etc/resolv.conf"))? == text(resolv_conf)?, "its resolv.conf is another one");
    ensure!(text(root.join("etc/hosts"))?.is_empty(), "it has names of the device");
    ensure!(text(root.join("etc/nsswitch.conf"))?.contains("hosts: files dns\n"), "it asks others for names");
    ensure!(fs::symlink_metadata(root.join("etc/passwd"))?.is_symlink(), "the device's other files are missing");
    // What is mounted for it is seen nowhere else, and what the device unmounts is gone for it too.
    let mounts = text(proc.join("mountinfo"))?;
    ensure!(mounts.contains(" master:") && !mounts.contains(" shared:"), "{mounts}");
    ensure!(!text(proc.join("environ"))?.contains("PV_NET"), "it has variables of the runner");
    let status = fs::read_to_string(proc.join("status"))?;
    let field =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    let ids = [field("Uid:"), field("Gid:")];
    let user: u32 = ids[0].split_whitespace().next().unwrap_or_default().parse().with_context(|| status.clone())?;
    ensure!((0x7000_0000..0x8000_0000).contains(&user), "{status}");
    ensure!(ids.iter().all(|ids| ids.split_whitespace().all(|id| id == user.to_string())), "{status}");
    ensure!(field("Umask:") == "0022", "others may write to its files: {status}");
    ensure!(field("Groups:").is_empty() && field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(field(set).trim_matches('0').is_empty(), "{set} {}", field(set));
    }
    // Its program begins as a shell, which has told what it was given, and has itself open.
    let log = modules.starter.log();
    let open: Vec<&str> = log.lines().filter_map(|line| Some(line.strip_prefix('l')?.split_once(" -> ")?.1)).collect();
    let own = [modules.file("runner.log"), modules.file(modules.starter.kind)].map(|path| path.display().to_string());
    let is_known = |file: &&str| *file == "/dev/null" || own.iter().any(|own| own == file);
    ensure!(open.len() >= 3 && open.iter().all(is_known), "it was given {open:?}");
    if Path::new("/proc/keys").exists() {
        let is_own = |line: &str| line.contains(&user.to_string()) && line.contains(" _ses: empty");
        ensure!(log.lines().any(is_own), "it has no keyring of its own: {log}");
    }
    Ok(user)
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

/// The process that waits for its container's attach, and its launcher.
fn waiting(modules: &Modules, name: &str) -> Result<[Pid; 2]> {
    let own = modules.file("run-runner").join(format!("{name}.process")).display().to_string();
    for process in fs::read_dir("/proc")?.flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        if !(words.contains(&b"--waiting".as_slice()) && words.contains(&own.as_bytes())) {
            continue;
        }
        let status = fs::read_to_string(process.path().join("status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
        let pid = process.file_name().to_string_lossy().parse()?;
        return Ok([Pid::from_raw(pid), Pid::from_raw(parent.trim().parse()?)]);
    }
    anyhow::bail!("nobody waits")
}

/// While a daemon does not answer, a module waits. It is never executed when its launcher is killed; when the runner is, it is
/// once it is attached, and the next runner finds it.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_module_is_executed_when_it_is_attached_and_not_before() -> Result<()> {
    let test = "a_module_is_executed_when_it_is_attached_and_not_before";
    let Some(mut modules) = Modules::new("wasmedge", test)? else { return Ok(()) };
    modules.declare("web", "internal", &["80"], json!({"listen": ["tcp/80"]}), &["8080:80"])?;
    let is_executed = |modules: &Modules| modules.starter.log().contains("agent: ready");
    let socket = modules.file("run/runner.sock");
    let begun = |modules: &Modules| {
        modules.starter.lab.device.daemon()?.signal(Signal::SIGSTOP)?;
        let mut stream = UnixStream::connect(&socket)?;
        stream.write_all(b"{\"do\": \"start\", \"name\": \"web\"}\n")?;
        let written = modules.file("run-runner/web.process");
        let all = eventually(SOON, || {
            ensure!(written.exists(), "it is not written down");
            waiting(modules, "web")
        })?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(!is_executed(modules), "it is executed before it is attached");
        anyhow::Ok((stream, all))
    };
    let (stream, [waits, launcher]) = begun(&modules)?;
    kill(launcher, Signal::SIGKILL)?;
    eventually(SOON, || {
        ensure!(!PathBuf::from(format!("/proc/{waits}")).exists(), "it goes on without its launcher");
        Ok(())
    })?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.contains("failed"), "{answer}");
    modules.starter.lab.device.daemon()?.signal(Signal::SIGCONT)?;
    modules.starter.becomes("web", "failed")?;
    modules.starter.lab.no_links()?;
    ensure!(!is_executed(&modules) && modules.starter.kept()?.is_empty(), "{}", modules.starter.kept()?);
    let (_stream, [waits, _]) = begun(&modules)?;
    modules.starter.runner = None;
    modules.starter.lab.device.daemon()?.signal(Signal::SIGCONT)?;
    eventually(SOON, || published(&modules.starter.lab))?;
    modules.starter.start_runner()?;
    let pid = modules.starter.becomes("web", "running")?;
    ensure!(pid == u64::try_from(waits.as_raw()).ok(), "another process: {pid:?}");
    modules.starter.act("stop", "web")?;
    modules.starter.lab.no_links()?;
    ensure!(modules.starter.kept()?.is_empty(), "{}", modules.starter.kept()?);
    Ok(())
}
