//! Calls runtimes.

use super::process::{Process, Written};
use crate::runtime::start::{CommandLine, End, Execute, Finished, Launcher, Output, RuntimeError};
use nix::sys::signal::{Signal, killpg};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where programs are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes that are read of what a program says.
const MOST: u64 = 1 << 20;
/// The variable that names the file in which a hook of pv-net tells why it has failed. LXC passes it on, and no more of a
/// hook's end than that it was an error.
pub const HOOK_ERRORS: &str = "PV_NET_HOOK_ERRORS";

/// Calls the runtime of one container.
pub(super) struct Programs {
    /// The directory for files that are needed during a call.
    dir: PathBuf,
    /// How their names begin.
    name: String,
    launcher: Launcher,
}

impl Programs {
    pub(super) fn new(dir: &Path, name: &str, launcher: Launcher) -> Self {
        let programs = Self { dir: dir.to_owned(), name: name.to_owned(), launcher };
        // A runner that was killed may have left some.
        programs.remove_files();
        programs
    }

    fn remove_files(&self) {
        for what in ["pid", "log", "hook"] {
            let path = self.scratch(what);
            if let Err(e) = self.remove(&path) {
                tracing::warn!(file = %path.display(), error = %e, "not removed");
            }
        }
    }

    fn hook_errors(&self) -> PathBuf {
        self.scratch("hook")
    }

    fn command(&self, line: &CommandLine) -> Command {
        // To execute runtimes is what the runner is for. The program and its arguments are those of a `run.json`, which
        // root has written; no caller names any of them, and no shell reads them.
        let mut command = Command::new(&line.program);
        // In a process group of its own it can be killed with what it has started, and no terminal's signal reaches it.
        command.args(&line.arguments).process_group(0).stdin(Stdio::null());
        command.env_clear().env("PATH", PATH).env(HOOK_ERRORS, self.hook_errors());
        command
    }
}

/// A file in memory. A pipe would have to be read while the program runs.
fn in_memory() -> io::Result<File> {
    Ok(File::from(memfd_create("pv-net", MemfdFlags::CLOEXEC)?))
}

