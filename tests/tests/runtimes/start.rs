//! Containers that pv-net starts, stops and restarts by their runtimes.

use crate::starter::{SERVES, STUBBORN, Starter};
use crate::story::published;
use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, configs, eventually, unix_http};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Addresses of both families, and the MAC.
fn identity(starter: &Starter, name: &str) -> Result<[String; 3]> {
    let view = starter.lab.view(name)?;
    ensure!(view["state"] == "attached" && view["conditions"] == json!([]), "{view}\n{}", starter.log());
    let eth0 = &view["interfaces"][0];
    let field = |key: &str| eth0[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {view}"));
    Ok([field("ipv4_address")?, field("ipv6_address")?, field("mac_address")?])
}

/// Whether a name has addresses.
fn resolves(starter: &Starter, name: &str) -> Result<bool> {
    let answer = starter.lab.device.json(&["resolve", &format!("{name}.pv.local")])?;
    Ok(answer.to_string().contains("10.0.3."))
}

fn gone_from_names_and_ports(starter: &Starter, lease: &str) -> Result<()> {
    ensure!(!resolves(starter, "web")?, "still in DNS");
    let ports = starter.lab.device.json(&["ports"])?;
    ensure!(!ports.to_string().contains("8080"), "{ports}");
    let flows = starter.lab.device.json(&["flows"])?;
    ensure!(!flows.to_string().contains(lease), "flows are left: {flows}");
    let leases = starter.lab.device.json(&["leases"])?;
    ensure!(leases.to_string().contains(lease), "the lease is gone: {leases}");
    Ok(())
}

/// Kills a container's first process.
fn kill_first(pid: Option<u64>) -> Result<()> {
    let pid = i32::try_from(pid.context("no process")?)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill")
}

/// Starts, restarts, ends by itself, and is stopped; daemon and runner are killed in between.
fn story(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    starter.declare("web", SERVES, json!({"stop_timeout": 60}))?;
    let view = starter.act("start", "web")?;
    ensure!(view["state"] == "attached" && view["runtime"]["state"] == "running", "{view}");
    let own = identity(&starter, "web")?;
    eventually(SOON, || published(&starter.lab))?;
    ensure!(resolves(&starter, "web")?, "not in DNS");
    let pid = starter.becomes("web", "running")?;
    let again = starter.lab.device.cli(&["containers", "start", "web"]);
    ensure!(again.code == Some(1) && again.stderr.contains("running already"), "{again:?}");
    ensure!(starter.becomes("web", "running")? == pid, "another process");
    // The same addresses for another process.
    starter.act("restart", "web")?;
    ensure!(starter.becomes("web", "running")? != pid, "the same process");
    ensure!(identity(&starter, "web")? == own, "another identity after a restart");
    eventually(SOON, || published(&starter.lab))?;
    survives_kills(&mut starter, &own)?;
    // A container that ends by itself is gone at once, and its lease stays.
    let pid = starter.becomes("web", "running")?;
    // Something that holds its namespace keeps its links from going with it.
    let held = fs::File::open(format!("/proc/{}/ns/net", pid.context("no process")?))?;
    kill_first(pid)?;
    let begun = Instant::now();
    eventually(SOON, || gone_from_names_and_ports(&starter, &own[0]))?;
    eprintln!("{kind}: gone after {:?}", begun.elapsed());
    starter.lab.no_links()?;
    drop(held);
    starter.becomes("web", "failed")?;
    let view = starter.lab.view("web")?;
    ensure!(
        view["conditions"].to_string().contains("signal 9") || view["conditions"].to_string().contains("by itself"),
        "{view}"
    );
    starter.lab.no_links()?;
    starter.act("start", "web")?;
    ensure!(identity(&starter, "web")? == own, "another identity after its end");
    // Stopped, it is asked to end.
    let begun = Instant::now();
    let view = starter.act("stop", "web")?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "it was killed: {:?}", begun.elapsed());
    ensure!(view["state"] == "detached" && view["runtime"] == json!({"state": "stopped"}), "{view}");
    gone_from_names_and_ports(&starter, &own[0])?;
    let again = starter.lab.device.cli(&["containers", "stop", "web"]);
    ensure!(again.code == Some(1) && again.stderr.contains("not running"), "{again:?}");
    ensure!(starter.lab.view("web")?["conditions"] == json!([]), "{}", starter.lab.view("web")?);
    starter.lab.no_links()?;
    ensure!(starter.kept()?.trim().is_empty(), "the runtime keeps {}", starter.kept()?);
    Ok(())
}

