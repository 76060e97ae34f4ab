//! Runs programs.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails; the error has all its output.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!("{command:?}: {}\n{said}{}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(said)
}

/// A program in the background; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { child })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process does not exist any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).context("kill")
    }

    /// The exit status; `None` while the program runs.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for the program's end, and gives its standard output when that was piped.
    ///
    /// # Errors
    /// When it takes longer than `patience`, or fails.
    pub fn finish(mut self, patience: Duration) -> Result<String> {
        use std::io::Read;
        let mut said = String::new();
        // Read by a thread: a full pipe would keep the program from ending.
        let reader = self.child.stdout.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut text = String::new();
                pipe.read_to_string(&mut text).map(|_| text)
            })
        });
        let status = crate::eventually(patience, || self.child.try_wait()?.context("it is still running"))?;
        if let Some(reader) = reader {
            said = reader.join().map_err(|_| anyhow::anyhow!("reading its output"))??;
        }
        if !status.success() {
            bail!("{status}: {said}");
        }
        Ok(said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when the program has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