/// What is in a file, as far as it is read.
fn said(mut file: &File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is in the file at `path`; nothing if there is none.
fn said_at(path: &Path) -> String {
    File::open(path).and_then(|file| said(&file)).unwrap_or_default()
}

/// Waits for a child. One that takes longer is killed with its process group, and `None` is returned.
fn wait(child: &mut Child, within: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let process = Process::open(child.id())?;
    let is_over = process.is_none_or(|process| process.ended(Some(within)).unwrap_or(false));
    if !is_over {
        kill_group(child.id());
        child.wait()?;
        return Ok(None);
    }
    child.wait().map(Some)
}

fn kill_group(leader: u32) {
    let Ok(leader) = i32::try_from(leader) else { return };
    if let Err(e) = killpg(nix::unistd::Pid::from_raw(leader), Signal::SIGKILL)
        && e != nix::errno::Errno::ESRCH
    {
        tracing::warn!(process = leader, error = %e, "not killed");
    }
}

impl Execute for Programs {
    fn run(&self, line: &CommandLine, within: Duration) -> Result<Finished, RuntimeError> {
        let failed = |source| RuntimeError::Program { program: line.program.clone(), source };
        let mut command = self.command(line);
        let mut files = None;
        match &line.output {
            Output::Answer => {
                let both = in_memory().and_then(|answer| Ok((answer, in_memory()?))).map_err(failed)?;
                let ends = both.0.try_clone().and_then(|answer| Ok((answer, both.1.try_clone()?))).map_err(failed)?;
                command.stdout(ends.0).stderr(ends.1);
                files = Some(both);
            }
            Output::Nobody | Output::Log(_) => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
            Output::Runner => {
                command.stdout(Stdio::null()).stderr(Stdio::inherit());
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        let Some(status) = wait(&mut child, within).map_err(failed)? else {
            return Err(RuntimeError::Slow { program: line.program.clone(), within });
        };
        let (answer, errors) = match (&files, &line.output) {
            (Some((answer, errors)), _) => (said(answer).map_err(failed)?, said(errors).map_err(failed)?),
            (None, Output::Log(log)) => (said_at(&self.hook_errors()), said_at(log)),
            (None, Output::Runner) => (said_at(&self.hook_errors()), String::new()),
            (None, _) => (String::new(), String::new()),
        };
        tracing::debug!(program = %line.program.display(), code = status.code(), signal = status.signal(), "called");
        Ok(Finished { code: status.code(), answer, errors })
    }

    fn ended(&self, pid: u32, within: Duration) -> io::Result<bool> {
        Process::open(pid)?.map_or(Ok(true), |process| process.ended(Some(within)))
    }

    fn scratch(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.name))
    }

    fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    fn written(&self, file: &Path) -> Option<u32> {
        Written::read(&said_at(file)).filter(Written::is_there).map(|written| written.pid)
    }

    fn end(&self, pid: u32, by: End) -> io::Result<()> {
        let signal = match by {
            End::Ask => Signal::SIGTERM,
            End::Kill => Signal::SIGKILL,
        };
        let leader = i32::try_from(pid).map_err(io::Error::other)?;
        match killpg(nix::unistd::Pid::from_raw(leader), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn kill_written(&self, file: &Path) {
        if let Ok(pid) = said_at(file).trim().parse::<u32>()
            && pid > 1
        {
            kill_group(pid);
        }
    }
}

impl Drop for Programs {
    /// Removes the files of the call.
    fn drop(&mut self) {
        self.remove_files();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Call;

    fn line(words: &[&str], output: Output) -> CommandLine {
        let arguments = words.iter().skip(1).map(Into::into).collect();
        CommandLine { program: words[0].into(), arguments, output }
    }

    fn programs(dir: &Path) -> Programs {
        let call = Call { program: "/pv-net".into(), flags: Vec::new() };
        Programs::new(dir, "web", Launcher { call, resolv_conf: "/resolv.conf".into() })
    }

    #[test]
    fn a_process_ends_with_its_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = programs(dir.path());
        let (pid, long) = (dir.path().join("sleeper"), Duration::from_secs(10));
        for by in [End::Ask, End::Kill] {
            let words = format!("sleep 100 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display());
            let mut leader = Command::new("sh").args(["-c", &words]).process_group(0).spawn().expect("started");
            while !pid.exists() {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let sleeper: u32 = said_at(&pid).trim().parse().expect("a number");
            std::fs::remove_file(&pid).expect("removed");
            programs.end(leader.id(), by).expect("ended");
            leader.wait().expect("waited");
            assert!(programs.ended(sleeper, long).expect("known"), "{by:?}: what it has started goes on");
            programs.end(leader.id(), by).expect("nobody is there");
        }
    }

    #[test]
    fn a_program_is_run_to_its_end_and_one_that_hangs_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = programs(dir.path());
        let second = Duration::from_secs(10);
        let run = |words: &[&str], within| programs.run(&line(words, Output::Answer), within);
        let finished = run(&["sh", "-c", "echo yes; echo no >&2; exit 3"], second).expect("run");
        assert_eq!(finished, Finished { code: Some(3), answer: "yes\n".to_owned(), errors: "no\n".to_owned() });
        let long = run(&["head", "-c", "3000000", "/dev/zero"], second).expect("run");
        assert_eq!(u64::try_from(long.answer.len()), Ok(MOST), "it has all in its memory");
        let missing = run(&["pv-net-no-such-program"], second).expect_err("missing");
        assert!(matches!(missing, RuntimeError::Program { .. }), "{missing}");
        let begun = std::time::Instant::now();
        // What it has started is killed with it.
        let pid = dir.path().join("pid");
        let hangs = format!("sleep 100 & echo $! > {}; wait", pid.display());
        let slow = run(&["sh", "-c", &hangs], Duration::from_millis(500)).expect_err("slow");
        assert!(matches!(slow, RuntimeError::Slow { .. }) && begun.elapsed() < second, "{slow}");
        let sleeper: u32 = said_at(&pid).trim().parse().expect("a number");
        assert!(programs.ended(sleeper, second).expect("known"));
        // A log is read, and removed in the end.
        let log = programs.scratch("log");
        let words = format!("echo wrong > {}; exit 1", log.display());
        let finished = programs.run(&line(&["sh", "-c", &words], Output::Log(log.clone())), second).expect("run");
        assert_eq!((finished.code, finished.errors.as_str()), (Some(1), "wrong\n"));
        drop(programs);
        assert!(!log.exists());
    }
}