fn survives_kills(starter: &mut Starter, own: &[String; 3]) -> Result<()> {
    let pid = starter.becomes("web", "running")?;
    starter.lab.device.stop(Signal::SIGKILL)?;
    published(&starter.lab)?;
    starter.lab.device.start()?;
    ensure!(starter.becomes("web", "running")? == pid && identity(starter, "web")? == *own, "not the same");
    published(&starter.lab)?;
    // Without a runner the daemon goes on, and says what is missing.
    starter.runner = None;
    let refused = starter.lab.device.cli(&["containers", "restart", "web"]);
    ensure!(refused.code == Some(1) && refused.stderr.contains("runner"), "{refused:?}");
    ensure!(refused.stderr.contains("help: start it with"), "{refused:?}");
    published(&starter.lab)?;
    starter.start_runner()?;
    ensure!(starter.becomes("web", "running")? == pid, "the new runner has not found it");
    // One that ends while neither runs is gone when they are back.
    starter.runner = None;
    starter.lab.device.stop(Signal::SIGKILL)?;
    kill_first(pid)?;
    starter.lab.device.start()?;
    starter.start_runner()?;
    eventually(SOON, || gone_from_names_and_ports(starter, &own[0]))?;
    eventually(SOON, || starter.act("start", "web"))?;
    ensure!(identity(starter, "web")? == *own, "another identity after the kills");
    eventually(SOON, || published(&starter.lab))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_lxc() -> Result<()> {
    story("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_runc() -> Result<()> {
    story("runc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn pv_net_starts_and_stops_containers_of_crun() -> Result<()> {
    story("crun")
}

/// A daemon can start the runner itself. It goes on without that daemon, and is kept by the next one.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_daemon_starts_a_runner_where_nobody_else_does() -> Result<()> {
    let device = Device::new(&configs::masqueraded())?;
    let socket = device.file("run/runner.sock");
    let start = || {
        let log = fs::File::options().create(true).append(true).open(device.file("log"))?;
        let daemon = Process::start(device.command().args(["run", "--runner"]).stderr(log.try_clone()?).stdout(log))?;
        eventually(SOON, || device.json(&["status"]).with_context(|| device.log()))?;
        anyhow::Ok(daemon)
    };
    // The process that listens.
    let runner = || {
        let peer = eventually(SOON, || Ok(UnixStream::connect(&socket)?))?;
        anyhow::Ok(getsockopt(&peer, PeerCredentials)?.pid())
    };
    let first = start()?;
    let pid = runner()?;
    let kept = (|| {
        let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "others may connect: {mode:o}");
        let refused = device.cli(&["containers", "start", "nobody"]);
        ensure!(refused.code == Some(2) && refused.stderr.contains("not declared"), "{refused:?}");
        drop(first);
        ensure!(runner()? == pid, "the runner has ended with the daemon");
        let second = start()?;
        ensure!(runner()? == pid, "another runner");
        drop(second);
        Ok(())
    })();
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("end the runner")?;
    kept
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_that_does_not_end_is_killed() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("web", STUBBORN, json!({"stop_timeout": 1}))?;
        starter.act("start", "web")?;
        let begun = Instant::now();
        starter.act("stop", "web")?;
        ensure!(begun.elapsed() >= Duration::from_secs(1), "{kind}: killed after {:?}", begun.elapsed());
        ensure!(!starter.is_running("web")?, "{kind}: it runs");
        starter.lab.no_links()?;
    }
    Ok(())
}

