use super::lxc::{self, Lxc};
use super::oci::{self, Oci};
use super::wasm::Wasm;
use super::{
    CommandLine, End, Execute, Finished, Found, Inside, Kept, Launcher, Output, Runtime, RuntimeError, State, Stream,
    Take, Waited,
};
use crate::model::{Ending, LxcSpec, OciSpec, WasmCli, WasmSpec};
use crate::runtime::Call;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

/// Answers as it is told, and remembers what it was asked for.
#[derive(Default)]
struct Script {
    answers: RefCell<VecDeque<Result<Finished, RuntimeError>>>,
    has_ended: RefCell<VecDeque<bool>>,
    written: RefCell<VecDeque<Option<u32>>>,
    asked: RefCell<Vec<String>>,
}

impl Script {
    fn new(answers: Vec<Result<Finished, RuntimeError>>, has_ended: &[bool]) -> Self {
        let has_ended = RefCell::new(has_ended.iter().copied().collect());
        Self { answers: RefCell::new(answers.into()), has_ended, ..Self::default() }
    }

    /// What it was asked for. All answers must have been given.
    fn asked(&self) -> Vec<String> {
        let is_all = self.answers.borrow().is_empty() && self.has_ended.borrow().is_empty();
        assert!(is_all && self.written.borrow().is_empty(), "answers are left");
        self.asked.borrow().clone()
    }
}

impl Execute for Script {
    fn run(&self, line: &CommandLine, _within: Duration) -> Result<Finished, RuntimeError> {
        self.asked.borrow_mut().push(text(line));
        self.answers.borrow_mut().pop_front().expect("an answer")
    }

    fn run_inside(
        &self,
        inside: &Inside,
        within: Option<Duration>,
        take: &mut dyn Take,
    ) -> Result<Option<i32>, RuntimeError> {
        let file = inside.pid_file.as_ref().map(|file| format!(" {}", file.display())).unwrap_or_default();
        let within = within.map_or(0, |within| within.as_secs());
        self.asked.borrow_mut().push(format!("in {} for {within}{file}: {}", inside.first, text(&inside.line)));
        let finished = self.answers.borrow_mut().pop_front().expect("an answer")?;
        take.take(Stream::Output, finished.answer.as_bytes()).map_err(RuntimeError::Output)?;
        Ok(finished.code)
    }

    fn watch(&self, pid: u32, within: Option<Duration>) -> io::Result<Waited> {
        self.asked.borrow_mut().push(format!("watch {pid} {:?}", within.map(|within| within.as_secs())));
        let has_ended = self.has_ended.borrow_mut().pop_front().expect("an answer");
        Ok(if has_ended { Waited::Ended(Ending { exit_status: Some(3), signal: None }) } else { Waited::Runs })
    }

    fn ended(&self, pid: u32, within: Duration) -> io::Result<bool> {
        self.asked.borrow_mut().push(format!("ended {pid} {}", within.as_secs()));
        Ok(self.has_ended.borrow_mut().pop_front().expect("an answer"))
    }

    fn scratch(&self, what: &str) -> PathBuf {
        format!("/run/x/w.{what}").into()
    }

    fn fresh(&self, what: &str) -> PathBuf {
        format!("/run/x/w.{what}-1").into()
    }

    fn launcher(&self) -> &Launcher {
        static LAUNCHER: LazyLock<Launcher> = LazyLock::new(|| {
            let call = Call { program: "/pv-net".into(), flags: vec!["--run-dir=/r".to_owned()] };
            Launcher { call, resolv_conf: "/r/w.conf".into() }
        });
        &LAUNCHER
    }

    fn written(&self, _file: &Path) -> Option<u32> {
        self.written.borrow_mut().pop_front().expect("an answer")
    }

    fn end(&self, pid: u32, by: End) -> io::Result<()> {
        self.asked.borrow_mut().push(format!("{by:?} {pid}"));
        Ok(())
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.asked.borrow_mut().push(format!("remove {}", file.display()));
        Ok(())
    }

    fn kill_written(&self, file: &Path) {
        self.asked.borrow_mut().push(format!("kill {}", file.display()));
    }
}

