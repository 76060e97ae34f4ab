//! The runner with a runtime that is a script, whose containers are in this process' network namespace.

use super::auto;
use super::containers::Containers;
use super::marks::Mark;
use super::process::{is_gone, since_boot};
use crate::daemon::Paths;
use crate::failure::Kind;
use crate::model::{ContainerName, RunState};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Has the first process of a container in `ID.pid`, starts one, executes something beside it, and kills it. What it was called for is in `calls`.
const RUNTIME: &str = r#"#!/bin/sh
cd "${0%/*}"
echo "$*" >> calls
for id; do :; done
case "$*" in
    "state "*)
        [ -e "$id.pid" ] || { echo "container does not exist" >&2; exit 1; }
        echo "{\"id\": \"$id\", \"status\": \"running\", \"pid\": $(cat "$id.pid")}" ;;
    *" run "*) ls run-runner >> calls; sleep 1000 > /dev/null 2>&1 & echo $! > "$id.pid" ;;
    "exec "*) echo $$ > "$3"; shift 4; exec "$@" ;;
    "kill "*) kill -9 "$(cat "$2.pid")"; rm "$2.pid" ;;
esac
"#;

struct Lab {
    dir: tempfile::TempDir,
    containers: Containers,
}

fn name(text: &str) -> ContainerName {
    text.parse().expect("a name")
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        // By another process: a file that a process has open for writing cannot be executed, and a child of a test beside
        // this one might have it open.
        let words = ["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""];
        let written = Command::new("sh").args(words).arg(at("runtime")).arg(RUNTIME).status().expect("sh");
        assert!(written.success());
        let paths = Paths {
            config: at("device.json"),
            containers: at("containers"),
            lxc: at("lxc"),
            state_dir: at("state"),
            run_dir: at("run"),
            bpffs: at("bpffs"),
            cgroup: at("cgroup"),
            resolv_conf: at("resolv.conf"),
            revision: None,
        };
        let containers = Containers::new(&paths).expect("directories");
        Self { dir, containers }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn declare(&self, name: &str, more: Value) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut run = json!({
            "name": name, "type": "oci", "network": {"pool": "internal"},
            "runtime": {"program": at("runtime"), "bundle": at(&format!("bundles/{name}"))},
        });
        run.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        self.write(&format!("containers/{name}/run.json"), &run.to_string());
        self.write(&format!("bundles/{name}/config.json"), &json!({"ociVersion": "1.0.2"}).to_string());
    }

    /// Starts a container as somebody else would.
    fn start(&self, name: &str) -> u32 {
        let status = Command::new(self.dir.path().join("runtime")).args(["x", "run", name]).status();
        assert!(status.expect("run").success());
        fs::read_to_string(self.pid_file(name)).expect("a process").trim().parse().expect("a number")
    }

    fn pid_file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{name}.pid"))
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    fn is_marked(&self, name: &str, mark: Mark) -> bool {
        mark.is_on(self.containers.paths(), &name.parse().expect("a name"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let is_pid = |path: &Path| path.extension().is_some_and(|end| end == "pid");
        for entry in fs::read_dir(self.dir.path()).expect("listed").flatten().filter(|entry| is_pid(&entry.path())) {
            let pid = fs::read_to_string(entry.path()).expect("read");
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }
}

#[test]
fn what_starts_in_the_devices_network_is_killed() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let failure = lab.containers.start(&name("web")).expect_err("killed");
    assert!(failure.line().contains("it has started in the device's network"), "{failure}");
    assert!(!lab.pid_file("web").exists() && lab.calls().contains("kill web KILL"), "{}", lab.calls());
    assert!(lab.calls().contains("web.unchecked"), "it was not marked while it was started: {}", lab.calls());
    assert!(!lab.is_marked("web", Mark::Unchecked));
    assert_eq!(lab.containers.status(&name("web")).state, RunState::Failed);
}

#[test]
fn what_a_killed_runner_has_started_in_the_devices_network_is_killed() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let pid = lab.start("web");
    Mark::Unchecked.put(lab.containers.paths(), &name("web")).expect("marked");
    lab.containers.find().expect("found");
    assert!(!lab.pid_file("web").exists() && is_gone(pid), "{}", lab.calls());
    assert_eq!(lab.containers.status(&name("web")).state, RunState::Failed);
    assert!(!lab.is_marked("web", Mark::Unchecked));
    // Somebody else's is told, also when this runner has tried to start it.
    let pid = lab.start("web");
    for _ in 0..2 {
        let status = lab.containers.look(&name("web")).expect("looked");
        let why = status.why.unwrap_or_default();
        assert!(status.pid == Some(pid) && why.contains("device's network"), "{why}");
        let failure = lab.containers.start(&name("web")).expect_err("it runs");
        assert!(failure.line().contains("running already"), "{failure}");
    }
    assert!(lab.pid_file("web").exists() && !is_gone(pid));
    // A start that is refused leaves the check to the next look.
    Mark::Unchecked.put(lab.containers.paths(), &name("web")).expect("marked");
    lab.containers.start(&name("web")).expect_err("it runs");
    assert!(lab.is_marked("web", Mark::Unchecked) && !is_gone(pid));
    lab.containers.look(&name("web")).expect("looked");
    assert!(is_gone(pid), "{}", lab.calls());
    // A mark of a start that came to nothing is no reason to kill what is started later.
    lab.declare("db", json!({}));
    Mark::Unchecked.put(lab.containers.paths(), &name("db")).expect("marked");
    lab.containers.look(&name("db")).expect("looked");
    let pid = lab.start("db");
    assert_eq!(lab.containers.look(&name("db")).expect("looked").pid, Some(pid));
}

#[test]
fn a_restart_that_cannot_be_prepared_stops_nothing() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let pid = lab.start("web");
    lab.containers.look(&name("web")).expect("looked");
    fs::remove_file(lab.dir.path().join("bundles/web/config.json")).expect("removed");
    lab.containers.restart(&name("web")).expect_err("no bundle");
    assert!(!lab.calls().contains("kill") && !is_gone(pid), "{}", lab.calls());
    assert_eq!(lab.containers.status(&name("web")).pid, Some(pid));
}