/// Each is told once, and leaves nothing.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn what_cannot_be_started_is_said() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        starter.declare("web", "exit 3\n", json!({}))?;
        let refused = |starter: &Starter, words: &[&str], code: i32, part: &str| {
            let reply = starter.lab.device.cli(words);
            ensure!(
                reply.code == Some(code) && reply.stderr.contains(part),
                "{kind}: {words:?}: {reply:?}\n{}",
                starter.log()
            );
            Ok(())
        };
        // One that ends at once, whether that is before or after its runtime says that it runs.
        let reply = starter.lab.device.cli(&["containers", "start", "web"]);
        ensure!(reply.code == Some(0) || reply.stderr.contains("ended at once"), "{reply:?}");
        starter.becomes("web", "failed")?;
        starter.lab.no_links()?;
        // Its runtime has nothing of it.
        let run: Value =
            serde_json::from_str(&fs::read_to_string(starter.lab.device.file("containers/web/run.json"))?)?;
        let mut missing = run.clone();
        let key = if kind == "lxc" { "lxcpath" } else { "bundle" };
        missing["runtime"][key] = json!("/nowhere");
        starter.write("web", &missing)?;
        refused(&starter, &["containers", "start", "web"], 2, "/nowhere")?;
        ensure!(starter.runs("web")?.0 == "failed", "{}", starter.lab.view("web")?);
        if kind != "lxc" {
            let mut missing = run.clone();
            missing["runtime"]["program"] = json!("/nowhere/runc");
            starter.write("web", &missing)?;
            refused(&starter, &["containers", "start", "web"], 2, "/nowhere/runc")?;
        }
        // Two that are one.
        starter.write("web", &run)?;
        let mut twin = run.clone();
        twin["name"] = json!("twin");
        twin["network"]["ports"] = json!([]);
        twin["runtime"]["id"] = run["runtime"].get("id").cloned().unwrap_or(json!("web"));
        let dir = starter.write("twin", &twin)?;
        starter.lab.device.cli(&["reload"]).ok()?;
        refused(&starter, &["containers", "start", "twin"], 2, "the same one")?;
        fs::remove_dir_all(dir)?;
        // One that somebody else starts, one that is not declared, and no name.
        starter.write("web", &json!({"name": "web", "type": "lxc", "network": {"pool": "internal"}}))?;
        refused(&starter, &["containers", "start", "web"], 2, "does not say how it is started")?;
        refused(&starter, &["containers", "start", "nobody"], 2, "not declared")?;
        refused(&starter, &["containers", "start", "../web"], 2, "")?;
        let body = json!({"action": "stop", "pid": 1}).to_string();
        let refused_by_api = unix_http::ask(&starter.lab.device.file("run/api.sock"), "PUT", "/containers/web", &body);
        let why = format!("{refused_by_api:?}");
        ensure!(why.contains("400 Bad Request") && why.contains("stands alone"), "{why}");
        // A pool that is gone: its hook fails, so it does not start.
        starter.lab.device.cli(&["reload"]).ok()?;
        starter.declare("db", SERVES, json!({}))?;
        starter.act("start", "db")?;
        starter.act("stop", "db")?;
        let mut of_no_pool = run.clone();
        of_no_pool["name"] = json!("db");
        of_no_pool["network"] = json!({"pool": "gone"});
        of_no_pool["runtime"] = starter.runtime("db")?;
        starter.write("db", &of_no_pool)?;
        starter.lab.device.cli(&["reload"]).ok()?;
        refused(&starter, &["containers", "start", "db"], 1, "declared")?;
        ensure!(!starter.is_running("db")?, "it has started without a network");
        starter.lab.no_links()?;
        ensure!(starter.kept()?.trim().is_empty(), "{kind}: the runtime keeps {}", starter.kept()?);
    }
    Ok(())
}