fn text(line: &CommandLine) -> String {
    let words = std::iter::once(line.program.display().to_string());
    words.chain(line.arguments.iter().map(|word| word.display().to_string())).collect::<Vec<_>>().join(" ")
}

fn well(answer: &str) -> Result<Finished, RuntimeError> {
    Ok(Finished { code: Some(0), answer: answer.to_owned(), errors: String::new() })
}

fn badly(errors: &str) -> Result<Finished, RuntimeError> {
    Ok(Finished { code: Some(1), answer: String::new(), errors: errors.to_owned() })
}

fn slow() -> Result<Finished, RuntimeError> {
    Err(RuntimeError::Slow { program: "x".into(), within: Duration::from_secs(30) })
}

const STOPPED: &str = "State:          STOPPED\n";
const RUNNING: &str = "State:          RUNNING\nPID:            77\n";
const OCI_RUNNING: &str = r#"{"ociVersion": "1.0.2", "id": "w", "status": "running", "pid": 77, "bundle": "/b"}"#;
const UNKNOWN: &str = "time=\"…\" level=error msg=\"container does not exist\"";
const PATIENCE: Duration = Duration::from_secs(10);

fn lxc_spec() -> LxcSpec {
    LxcSpec { path: "/var/lib/lxc".into(), id: "w".to_owned() }
}

fn oci_spec() -> OciSpec {
    OciSpec { program: "crun".into(), bundle: "/b".into(), id: "w".to_owned(), root: Some("/r".into()) }
}

#[test]
fn the_command_lines_of_lxc() {
    let (spec, execute) = (lxc_spec(), Script::default());
    let lxc = Lxc { spec: &spec, execute: &execute };
    let start = lxc.start_line(Path::new("/run/x/w.pid"), Path::new("/run/x/w.log"));
    assert_eq!(text(&start), "lxc-start -P /var/lib/lxc -n w -d -l ERROR -p /run/x/w.pid -o /run/x/w.log");
    assert_eq!(start.output, Output::Log("/run/x/w.log".into()));
    assert_eq!(text(&lxc.stop_line(PATIENCE)), "lxc-stop -P /var/lib/lxc -n w -t 10");
    assert_eq!(text(&lxc.kill_line()), "lxc-stop -P /var/lib/lxc -n w -k");
    let (exec, pid_file) = lxc.exec_line(&["sh".into(), "-c".into(), "exit 3".into()]).expect("a line");
    assert_eq!(pid_file, None);
    assert_eq!(text(&exec), "lxc-attach -P /var/lib/lxc -n w --clear-env -- sh -c exit 3");
}

#[test]
fn the_command_lines_of_oci_runtimes() {
    let (mut spec, execute) = (oci_spec(), Script::default());
    let oci = Oci { spec: &spec, execute: &execute };
    let start = oci.start_line(Path::new("/l"));
    assert_eq!(text(&start), "crun --root /r --log-format json --log /l run --detach --bundle /b w");
    assert_eq!(start.output, Output::Log("/l".into()));
    let (exec, pid_file) = oci.exec_line(&["--tty".into(), "--".into()]).expect("a line");
    assert_eq!(pid_file, Some("/run/x/w.exec-1".into()));
    assert_eq!(text(&exec), "crun --root /r exec --pid-file /run/x/w.exec-1 w --tty --");
    spec.root = None;
    let oci = Oci { spec: &spec, execute: &execute };
    assert_eq!(text(&oci.signal_line("TERM")), "crun kill w TERM");
    assert_eq!(text(&oci.delete_line()), "crun delete w");
    assert_eq!(text(&oci.force_line()), "crun delete --force w");
}

#[test]
fn what_lxc_answers_is_understood() {
    for (said, want) in [
        (STOPPED, Some(State::Stopped)),
        (RUNNING, Some(State::Running(77))),
        ("State: FROZEN\nPID: 5\n", Some(State::Running(5))),
        ("State: STARTING\nPID: 5\n", Some(State::Changing)),
        ("State: RUNNING\n", None),
        ("State: RUNNING\nPID: -1\n", None),
        ("", None),
    ] {
        assert_eq!(lxc::read_state(said), want, "{said}");
    }
    let found = |id: &str, state| Found { id: id.to_owned(), state };
    let list = "NAME STATE   PID \nx    STOPPED -   \ny    RUNNING 12  \n";
    assert_eq!(lxc::read_list(list), Some(vec![found("x", State::Stopped), found("y", State::Running(12))]));
    assert_eq!(lxc::read_list(""), Some(Vec::new()));
    assert_eq!(lxc::read_list("NAME\nx y\n"), None);
    let log = "lxc-start w 20261128150328.123 ERROR    conf - ../src/lxc/conf.c:run_buffer:321 - Script exited with status 1\n";
    assert_eq!(lxc::read_log(log), "Script exited with status 1");
}