#[test]
fn only_what_a_person_has_stopped_is_marked_so_until_it_is_started() {
    let lab = Lab::new();
    lab.declare("web", json!({"start": "auto"}));
    for (is_asked, starts) in [(true, 0), (false, 1)] {
        let web = name("web");
        lab.start("web");
        lab.containers.look(&web).expect("looked");
        lab.containers.stop(&web, is_asked).expect("stopped");
        assert_eq!(lab.is_marked("web", Mark::Stopped), is_asked);
        fs::remove_file(lab.dir.path().join("calls")).expect("removed");
        auto::start(&lab.containers).expect("done");
        assert_eq!(lab.calls().matches(" run ").count(), starts, "{}", lab.calls());
        // Each start takes the mark away, whatever becomes of it.
        lab.containers.start(&web).expect_err("it is in the device's network");
        assert!(!lab.is_marked("web", Mark::Stopped));
    }
}

#[test]
fn what_needs_a_container_with_a_wrong_file_is_not_started() {
    let offers_of = |service: &str| json!([{"name": service, "type": "tcp", "port": 80}]).to_string();
    let offers = &*offers_of("sql");
    let is_tried = |run: Value, offers: &str| {
        let lab = Lab::new();
        lab.declare("db", run);
        lab.write("containers/db/services.json", offers);
        lab.declare("app", json!({"start": "auto", "services": {"required": [{"name": "sql"}]}}));
        for (one, other) in [("ring1", "ring2"), ("ring2", "ring1")] {
            lab.declare(one, json!({"start": "auto", "services": {"required": [{"name": other}]}}));
            lab.write(&format!("containers/{one}/services.json"), &offers_of(one));
        }
        auto::start(&lab.containers).expect("done");
        let status = |text: &str| lab.containers.status(&name(text)).why.unwrap_or_default();
        assert!(status("ring1").contains("it waits for itself"), "{}", status("ring1"));
        let is_tried = lab.calls().contains("bundles/app app");
        assert_eq!(
            status("app").contains("it needs container db, which was not started"),
            !is_tried,
            "{}",
            status("app")
        );
        assert!(!lab.calls().contains("bundles/db"), "{}", lab.calls());
        assert!(is_tried || status("db").contains("containers/db/"), "{}", status("db"));
        is_tried
    };
    assert!(!is_tried(json!({"start": "auto", "strange": 1}), offers), "its run.json is wrong");
    assert!(!is_tried(json!({"start": "auto"}), "[{"), "its services.json is wrong");
    assert!(is_tried(json!({"start": "manual", "strange": 1}), offers), "somebody else starts it");
    assert!(is_tried(json!({"start": "manual"}), "[{"), "somebody else starts it");
}