/// A container whose runtime cannot be asked keeps its network, whoever asks.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_runtime_that_does_not_answer_ends_no_container() -> Result<()> {
    let mut starter = Starter::new("runc")?;
    starter.declare("web", SERVES, json!({}))?;
    starter.act("start", "web")?;
    let own = identity(&starter, "web")?;
    let pid = starter.becomes("web", "running")?;
    let file = starter.lab.device.file("containers/web/run.json");
    let run: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let is_there = |starter: &Starter, part: &str| {
        let view = starter.lab.view("web")?;
        ensure!(view["state"] == "attached" && view["interfaces"][0]["ipv4_address"] == json!(own[0]), "{view}");
        ensure!(view["runtime"]["pid"].as_u64() == pid && view["conditions"].to_string().contains(part), "{view}");
        published(&starter.lab)
    };
    for (key, value, part) in [("program", "/nowhere/runc", "/nowhere/runc"), ("id", "nobody", "does not know")] {
        let mut wrong = run.clone();
        wrong["runtime"][key] = json!(value);
        starter.write("web", &wrong)?;
        let refused = starter.lab.device.cli(&["containers", "stop", "web"]);
        ensure!(refused.code != Some(0), "{refused:?}");
        is_there(&starter, part)?;
    }
    // A new runner cannot ask either.
    let mut wrong = run.clone();
    wrong["runtime"]["program"] = json!("/nowhere/runc");
    starter.write("web", &wrong)?;
    starter.runner = None;
    starter.start_runner()?;
    starter.becomes("web", "failed")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(starter.lab.view("web")?["state"] == "attached", "{}", starter.lab.view("web")?);
    published(&starter.lab)?;
    // It asks again when the runtime answers.
    starter.write("web", &run)?;
    ensure!(starter.becomes("web", "running")? == pid, "another process");
    is_there(&starter, "[]")?;
    starter.act("stop", "web")?;
    starter.lab.no_links()
}

/// A start that hangs ends after its time, and holds up no other.
fn hangs(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    starter.declare("slow", SERVES, json!({}))?;
    starter.declare("web", SERVES, json!({}))?;
    if kind == "lxc" {
        let config = starter.lab.device.file("lxc/slow/config");
        let text = fs::read_to_string(&config)? + "lxc.hook.pre-start = sh -c 'sleep 1000'\n";
        fs::write(&config, text)?;
    } else {
        let config = starter.lab.device.file("bundles/slow/config.json");
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
        spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sleep", "args": ["sleep", "1000"]}]);
        fs::write(&config, spec.to_string())?;
    }
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| starter.lab.device.cli(&["containers", "start", "slow"]));
        starter.act("start", "web")?;
        ensure!(!slow.is_finished(), "held up by the other start, or that did not hang");
        let slow = slow.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        ensure!(slow.code == Some(1) && slow.stderr.contains("not done within"), "{slow:?}");
        Ok(())
    })?;
    ensure!(starter.runs("slow")?.0 == "failed" && !starter.is_running("slow")?, "it runs");
    starter.act("stop", "web")?;
    starter.lab.no_links()?;
    let kept = starter.kept()?;
    ensure!(kept.trim().is_empty(), "the runtime keeps {kept}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_of_lxc_that_hangs_holds_up_no_other() -> Result<()> {
    hangs("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_start_of_runc_that_hangs_holds_up_no_other() -> Result<()> {
    hangs("runc")
}

/// Whoever offers a service is started before those that need it; nothing is started twice, or after a stop by a person.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn automatic_starts_follow_the_services() -> Result<()> {
    for kind in ["lxc", "runc"] {
        let mut starter = Starter::new(kind)?;
        let needs = |service: &str| json!({"start": "auto", "services": {"required": [{"name": service}]}});
        let offer = |starter: &Starter, name: &str, service: &str| {
            let file = starter.lab.device.file("containers").join(name).join("services.json");
            fs::write(file, json!([{"name": service, "type": "tcp", "port": 80}]).to_string())
        };
        // By their names they would start in the other order.
        starter.declare("app", SERVES, needs("sql"))?;
        starter.declare("db", SERVES, json!({"start": "auto"}))?;
        offer(&starter, "db", "sql")?;
        starter.declare("late", SERVES, needs("broken"))?;
        starter.declare("wrong", "exit 3\n", json!({"start": "auto"}))?;
        offer(&starter, "wrong", "broken")?;
        let mut run: Value =
            serde_json::from_str(&fs::read_to_string(starter.lab.device.file("containers/wrong/run.json"))?)?;
        run["runtime"][if kind == "lxc" { "lxcpath" } else { "bundle" }] = json!("/nowhere");
        starter.write("wrong", &run)?;
        starter.declare("ring1", SERVES, needs("two"))?;
        offer(&starter, "ring1", "one")?;
        starter.declare("ring2", SERVES, needs("one"))?;
        offer(&starter, "ring2", "two")?;
        starter.lab.device.stop(Signal::SIGTERM)?;
        starter.lab.device.start()?;
        for name in ["app", "db"] {
            starter.becomes(name, "running")?;
            identity(&starter, name)?;
        }
        let log = starter.log();
        let started = |name: &str| {
            log.lines().position(|line| line.contains("started") && line.contains(&format!("container={name}")))
        };
        ensure!(started("db").context("db")? < started("app").context("app")?, "{log}");
        for (name, why) in [
            ("wrong", "/nowhere"),
            ("late", "it needs container wrong, which was not started"),
            ("ring1", "it waits for itself: ring1 → ring2 → ring1"),
            ("ring2", "it waits for itself"),
        ] {
            starter.becomes(name, "failed")?;
            let conditions = starter.lab.view(name)?["conditions"].to_string();
            ensure!(conditions.contains(why), "{name}: {conditions}");
        }
        // `check` says so before.
        let file =
            |name: &str, file: &str| starter.lab.device.file("containers").join(name).join(file).display().to_string();
        let files: Vec<String> =
            ["ring1", "ring2"].iter().flat_map(|name| [file(name, "run.json"), file(name, "services.json")]).collect();
        let words: Vec<&str> = ["check"].into_iter().chain(files.iter().map(String::as_str)).collect();
        let checked = starter.lab.device.cli(&words);
        ensure!(checked.code == Some(2) && checked.stderr.contains("ring1 → ring2 → ring1"), "{checked:?}");
        // The next daemon finds what runs, and leaves alone what a person has stopped.
        let pid = starter.becomes("app", "running")?;
        starter.act("stop", "db")?;
        starter.lab.device.stop(Signal::SIGKILL)?;
        starter.lab.device.start()?;
        ensure!(starter.becomes("app", "running")? == pid, "started twice");
        eventually(SOON, || {
            let log = starter.log();
            let is_left = |line: &str| line.contains("stopped by a request") && line.contains("container=db");
            ensure!(log.lines().any(is_left), "{log}");
            Ok(())
        })?;
        ensure!(starter.becomes("app", "running")? == pid, "started twice");
        ensure!(starter.runs("db")?.0 == "stopped", "{}", starter.lab.view("db")?);
        starter.act("stop", "app")?;
        starter.lab.no_links()?;
    }
    Ok(())
}