#[test]
fn what_oci_runtimes_answer_is_understood() {
    let told = |status: &str, pid: u32| format!(r#"{{"id": "w", "status": "{status}", "pid": {pid}, "more": 1}}"#);
    for (said, want) in [
        (told("running", 7), Some(State::Running(7))),
        (told("paused", 7), Some(State::Running(7))),
        (told("created", 7), Some(State::Changing)),
        (told("stopped", 0), Some(State::Stopped)),
        (told("running", 0), Some(State::Stopped)),
        ("{}".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(oci::read_state(&said), want, "{said}");
    }
    assert_eq!(oci::read_list("null"), Some(Vec::new()));
    assert_eq!(oci::read_list("[\n\n]"), Some(Vec::new()));
    let listed = format!("[{}]", told("running", 7));
    assert_eq!(oci::read_list(&listed), Some(vec![Found { id: "w".to_owned(), state: State::Running(7) }]));
    let log = "{\"level\":\"warning\",\"msg\":\"old\",\"time\":\"…\"}\n{\"level\":\"error\",\"msg\":\"no rootfs\",\"time\":\"…\"}\n";
    assert_eq!(oci::read_log(log), "no rootfs");
}

#[test]
fn a_start_that_hangs_leaves_nothing() {
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(STOPPED), slow()], &[]));
    let failed = Lxc { spec: &spec, execute: &execute }.start(PATIENCE).expect_err("slow");
    assert!(matches!(failed, RuntimeError::Slow { .. }), "{failed}");
    assert_eq!(execute.asked().last().map(String::as_str), Some("kill /run/x/w.pid"));
    let (spec, execute) = (oci_spec(), Script::new(vec![badly(UNKNOWN), slow(), well("")], &[]));
    let failed = Oci { spec: &spec, execute: &execute }.start(PATIENCE).expect_err("slow");
    assert!(matches!(failed, RuntimeError::Slow { .. }), "{failed}");
    assert_eq!(execute.asked().last().map(String::as_str), Some("crun --root /r delete --force w"));
}

#[test]
fn a_container_that_runs_is_not_started_again() {
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(RUNNING)], &[]));
    let failed = Lxc { spec: &spec, execute: &execute }.start(PATIENCE).expect_err("it runs");
    assert!(matches!(failed, RuntimeError::Running(77)), "{failed}");
    let (spec, execute) = (oci_spec(), Script::new(vec![well(OCI_RUNNING)], &[]));
    let failed = Oci { spec: &spec, execute: &execute }.start(PATIENCE).expect_err("it runs");
    assert!(matches!(failed, RuntimeError::Running(77)), "{failed}");
}

#[test]
fn what_a_runtime_keeps_of_one_that_has_ended_is_removed_before_the_next_start() {
    let stopped = r#"{"id": "w", "status": "stopped", "pid": 0}"#;
    let answers = vec![well(stopped), well(""), well(""), well(OCI_RUNNING)];
    let (spec, execute) = (oci_spec(), Script::new(answers, &[]));
    assert_eq!(Oci { spec: &spec, execute: &execute }.start(PATIENCE).expect("started"), 77);
    assert_eq!(execute.asked()[1], "crun --root /r delete w");
}

