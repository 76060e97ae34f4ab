//! Commands inside containers, waiting for their end, and what is listed of them.

use crate::lab::Runtime;
use crate::lxc::{self, Lxc};
use crate::oci::Bundles;
use crate::starter::{SERVES, Starter};
use anyhow::{Context, Result, ensure};
use harness::{Namespace, Process, SOON, eventually, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a command has printed, and its exit status.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(done: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: done.status.code(), stdout: text(&done.stdout), stderr: text(&done.stderr) }
    }
}

fn direct(starter: &Starter, words: &[&str]) -> Result<Said> {
    Ok(starter.direct(words)?.stdin(Stdio::null()).output()?.into())
}

fn exec(starter: &Starter, more: &[&str], command: &[&str]) -> Result<Said> {
    let words: Vec<&str> =
        ["containers", "exec", "web"].iter().chain(more).chain(&["--"]).chain(command).copied().collect();
    direct(starter, &words)
}

/// A number of seconds that no other process sleeps for.
fn marked() -> String {
    static MARKS: AtomicU32 = AtomicU32::new(100);
    format!("{}{}", std::process::id(), MARKS.fetch_add(1, Ordering::Relaxed))
}

/// The processes of this machine that sleep for so long.
fn sleepers(mark: &str) -> Vec<i32> {
    let of = |dir: fs::DirEntry| {
        let pid = dir.file_name().to_str()?.parse().ok()?;
        let line = fs::read(dir.path().join("cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        (words.first()?.ends_with(b"sleep") && words.contains(&mark.as_bytes())).then_some(pid)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
}

fn sleeps(mark: &str) -> Result<()> {
    eventually(SOON, || {
        ensure!(!sleepers(mark).is_empty(), "nobody sleeps for {mark}");
        Ok(())
    })
}

/// What was killed may be there for a moment.
fn nobody_sleeps(mark: &str) -> Result<()> {
    eventually(Duration::from_secs(2), || {
        ensure!(sleepers(mark).is_empty(), "{:?} sleep for {mark}", sleepers(mark));
        Ok(())
    })
}

/// Commands with their output, status and time limit.
fn executes(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    starter.declare("web", SERVES, json!({}))?;
    let early = exec(&starter, &[], &["true"])?;
    ensure!(early.code == Some(1) && early.stderr.contains("not running"), "{}", early.stderr);
    starter.act("start", "web")?;
    let own = starter.identity("web")?;
    let said = exec(&starter, &[], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((said.code, &*said.stdout) == (Some(7), "out\n"), "{:?} {}", said.code, said.stdout);
    ensure!(said.stderr.contains("err\n"), "{}", said.stderr);
    let inside = exec(&starter, &[], &["ip", "-o", "addr", "show", "eth0"])?;
    ensure!(own[..2].iter().all(|address| inside.stdout.contains(&**address)), "{}", inside.stdout);
    // No shell reads it, and no runtime takes it for flags.
    let said = exec(&starter, &[], &["printf", "%s|", "a  b; $HOME", "--tty", "--", "-"])?;
    ensure!(said.stdout == "a  b; $HOME|--tty|--|-|", "{}{}", said.stdout, said.stderr);
    let killed = exec(&starter, &[], &["sh", "-c", "kill -9 $$"])?;
    ensure!(killed.code == Some(137), "{:?}", killed.code);
    let missing = exec(&starter, &[], &["no-such-program"])?;
    ensure!(missing.code != Some(0) && missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    let much = exec(&starter, &[], &["/bin/busybox", "head", "-c", "3000000", "/dev/zero"])?;
    ensure!(much.code == Some(0) && much.stdout.len() == 3_000_000, "{:?}: {} bytes", much.code, much.stdout.len());
    is_killed_in_time(&starter)?;
    // Neither daemon nor runner has to run.
    starter.runner = None;
    starter.lab.device.stop(Signal::SIGKILL)?;
    let said = exec(&starter, &["--timeout", "20"], &["hostname"])?;
    ensure!((said.code, said.stdout.trim()) == (Some(0), "web"), "{}{}", said.stdout, said.stderr);
    let left = fs::read_dir(starter.lab.device.file("run-runner"))?.flatten().map(|file| file.file_name());
    let left: Vec<_> = left.filter(|name| name.display().to_string().contains("exec")).collect();
    ensure!(left.is_empty(), "{left:?} are left");
    starter.lab.device.start()?;
    starter.start_runner()?;
    starter.becomes("web", "running")?;
    Ok(())
}

/// At the time limit, or when the command itself is asked to end, nothing that it has started goes on in the container.
fn is_killed_in_time(starter: &Starter) -> Result<()> {
    let marks = [(); 4].map(|()| marked());
    let [one, two, three, four] = &marks;
    // The first one has lost its parent, and the third one is in a session of its own.
    let script =
        format!("(sleep {one} &); (sleep {two} & /bin/busybox setsid sleep {three} & wait) & exec sleep {four}");
    let command = ["sh", "-c", &script];
    let begun = Instant::now();
    let mut words = vec!["containers", "exec", "web", "--timeout", "3", "--"];
    words.extend(command);
    let late = starter.direct(&words)?.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    marks.iter().try_for_each(|mark| sleeps(mark))?;
    // A session has one terminal at most, so that of the caller is none of theirs.
    let own = nix::unistd::getsid(None)?;
    let is_apart = |pid: &i32| nix::unistd::getsid(Some(Pid::from_raw(*pid))).is_ok_and(|session| session != own);
    ensure!(sleepers(four).iter().all(is_apart), "it is in the session of its caller");
    let late = Said::from(late.wait_with_output()?);
    ensure!(late.code == Some(124) && late.stderr.contains("not done within 3 s"), "{:?}: {}", late.code, late.stderr);
    ensure!(begun.elapsed() < Duration::from_secs(20), "after {:?}", begun.elapsed());
    marks.iter().try_for_each(|mark| nobody_sleeps(mark))?;
    // Its signal comes to what runs inside.
    let mut words = vec!["containers", "exec", "web", "--"];
    words.extend(command);
    let asked = starter.direct(&words)?.stdin(Stdio::null()).spawn()?;
    marks.iter().try_for_each(|mark| sleeps(mark))?;
    kill(Pid::from_raw(asked.id().cast_signed()), Signal::SIGTERM)?;
    let asked = asked.wait_with_output()?;
    ensure!(asked.status.code() == Some(143), "{:?}", asked.status);
    marks.iter().try_for_each(|mark| nobody_sleeps(mark))?;
    // What a command leaves behind with its output goes on, as with podman. runc waits for it, up to the limit.
    let mark = marked();
    let left = exec(starter, &["--timeout", "2"], &["sh", "-c", &format!("echo said; sleep {mark} &")])?;
    ensure!(left.stdout == "said\n", "{}{}", left.stdout, left.stderr);
    if starter.kind == "runc" {
        ensure!(left.code == Some(124), "{:?}", left.code);
        nobody_sleeps(&mark)?;
    } else {
        ensure!(left.code == Some(0), "{:?}", left.code);
        sleeps(&mark)?;
        for pid in sleepers(&mark) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn commands_are_executed_in_containers_of_lxc() -> Result<()> {
    executes("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn commands_are_executed_in_containers_of_runc() -> Result<()> {
    executes("runc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn commands_are_executed_in_containers_of_crun() -> Result<()> {
    executes("crun")
}

/// A request to the runner, and its answer.
fn ask(starter: &Starter, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(starter.lab.device.file("run/runner.sock"))?;
    writeln!(stream, "{request}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| line)
}

/// The runner executes the check that `run.json` declares, and nothing that a request says.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_runner_executes_declared_health_checks_and_nothing_else() -> Result<()> {
    for kind in ["lxc", "runc", "crun"] {
        let mut starter = Starter::new(kind)?;
        let mark = marked();
        // It hangs once a file is there.
        let script = format!("[ -e /tmp/hang ] && sleep {mark}; echo all well; exit 3");
        let health = json!({"type": "exec", "command": ["sh", "-c", script], "timeout": 2});
        starter.declare("web", SERVES, json!({"health_check": health}))?;
        starter.act("start", "web")?;
        let check = json!({"do": "check", "name": "web"});
        let checked = ask(&starter, &check)?;
        let fields = ["exit_status", "is_late", "output"].map(|key| checked["checked"][key].clone());
        ensure!(fields == [json!(3), json!(false), json!("all well\n")], "{kind}: {checked}");
        exec(&starter, &[], &["sh", "-c", "echo > /tmp/hang"])?;
        let begun = Instant::now();
        let checked = ask(&starter, &check)?;
        ensure!(checked["checked"]["is_late"] == json!(true), "{kind}: {checked}");
        ensure!(begun.elapsed() >= Duration::from_secs(2), "{kind}: killed after {:?}", begun.elapsed());
        nobody_sleeps(&mark)?;
        let mark = marked();
        for wrong in [
            json!({"do": "exec", "name": "web", "command": ["sleep", mark]}),
            json!({"do": "check", "name": "web", "command": ["sleep", mark]}),
            json!({"do": "check", "name": "web", "health_check": {"type": "exec", "command": ["sleep", mark]}}),
        ] {
            let refused = ask(&starter, &wrong)?;
            ensure!(refused["failed"]["kind"] == json!("usage"), "{wrong}: {refused}");
        }
        ensure!(sleepers(&mark).is_empty(), "{kind}: a request was executed");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn no_command_is_executed_for_a_container_that_others_run() -> Result<()> {
    let starter = Starter::new("lxc")?;
    let _ns = Namespace::new("web")?;
    starter.write("web", &json!({"name": "web", "network": {"pool": "internal"}}))?;
    for words in [&["containers", "exec", "web", "--", "true"][..], &["containers", "wait", "web"]] {
        let refused = direct(&starter, words)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("only its network namespace"), "{}", refused.stderr);
        ensure!(refused.stderr.contains("help: "), "{}", refused.stderr);
    }
    starter.write("web", &json!({"name": "web", "type": "lxc", "network": {"pool": "internal"}}))?;
    for (words, part) in [
        (&["containers", "exec", "web", "--", "true"][..], "does not say how it is started"),
        (&["containers", "exec", "nobody", "--", "true"], "not declared"),
        (&["containers", "exec", "../web", "--", "true"], "../web"),
        (&["containers", "exec", "web"], "required"),
        (&["containers", "exec", "web", "--timeout", "0", "--", "true"], "--timeout"),
    ] {
        let refused = direct(&starter, words)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(part), "{words:?}: {}", refused.stderr);
    }
    Ok(())
}

/// A container is waited for, and listed with what its runtime says; one that is not declared is not.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_end_of_a_container_is_waited_for_and_listed() -> Result<()> {
    for kind in ["lxc", "runc", "crun"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("web", SERVES, json!({}))?;
        // Declared since the runner's start.
        starter.becomes("web", "stopped")?;
        starter.act("start", "web")?;
        let pid = starter.becomes("web", "running")?.context("no process")?;
        let view = starter.lab.view("web")?;
        ensure!(view["runtime"]["age_secs"].as_u64().is_some_and(|age| age < 60), "{kind}: {view}");
        let table = starter.lab.device.cli(&["containers"]).ok()?;
        ensure!(table.contains(&format!("running ({pid})")), "{kind}: {table}");
        let late = direct(&starter, &["containers", "wait", "web", "--timeout", "1"])?;
        ensure!(late.code == Some(124) && late.stderr.contains("goes on after 1 s"), "{kind}: {}", late.stderr);
        is_not_listed(&starter)?;
        let waits = |words: &[&str]| Process::start(starter.direct(words)?.stdout(Stdio::piped()));
        let waiter = waits(&["containers", "wait", "web"])?;
        let other = waits(&["--json", "containers", "wait", "web", "--timeout", "60"])?;
        // Both wait for the process itself, by a file that is open.
        for waiter in [&waiter, &other] {
            let dir = format!("/proc/{}/fdinfo", waiter.pid());
            let line = format!("Pid:\t{pid}\n");
            eventually(SOON, || {
                let mut open = fs::read_dir(&dir)?.flatten().filter_map(|fd| fs::read_to_string(fd.path()).ok());
                ensure!(open.any(|about| about.contains(&line)), "it does not wait");
                Ok(())
            })?;
        }
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        let said = waiter.finish(SOON)?;
        // Kernels before 6.15 do not say how.
        let by =
            if starter.becomes("web", "failed").is_ok() && starter.lab.view("web")?.to_string().contains("signal 9") {
                " by signal 9"
            } else {
                ""
            };
        ensure!(said == format!("container web has ended{by}\n"), "{kind}: {said}");
        let told: Value = serde_json::from_str(&other.finish(SOON)?)?;
        ensure!(
            told["name"] == json!("web") && told["ending"]["signal"].is_number() != by.is_empty(),
            "{kind}: {told}"
        );
        let table = starter.lab.device.cli(&["containers"]).ok()?;
        let row = table.lines().find(|line| line.starts_with("web")).context("no row")?;
        ensure!(row.contains("failed") && row.contains(by.trim_start_matches(" by ")), "{kind}: {table}");
        let over = direct(&starter, &["containers", "wait", "web"])?;
        ensure!(over.code == Some(0) && over.stdout == "container web has ended\n", "{kind}: {}", over.stderr);
        // Without a runner nobody knows, and that is said.
        starter.runner = None;
        starter.becomes("web", "unknown")?;
        let table = starter.lab.device.cli(&["containers"]).ok()?;
        ensure!(table.contains("unknown: the runner") && table.contains("systemctl start"), "{kind}: {table}");
        starter.start_runner()?;
        starter.becomes("web", "stopped")?;
    }
    Ok(())
}

/// A container that its runtime runs beside the declared ones, in the same place, is nobody of pv-net's.
fn is_not_listed(starter: &Starter) -> Result<()> {
    let lab = &starter.lab;
    match starter.kind {
        "lxc" => {
            let config = lxc::configured(lab, "stranger")?;
            let text = fs::read_to_string(&config)? + "lxc.net.0.type = empty\n";
            fs::write(&config, text)?;
            output(Lxc::command(lab, "lxc-start", "stranger")?.args(["-d", "--", "/bin/sleep", "100000"]))?;
        }
        program => {
            let dir = Bundles(program).bundle(lab, "stranger")?;
            let mut run = Bundles(program).command(lab)?;
            run.args(["run", "--detach", "--bundle"]).arg(dir).arg(Bundles::id(lab, "stranger"));
            ensure!(
                run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(),
                "no stranger"
            );
        }
    }
    let listed = (|| {
        ensure!(starter.is_running("stranger")?, "it does not run");
        let all = lab.device.json(&["containers"])?;
        ensure!(!all.to_string().contains("stranger"), "{all}");
        Ok(())
    })();
    match starter.kind {
        "lxc" => Lxc.stop(lab, "stranger")?,
        program => Bundles(program).stop(lab, "stranger")?,
    }
    listed
}
