//! The test programs of the workspace, several at a time.
//!
//! `cargo test` runs one program after the other, and each ends with a few long tests while nothing else runs. Most of a
//! test is waiting for the kernel or for time to pass, so the machine would be idle for half of the time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run;

/// How many programs run at the same time.
const PROGRAMS: usize = 2;

/// These take longest. They begin first, so that none of them is left alone at the end.
const LONG: [&str; 8] = ["kill_points", "attacks", "held", "macvlan", "v6", "bench", "enforce", "services"];

/// A program with tests.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The target's name, as `cargo test --test NAME` takes it.
    name: String,
    /// What was built.
    file: PathBuf,
    /// The package's folder, in which cargo runs it.
    folder: PathBuf,
}

/// Builds all of them, the longest first.
pub fn build() -> Result<Vec<Program>> {
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} could not be started", run::show(&command)))?;
    let output = child.stdout.take().context("cargo's messages")?;
    let mut programs = Vec::new();
    for line in BufReader::new(output).lines() {
        programs.extend(program(&line.context("cargo's messages")?));
    }
    let status = child.wait().context("cargo test")?;
    ensure!(status.success(), "{}: {status}", run::show(&command));
    // What is not among the long ones keeps its order.
    programs.sort_by_key(|program| LONG.iter().position(|name| *name == program.name).unwrap_or(LONG.len()));
    Ok(programs)
}

/// The test program that one of cargo's messages tells of
/// (<https://doc.rust-lang.org/cargo/reference/external-tools.html#artifact-messages>).
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let file = is_test.then(|| message["executable"].as_str()).flatten()?.into();
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    Some(Program { name: message["target"]["name"].as_str()?.to_owned(), file, folder })
}

/// Runs them with `flags` and the variables `env`, and gives each one's output to `done` when it has ended. Returns the names
/// of those that failed.
///
/// # Errors
/// When one cannot be run.
pub fn run(
    programs: &[Program],
    flags: &[&str],
    env: &[(&str, &Path)],
    mut done: impl FnMut(&str) + Send,
) -> Result<Vec<String>> {
    let queue: Mutex<VecDeque<&Program>> = Mutex::new(programs.iter().collect());
    let next = || queue.lock().ok()?.pop_front();
    let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
    let done = Mutex::new(&mut done);
    let work = || -> Result<Vec<String>> {
        let mut broken = Vec::new();
        while let Some(program) = next() {
            // It may hang, and then this is all that is known.
            eprintln!("     Started {}", program.name);
            let mut command = Command::new(&program.file);
            command.args(flags).envs(env.iter().copied()).current_dir(&program.folder);
            command.env("RUST_TEST_THREADS", at_a_time.to_string());
            let (output, passed) = run_one(&mut command).with_context(|| run::show(&command))?;
            let told = format!("     Running {} ({})\n{output}", program.name, program.file.display());
            if let Ok(mut done) = done.lock() {
                done(&told);
            }
            if !passed {
                broken.push(program.name.clone());
            }
        }
        Ok(broken)
    };
    let broken = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PROGRAMS).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter().map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        ended.collect::<Result<Vec<_>>>()
    })?;
    Ok(broken.concat())
}

/// Runs one to its end: what it has said, and whether it passed. Both of its streams go into one file, so that their order is
/// kept and nothing waits for a reader.
fn run_one(command: &mut Command) -> Result<(String, bool)> {
    let path =
        std::env::temp_dir().join(format!("pv-net-output-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    let removed = Removed(&path);
    let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
    let output = std::fs::read(removed.0)?;
    Ok((String::from_utf8_lossy(&output).into_owned(), status.success()))
}

/// A file that goes with this.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(self.0) {
            eprintln!("{} stays: {e}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_with_tests_are_run() {
        let message = |test: bool, executable: &str| {
            let head =
                r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"held"}"#;
            format!(r#"{head},"profile":{{"test":{test}}},"executable":{executable}}}"#)
        };
        let held = Program { name: "held".into(), file: "/w/target/held-1".into(), folder: "/w/tests".into() };
        assert_eq!(program(&message(true, r#""/w/target/held-1""#)), Some(held));
        for other in [message(false, r#""/w/pv-net""#), message(true, "null"), "warning: none".into()] {
            assert_eq!(program(&other), None, "{other}");
        }
    }

    #[test]
    fn each_is_run_and_a_failure_is_told() {
        let sh = |name: &str| Program { name: name.into(), file: "/bin/sh".into(), folder: "/".into() };
        let programs = [sh("a"), sh("b"), sh("c")];
        let mut told = String::new();
        let script = "pwd; echo $PV_NET_BIN >&2; exit 3";
        let env = [("PV_NET_BIN", Path::new("/bin/none"))];
        let broken = run(&programs, &["-c", script], &env, |output| told += output).expect("run");
        assert_eq!(told.matches("\n/\n/bin/none\n").count(), 3, "{told}");
        assert!(["a", "b", "c"].iter().all(|name| broken.iter().any(|b| b == name)), "{broken:?}");
        assert_eq!(run(&programs, &["-c", "true"], &env, |_| ()).expect("run"), Vec::<String>::new());
    }
}