#[test]
fn a_runtime_that_knows_no_such_container_is_understood() {
    let no_file = "error opening file `/r/w/status`: No such file or directory";
    for said in [UNKNOWN, no_file] {
        let (spec, execute) = (oci_spec(), Script::new(vec![badly(said), badly("no permission")], &[]));
        let oci = Oci { spec: &spec, execute: &execute };
        assert_eq!(oci.state().expect(said), State::Absent);
        assert!(matches!(oci.state(), Err(RuntimeError::Refused { .. })));
    }
    let answers = vec![badly("w doesn't exist"), badly("no permission"), well("State: STRANGE\n")];
    let (spec, execute) = (lxc_spec(), Script::new(answers, &[]));
    let lxc = Lxc { spec: &spec, execute: &execute };
    assert_eq!(lxc.state().expect("understood"), State::Absent);
    assert!(matches!(lxc.state(), Err(RuntimeError::Refused { .. })));
    assert!(matches!(lxc.state(), Err(RuntimeError::Answer { .. })));
}

#[test]
fn a_command_is_run_in_a_container_that_runs() {
    let (lxc_spec, oci_spec, wasm_spec) = (lxc_spec(), oci_spec(), wasm_spec(WasmCli::Wasmtime, "{}"));
    let exec = |runtime: &dyn Runtime, within| {
        let mut kept = Kept::new(8);
        let done = runtime.exec(&["true".into()], within, &mut kept);
        (done, kept.text())
    };
    let said = |code| Ok(Finished { code, answer: "a long answer".to_owned(), errors: String::new() });
    let execute = Script::new(vec![well(RUNNING), said(Some(7))], &[]);
    let (done, text) = exec(&Lxc { spec: &lxc_spec, execute: &execute }, Some(PATIENCE));
    assert_eq!((done.expect("run"), text.as_str()), (Some(7), "a long a"));
    let line = "in 77 for 10: lxc-attach -P /var/lib/lxc -n w --clear-env -- true";
    assert_eq!(execute.asked().last().map(String::as_str), Some(line));
    let execute = Script::new(vec![well(OCI_RUNNING), said(None)], &[]);
    let (done, _) = exec(&Oci { spec: &oci_spec, execute: &execute }, None);
    assert_eq!(done.expect("run"), None);
    let line = "in 77 for 0 /run/x/w.exec-1: crun --root /r exec --pid-file /run/x/w.exec-1 w true";
    assert_eq!(execute.asked().last().map(String::as_str), Some(line));
    // What has happened to it is told as it is.
    let late = || Err(RuntimeError::Late { within: PATIENCE });
    let execute = Script::new(vec![well(RUNNING), late()], &[]);
    let (done, _) = exec(&Lxc { spec: &lxc_spec, execute: &execute }, Some(PATIENCE));
    assert!(matches!(done, Err(RuntimeError::Late { .. })), "{done:?}");
    execute.asked();
    // Nobody is called for one that does not run, or has no programs.
    for state in [well(STOPPED), badly("w doesn't exist")] {
        let execute = Script::new(vec![state], &[]);
        let (done, _) = exec(&Lxc { spec: &lxc_spec, execute: &execute }, None);
        assert!(matches!(done, Err(RuntimeError::NotRunning)), "{done:?}");
        execute.asked();
    }
    let execute = Script::new(vec![badly(UNKNOWN)], &[]);
    let (done, _) = exec(&Oci { spec: &oci_spec, execute: &execute }, None);
    assert!(matches!(done, Err(RuntimeError::NotRunning)), "{done:?}");
    let execute = Script::default();
    let (done, _) = exec(&Wasm { spec: &wasm_spec, execute: &execute }, None);
    assert!(matches!(done, Err(RuntimeError::NoPrograms)) && execute.asked().is_empty(), "{done:?}");
}

#[test]
fn the_end_of_a_container_is_waited_for() {
    let (lxc_spec, oci_spec, wasm_spec) = (lxc_spec(), oci_spec(), wasm_spec(WasmCli::Wasmtime, "{}"));
    let ended = |exit_status| Waited::Ended(Ending { exit_status, signal: None });
    let execute = Script::new(vec![well(RUNNING), well(RUNNING), well(STOPPED)], &[false, true]);
    let lxc = Lxc { spec: &lxc_spec, execute: &execute };
    assert_eq!(lxc.wait(Some(PATIENCE)).expect("known"), Waited::Runs);
    assert_eq!(lxc.wait(None).expect("known"), ended(Some(3)));
    assert_eq!(lxc.wait(None).expect("known"), ended(None), "it does not run");
    let asked = execute.asked();
    assert!(
        asked.contains(&"watch 77 Some(10)".to_owned()) && asked.contains(&"watch 77 None".to_owned()),
        "{asked:?}"
    );
    let execute = Script::new(vec![well(OCI_RUNNING)], &[true]);
    assert_eq!(Oci { spec: &oci_spec, execute: &execute }.wait(None).expect("known"), ended(Some(3)));
    let execute = Script { written: RefCell::new([Some(7)].into()), ..Script::new(Vec::new(), &[true]) };
    assert_eq!(Wasm { spec: &wasm_spec, execute: &execute }.wait(None).expect("known"), ended(Some(3)));
    assert_eq!(execute.asked(), ["watch 7 None"]);
}