#[test]
fn only_the_kernel_says_that_a_process_is_gone() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let (web, pid) = (name("web"), lab.start("web"));
    lab.containers.look(&web).expect("looked");
    let hidden = lab.dir.path().join("hidden.pid");
    fs::rename(lab.pid_file("web"), &hidden).expect("hidden");
    let (status, is_gone) = lab.containers.look_for(&web, Some(pid)).expect("looked");
    assert!(!is_gone && status.pid == Some(pid), "its runtime does not know it: {status:?}");
    fs::rename(&hidden, lab.pid_file("web")).expect("shown");
    lab.containers.stop(&web, true).expect("stopped");
    assert!(lab.containers.look_for(&web, Some(pid)).expect("looked").1);
}

#[test]
fn the_end_of_what_ends_at_once_belongs_to_no_operation() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let pid = lab.start("web");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success());
    // Its runtime has not seen that yet.
    assert_eq!(lab.containers.look(&name("web")).expect("looked").pid, Some(pid));
    let until = Instant::now() + Duration::from_secs(10);
    while lab.containers.status(&name("web")).state != RunState::Failed {
        assert!(Instant::now() < until, "{:?}", lab.containers.status(&name("web")));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert!(lab.calls().contains("delete web"), "{}", lab.calls());
}

#[test]
fn the_health_check_is_the_command_that_run_json_declares() {
    let lab = Lab::new();
    let web = name("web");
    let exec = |command: Value| json!({"health_check": {"type": "exec", "command": command, "timeout": 1}});
    lab.declare("web", json!({}));
    lab.start("web");
    lab.containers.look(&web).expect("looked");
    let failure = lab.containers.check(&web).expect_err("none is declared");
    assert!(failure.kind == Kind::Usage && failure.line().contains("no health check"), "{failure}");
    lab.declare("web", exec(json!(["sh", "-c", "echo fine; echo \"$0\" >&2; exit 3", "a word"])));
    let checked = lab.containers.check(&web).expect("checked");
    assert_eq!((checked.exit_status, checked.is_late), (Some(3), false));
    assert!(["fine\n", "a word\n"].iter().all(|line| checked.output.contains(line)), "{checked:?}");
    // One that hangs leaves nothing, and keeps nobody from stopping the container.
    let own = lab.dir.path().join("own");
    lab.declare("web", exec(json!(["sh", "-c", format!("echo $$ > {}; sleep 100; :", own.display())])));
    let checked = lab.containers.check(&web).expect("checked");
    assert!(checked.is_late && checked.exit_status.is_none(), "{checked:?}");
    let pid = fs::read_to_string(&own).expect("written").trim().parse().expect("a number");
    assert!(is_gone(pid));
    fs::remove_file(&own).expect("removed");
    std::thread::scope(|scope| {
        let check = scope.spawn(|| lab.containers.check(&web));
        let until = Instant::now() + Duration::from_secs(10);
        while !own.exists() {
            assert!(Instant::now() < until, "{}", lab.calls());
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let failure = lab.containers.check(&web).expect_err("one at a time");
        assert!(failure.kind == Kind::Conflict && failure.line().contains("under way"), "{failure}");
        lab.containers.stop(&web, true).expect("stopped");
        assert!(check.join().expect("no panic").expect("checked").is_late);
    });
    let failure = lab.containers.check(&web).expect_err("it does not run");
    assert!(failure.kind == Kind::Conflict && failure.line().contains("not running"), "{failure}");
    assert!(
        fs::read_dir(lab.dir.path().join("run-runner"))
            .expect("listed")
            .flatten()
            .all(|file| { !file.file_name().display().to_string().contains(".exec") })
    );
}

#[test]
fn it_is_told_since_when_a_container_runs_and_how_it_has_ended() {
    let lab = Lab::new();
    lab.declare("web", json!({}));
    let web = name("web");
    let unknown = lab.containers.look(&web).expect("looked");
    assert!(unknown.state == RunState::Stopped && unknown.since_boot_secs.is_none(), "{unknown:?}");
    let pid = lab.start("web");
    lab.containers.look(&web).expect("looked");
    let running = lab.containers.status(&web);
    let now = since_boot().expect("a clock");
    assert!(running.since_boot_secs.is_some_and(|since| since + 5 > now && since <= now), "{running:?} at {now}");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success());
    let until = Instant::now() + Duration::from_secs(10);
    while lab.containers.status(&web).state != RunState::Failed {
        assert!(Instant::now() < until, "{:?}", lab.containers.status(&web));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let ended = lab.containers.status(&web);
    // Kernels before 6.15 do not say how.
    let why = ended.why.clone().unwrap_or_default();
    assert!(ended.ending.signal == Some(9) || why == "it has ended by itself", "{ended:?}");
    assert!(ended.since_boot_secs >= running.since_boot_secs && ended.pid.is_none(), "{ended:?}");
}
