//! Runs an emulated machine, and makes sure that it never stays behind.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::arch::Arch;
use super::wire::Wire;
use crate::signals;

/// What to boot.
pub struct Boot<'a> {
    /// The processor.
    pub arch: Arch,
    /// The kernel's image.
    pub image: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// Memory in MiB.
    pub memory: u32,
    /// What its network cards are connected by.
    pub wire: &'a Wire,
    /// The file that is its disk, if it has one.
    pub disk: Option<&'a Path>,
    /// More words for the kernel's command line; `KEY=VALUE` becomes the environment of its first process.
    pub words: &'a str,
    /// A file for everything that the console prints.
    pub log: &'a Path,
    /// How long it may take.
    pub limit: Duration,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It reported the number of failed checks.
    Verdict(u32),
    /// It ended without a verdict.
    Silent,
    /// It took too long.
    Late,
    /// Its power was cut.
    Cut,
}

/// What is done after a line of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The machine goes on.
    Go,
    /// Its power is cut after this time.
    Cut(Duration),
}

/// How long to wait for output before checking for signals.
const LISTEN: Duration = Duration::from_millis(200);

/// The emulator's process; killed when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the machine, passes each line of the console to `heard`, and waits for the verdict.
pub fn run(boot: &Boot, heard: impl FnMut(&str) -> Then) -> Result<Ended> {
    let name = || boot.log.display().to_string();
    let log = std::fs::File::create(boot.log).with_context(name)?;
    let machine = Machine(spawn(command(boot))?);
    listen(machine, log, boot.limit, heard).with_context(name)
}

fn listen(
    mut machine: Machine,
    mut log: impl Write,
    limit: Duration,
    mut heard: impl FnMut(&str) -> Then,
) -> Result<Ended> {
    let start = Instant::now();
    let console = machine.0.stdout.take().context("the machine's console")?;
    let (lines, inbox) = channel();
    let reader = std::thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        // Firmware may print bytes that are not UTF-8.
        while console.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if lines.send(text).is_err() {
                return;
            }
        }
    });
    let ended = loop {
        let left = limit.saturating_sub(start.elapsed());
        if let Err(why) = signals::check() {
            break Err(why);
        }
        match inbox.recv_timeout(left.min(LISTEN)) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                if let Some(failed) = verdict(&line) {
                    break Ok(Ended::Verdict(failed));
                }
                if let Then::Cut(after) = heard(&line) {
                    std::thread::sleep(after);
                    break Ok(Ended::Cut);
                }
            }
            Err(RecvTimeoutError::Timeout) if left > LISTEN => {}
            Err(RecvTimeoutError::Timeout) => break Ok(Ended::Late),
            Err(RecvTimeoutError::Disconnected) => break Ok(Ended::Silent),
        }
    };
    // After the verdict the machine is killed, since nothing that it does matters any more.
    drop(machine);
    drop(inbox);
    reader.join().map_err(|_| anyhow::anyhow!("reading the console failed"))?;
    ended
}

fn command(boot: &Boot) -> Command {
    let mut command: Command = boot.arch.machine();
    let console = boot.arch.console();
    boot.wire.connect(&mut command);
    if let Some(disk) = boot.disk {
        // What the guest has flushed is in the host's memory at least, which outlives the emulator.
        command.args(["-drive", &format!("file={},format=raw,if=none,id=disk", disk.display())]);
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    command.args(["-m", &boot.memory.to_string(), "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(boot.image).arg("-initrd").arg(boot.initramfs);
    // A panic ends the machine, because it may not reboot. The other options save time in emulation. On a busy machine
    // emulated timers are late, and Linux for x86 panics when its timer check fails.
    let timer = if boot.arch == Arch::X86 { "no_timer_check" } else { "" };
    let words = format!("console={console} panic=-1 quiet mitigations=off {timer} {}", boot.words);
    command.args(["-append", &words]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn spawn(mut command: Command) -> Result<Child> {
    let die_with_parent = || Ok(set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: one system call between fork and exec, and no allocation. The death signal depends on the thread that
    // spawned the machine, and that thread waits for it.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn().with_context(|| {
        let program = command.get_program().to_string_lossy();
        format!("{program} could not be started\nhelp: cargo xtask setup installs it, for ARM: cargo xtask vm --arch aarch64")
    })
}

/// The number in `VMRC=<n>`. The kernel may print text before it on the same line.
fn verdict(line: &str) -> Option<u32> {
    let (_, number) = line.split_once("VMRC=")?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a machine's end is judged that behaves like this script, and how long that took.
    fn ended(script: &str, limit_secs: u64) -> (Ended, Duration) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let machine = Machine(spawn(command).expect("sh"));
        let ended = listen(machine, std::io::sink(), Duration::from_secs(limit_secs), |line| {
            if line == "cut" { Then::Cut(Duration::ZERO) } else { Then::Go }
        })
        .expect("a machine");
        (ended, start.elapsed())
    }

    #[test]
    fn without_a_verdict_a_machine_has_none_and_is_not_waited_for() {
        assert_eq!(ended("echo ok one; echo VMRC=", 60).0, Ended::Silent);
        assert_eq!(ended("exit 0", 60).0, Ended::Silent);
        let soon = Duration::from_secs(20);
        for (script, limit, what) in [
            ("echo ok one; exec sleep 60", 1, Ended::Late),
            ("echo VMRC=3; exec sleep 60", 60, Ended::Verdict(3)),
            ("echo cut; exec sleep 60", 60, Ended::Cut),
        ] {
            let (ended, took) = ended(script, limit);
            assert_eq!(ended, what);
            assert!(took < soon, "{script}: {took:?}");
        }
    }

    #[test]
    fn only_a_number_is_a_verdict() {
        assert_eq!(verdict("VMRC=0"), Some(0));
        assert_eq!(verdict("[ 1.2] x VMRC=12"), Some(12));
        assert_eq!(verdict("VMRC="), None);
        assert_eq!(verdict("ok   forwarding"), None);
    }
}