#[test]
fn one_that_has_ended_at_once_is_said_to_have() {
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(STOPPED), well(""), well(STOPPED)], &[]));
    let failed = Lxc { spec: &spec, execute: &execute }.start(PATIENCE).expect_err("it has ended");
    assert!(matches!(failed, RuntimeError::AtOnce), "{failed}");
}

#[test]
fn what_does_not_end_when_asked_is_killed() {
    let answers = vec![well(OCI_RUNNING), well(""), well(OCI_RUNNING), well(""), well("")];
    let (spec, execute) = (oci_spec(), Script::new(answers, &[false, true]));
    Oci { spec: &spec, execute: &execute }.stop(PATIENCE).expect("stopped");
    let asked = execute.asked();
    let signals: Vec<&String> = asked.iter().filter(|line| line.contains(" kill ")).collect();
    assert_eq!(signals, ["crun --root /r kill w TERM", "crun --root /r kill w KILL"]);
    assert!(asked.contains(&"ended 77 10".to_owned()), "{asked:?}");
    assert_eq!(asked.last().map(String::as_str), Some("crun --root /r delete w"));
}

#[test]
fn one_that_ends_when_asked_is_not_killed() {
    let answers = vec![well(OCI_RUNNING), well(""), well("")];
    let (spec, execute) = (oci_spec(), Script::new(answers, &[true]));
    Oci { spec: &spec, execute: &execute }.stop(PATIENCE).expect("stopped");
    assert!(!execute.asked().iter().any(|line| line.contains("KILL")));
    let (spec, execute) = (oci_spec(), Script::new(vec![badly(UNKNOWN)], &[]));
    let failed = Oci { spec: &spec, execute: &execute }.stop(PATIENCE).expect_err("nobody runs");
    assert!(matches!(failed, RuntimeError::NotRunning), "{failed}");
}

#[test]
fn one_that_has_ended_meanwhile_is_stopped() {
    let (spec, execute) = (oci_spec(), Script::new(vec![well(OCI_RUNNING), badly("gone"), well("")], &[true, true]));
    Oci { spec: &spec, execute: &execute }.stop(PATIENCE).expect("stopped");
    let (spec, execute) = (oci_spec(), Script::new(vec![well(OCI_RUNNING), badly("gone"), well("")], &[true, true]));
    Oci { spec: &spec, execute: &execute }.kill().expect("killed");
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(RUNNING), badly("gone")], &[true, true]));
    Lxc { spec: &spec, execute: &execute }.stop(PATIENCE).expect("stopped");
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(RUNNING), badly("no")], &[false]));
    let failed = Lxc { spec: &spec, execute: &execute }.kill().expect_err("it goes on");
    assert!(matches!(failed, RuntimeError::Refused { .. }), "{failed}");
    let (spec, execute) = (lxc_spec(), Script::new(vec![well(RUNNING), well("")], &[false]));
    let failed = Lxc { spec: &spec, execute: &execute }.kill().expect_err("it goes on");
    assert!(matches!(failed, RuntimeError::Survives(77)), "{failed}");
}

fn wasm_spec(cli: WasmCli, sockets: &str) -> WasmSpec {
    WasmSpec {
        name: "w".parse().expect("a name"),
        program: cli.program().into(),
        cli,
        module: "/app.wasm".into(),
        args: vec!["--port".to_owned(), "80".to_owned()],
        env: [("A".to_owned(), "b c".to_owned())].into(),
        user: 65534,
        sockets: serde_json::from_str(sockets).expect("sockets"),
    }
}