/// Ten containers at the same time, five times: nothing of them is left.
fn churn(kind: &'static str) -> Result<()> {
    let mut starter = Starter::new(kind)?;
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    for name in &names {
        starter.declare(name, SERVES, json!({}))?;
    }
    let pins = starter.lab.device.pinned()?;
    let all = |action: &str| {
        std::thread::scope(|scope| {
            let each: Vec<_> = names.iter().map(|name| scope.spawn(|| starter.act(action, name))).collect();
            each.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a panic"))?.map(|_| ()))
        })
    };
    let begun = Instant::now();
    for _ in 0..5 {
        all("start")?;
        for name in &names {
            identity(&starter, name)?;
        }
        all("stop")?;
        starter.lab.no_links()?;
    }
    eprintln!("{kind}: {:?}", begun.elapsed());
    eventually(SOON, || {
        ensure!(starter.lab.device.pinned()? == pins, "pins are left: {}", starter.lab.device.pinned()?);
        Ok(())
    })?;
    let kept = starter.kept()?;
    ensure!(kept.trim().is_empty(), "the runtime keeps {kept}");
    let leases = starter.lab.device.json(&["leases"])?;
    ensure!(leases.as_array().map(Vec::len) == Some(names.len()), "{leases}");
    for name in &names {
        starter.lab.device.cli(&["detach", name]).ok()?;
    }
    ensure!(starter.lab.device.json(&["leases"])? == json!([]), "leases are left");
    let left: Vec<_> = fs::read_dir(starter.lab.device.file("run-runner"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().display().to_string()))
        .filter(|name| name != "lock" && !name.ends_with(".stopped"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_starts_at_a_time_leave_nothing_of_lxc() -> Result<()> {
    churn("lxc")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn ten_starts_at_a_time_leave_nothing_of_runc() -> Result<()> {
    churn("runc")
}
