//! Calls runtimes.

use super::inside;
use super::process::{Process, Written, ending, kill_group};
use crate::runtime::start::{
    CommandLine, End, Execute, Finished, Inside, Launcher, Output, RuntimeError, Take, Waited,
};
use nix::sys::signal::{Signal, killpg};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Becomes readable when nobody waits any more for what is run inside the container.
    given_up: Option<OwnedFd>,
}

impl Programs {
    pub(super) fn new(dir: &Path, name: &str, launcher: Launcher) -> Self {
        Self { dir: dir.to_owned(), name: name.to_owned(), launcher, given_up: None }
    }

    /// As [`Self::new`], for a caller that says by this file's end when it does not wait any more.
    pub(super) fn until(self, given_up: OwnedFd) -> Self {
        Self { given_up: Some(given_up), ..self }
    }

    /// Removes what is written during an operation. Only one operation at a time may have these files.
    pub(super) fn remove_files(&self) {
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
        // root has written, or of a command of root's; no caller of the runner names any of them, and no shell reads them.
        let mut command = Command::new(&line.program);
        command
            .args(&line.arguments)
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", PATH)
            .env(HOOK_ERRORS, self.hook_errors());
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

impl Execute for Programs {
    fn run(&self, line: &CommandLine, within: Duration) -> Result<Finished, RuntimeError> {
        let failed = |source| RuntimeError::Program { program: line.program.clone(), source };
        let mut command = self.command(line);
        // In a process group of its own it can be killed with what it has started, and no terminal's signal reaches it.
        command.process_group(0);
        let mut files = None;
        match &line.output {
            Output::Answer => {
                let both = in_memory().and_then(|answer| Ok((answer, in_memory()?))).map_err(failed)?;
                let ends = both.0.try_clone().and_then(|answer| Ok((answer, both.1.try_clone()?))).map_err(failed)?;
                command.stdout(ends.0).stderr(ends.1);
                files = Some(both);
            }
            Output::Log(_) => {
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
            (None, _) => (said_at(&self.hook_errors()), String::new()),
        };
        tracing::debug!(program = %line.program.display(), code = status.code(), signal = status.signal(), "called");
        Ok(Finished { code: status.code(), answer, errors })
    }

    fn run_inside(
        &self,
        inside: &Inside,
        within: Option<Duration>,
        take: &mut dyn Take,
    ) -> Result<Option<i32>, RuntimeError> {
        let given_up = self.given_up.as_ref().map(AsFd::as_fd);
        let done = inside::run(self.command(&inside.line), inside, within, given_up, take);
        if let Some(file) = &inside.pid_file
            && let Err(e) = self.remove(file)
        {
            tracing::warn!(file = %file.display(), error = %e, "not removed");
        }
        done
    }

    fn ended(&self, pid: u32, within: Duration) -> io::Result<bool> {
        Process::open(pid)?.map_or(Ok(true), |process| process.ended(Some(within)))
    }

    fn watch(&self, pid: u32, within: Option<Duration>) -> io::Result<Waited> {
        let Some(process) = Process::open(pid)? else { return Ok(Waited::Ended(ending(None))) };
        Ok(if process.ended(within)? { Waited::Ended(ending(process.how())) } else { Waited::Runs })
    }

    fn scratch(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.name))
    }

    fn fresh(&self, what: &str) -> PathBuf {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        self.scratch(&format!("{what}-{}-{call}", std::process::id()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Call;
    use crate::runtime::start::{Kept, Stream};
    use std::os::unix::net::UnixStream;

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
            // A shell stands for a runtime here, since it starts another process in its group.
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

    /// A shell in place of a runtime's program: this process is the container's first one.
    fn inside(script: &str, pid_file: Option<PathBuf>) -> Inside {
        Inside { line: line(&["sh", "-c", script], Output::Answer), first: std::process::id(), pid_file }
    }

    /// The process in this file, as soon as it is there.
    fn process(file: &Path) -> u32 {
        let until = std::time::Instant::now() + SECOND;
        loop {
            if let Ok(pid) = said_at(file).trim().parse() {
                return pid;
            }
            assert!(std::time::Instant::now() < until, "nothing in {}", file.display());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    const SECOND: Duration = Duration::from_secs(10);
    const BRIEFLY: Duration = Duration::from_secs(1);

    #[test]
    fn what_a_program_inside_says_is_taken_and_its_status_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = programs(dir.path());
        let mut said = Vec::new();
        struct All<'a>(&'a mut Vec<(Stream, Vec<u8>)>);
        impl Take for All<'_> {
            fn take(&mut self, from: Stream, bytes: &[u8]) -> io::Result<()> {
                self.0.push((from, bytes.to_owned()));
                Ok(())
            }
        }
        // Its end counts, and not that of what it has left behind with its output.
        let script =
            "printf one; sleep 0.2; printf '\\377' >&2; sleep 0.2; printf two; sleep 100 & echo $! > pid; exit 7";
        let script = script.replace("pid;", &format!("{}/pid;", dir.path().display()));
        let begun = std::time::Instant::now();
        let code = programs.run_inside(&inside(&script, None), None, &mut All(&mut said)).expect("run");
        assert!(code == Some(7) && begun.elapsed() < SECOND, "{code:?}");
        let want = [(Stream::Output, &b"one"[..]), (Stream::Errors, b"\xff"), (Stream::Output, b"two")];
        assert_eq!(said, want.map(|(from, bytes)| (from, bytes.to_owned())));
        let left = process(&dir.path().join("pid"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left.cast_signed()), Signal::SIGKILL).expect("killed");
        // More than a pipe holds, of which little is kept.
        let mut kept = Kept::new(10);
        let flood = inside("head -c 1000000 /dev/zero | tr '\\0' x", None);
        assert_eq!(programs.run_inside(&flood, Some(SECOND), &mut kept).expect("run"), Some(0));
        assert_eq!(kept.text(), "xxxxxxxxxx");
        // It has no terminal, whatever the caller has, and no input.
        let mut kept = Kept::new(100);
        let session = inside("echo $$; cut -d' ' -f6 /proc/$$/stat; cat", None);
        assert_eq!(programs.run_inside(&session, Some(SECOND), &mut kept).expect("run"), Some(0));
        let text = kept.text();
        let numbers: Vec<&str> = text.lines().collect();
        assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{text}");
        let missing = Inside { line: line(&["pv-net-no-such-program"], Output::Answer), first: 1, pid_file: None };
        let failed = programs.run_inside(&missing, None, &mut kept).expect_err("missing");
        assert!(matches!(failed, RuntimeError::Program { .. }), "{failed}");
    }

    #[test]
    fn at_the_time_limit_all_that_was_started_inside_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = programs(dir.path());
        let at = |name: &str| dir.path().join(name);
        let (one, two, own) = (at("one"), at("two"), at("own"));
        let late = |script: &str, pid_file: Option<PathBuf>| {
            let failed = programs.run_inside(&inside(script, pid_file), Some(BRIEFLY), &mut Kept::new(10));
            assert!(matches!(failed, Err(RuntimeError::Late { .. })), "{failed:?}");
        };
        let is_gone =
            |file: &Path| assert!(programs.ended(process(file), SECOND).expect("known"), "{}", file.display());
        // In sessions of their own, one below the other, and one in the background.
        let (first, second) = (one.display(), two.display());
        late(
            &format!(
                "setsid sh -c 'echo $$ > {first}; setsid sh -c \"echo \\$\\$ > {second}; sleep 100; :\" & wait'; :"
            ),
            None,
        );
        is_gone(&one);
        is_gone(&two);
        // The program inside has ended, and left another one with its output, for which the client waits, as runc does.
        let script = format!("setsid sh -c 'echo $$ > {}; sleep 100 & echo $! > {first}'; sleep 100; :", own.display());
        late(&script, Some(own.clone()));
        is_gone(&one);
        assert!(!own.exists(), "the file stays");
        // Without that file nobody knows of it.
        late(&script, None);
        let left = process(&one);
        assert!(!programs.ended(left, Duration::ZERO).expect("known"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left.cast_signed()), Signal::SIGKILL).expect("killed");
        // It floods its caller, and is killed nevertheless.
        late(&format!("echo $$ > {first}; exec yes"), None);
        is_gone(&one);
    }

    #[test]
    fn what_nobody_waits_for_is_killed() {
        struct Nobody;
        impl Take for Nobody {
            fn take(&mut self, _from: Stream, _bytes: &[u8]) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join("own");
        let script = format!("setsid sh -c 'echo $$ > {}; echo; sleep 100; :'; :", own.display());
        let failed = programs(dir.path()).run_inside(&inside(&script, None), None, &mut Nobody);
        assert!(matches!(failed, Err(RuntimeError::Output(_))), "{failed:?}");
        let ended = |pid| programs(dir.path()).ended(pid, SECOND).expect("known");
        assert!(ended(process(&own)));
        std::fs::remove_file(&own).expect("removed");
        let (waits, given_up) = UnixStream::pair().expect("a pair");
        let waiting = programs(dir.path()).until(given_up.into());
        let failed = std::thread::scope(|scope| {
            let run = scope.spawn(|| waiting.run_inside(&inside(&script, None), None, &mut Kept::new(10)));
            process(&own);
            drop(waits);
            run.join().expect("no panic")
        });
        assert!(matches!(failed, Err(RuntimeError::GivenUp)), "{failed:?}");
        assert!(ended(process(&own)));
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
        programs.remove_files();
        assert!(!log.exists());
    }
}