#[test]
fn the_command_lines_of_webassembly_runtimes() {
    let execute = Script::default();
    let line = |cli, sockets| {
        let spec = wasm_spec(cli, sockets);
        let line = Wasm { spec: &spec, execute: &execute }.start_line();
        assert_eq!(line.output, Output::Runner);
        text(&line)
    };
    let launch = "/pv-net --run-dir=/r launch w --process /run/x/w.process --resolv-conf /r/w.conf --user 65534 --";
    let wasmtime =
        |grants: &str| format!("{launch} wasmtime run -C cache=n -S {grants} --env A=b c /app.wasm --port 80");
    assert_eq!(
        line(WasmCli::Wasmtime, "{}"),
        wasmtime("inherit-network=n,tcp=n,udp=n,allow-ip-name-lookup=n"),
        "nothing is granted"
    );
    assert_eq!(
        line(WasmCli::Wasmtime, r#"{"listen": ["tcp/80"]}"#),
        wasmtime("inherit-network=y,tcp=y,udp=n,allow-ip-name-lookup=n")
    );
    let other = r#"{"connect": [{"to": "world", "ports": ["udp"]}], "resolve": true}"#;
    assert_eq!(line(WasmCli::Wasmtime, other), wasmtime("inherit-network=y,tcp=n,udp=y,allow-ip-name-lookup=y"));
    assert_eq!(line(WasmCli::Wasmedge, other), format!("{launch} wasmedge --env A=b c /app.wasm --port 80"));
}

#[test]
fn a_module_is_the_process_that_its_launcher_has_written_down() {
    let spec = wasm_spec(WasmCli::Wasmtime, "{}");
    let started = |answers, written: &[Option<u32>]| {
        let execute = Script { written: RefCell::new(written.iter().copied().collect()), ..Script::new(answers, &[]) };
        let done = Wasm { spec: &spec, execute: &execute }.start(PATIENCE);
        let asked = execute.asked();
        (done, asked.into_iter().filter(|line| !line.starts_with("/pv-net")).collect::<Vec<_>>())
    };
    let (done, asked) = started(vec![well("")], &[None, Some(7)]);
    assert_eq!((done.expect("started"), asked), (7, Vec::new()));
    let (done, _) = started(vec![], &[Some(7)]);
    assert!(matches!(done, Err(RuntimeError::Running(7))), "{done:?}");
    let (done, asked) = started(vec![badly("")], &[None, None]);
    assert!(matches!(done, Err(RuntimeError::Refused { .. })), "{done:?}");
    assert_eq!(asked, ["remove /run/x/w.process"]);
    // A launcher that was killed has perhaps let it begin.
    let (done, asked) = started(vec![slow()], &[None, Some(7)]);
    assert!(matches!(done, Err(RuntimeError::Slow { .. })), "{done:?}");
    assert_eq!(asked, ["Kill 7", "remove /run/x/w.process"]);
}

#[test]
fn a_module_that_does_not_end_when_asked_is_killed() {
    let spec = wasm_spec(WasmCli::Wasmedge, "{}");
    let stopped = |has_ended: &[bool], written: &[Option<u32>]| {
        let written = RefCell::new(written.iter().copied().collect());
        let execute = Script { written, ..Script::new(Vec::new(), has_ended) };
        let done = Wasm { spec: &spec, execute: &execute }.stop(PATIENCE);
        (done, execute.asked())
    };
    let (done, asked) = stopped(&[true], &[Some(7)]);
    done.expect("stopped");
    assert_eq!(asked, ["Ask 7", "ended 7 10", "remove /run/x/w.process"]);
    let (done, asked) = stopped(&[false, true], &[Some(7), Some(7)]);
    done.expect("killed");
    assert_eq!(asked[2..], ["Kill 7", "ended 7 5", "remove /run/x/w.process"]);
    let (done, _) = stopped(&[false, false], &[Some(7), Some(7)]);
    assert!(matches!(done, Err(RuntimeError::Survives(7))), "{done:?}");
    let (done, _) = stopped(&[], &[None]);
    assert!(matches!(done, Err(RuntimeError::NotRunning)), "{done:?}");
}
