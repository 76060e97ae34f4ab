//! Network namespaces.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::output;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a name under `/run/netns`; gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with its loopback up. `role` is part of its name.
    ///
    /// # Errors
    /// When it cannot be made, which needs root.
    pub fn new(role: &str) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pvt-{}-{number}-{role}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let made = Self { name };
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A program that runs inside. Unlike `ip netns exec` it keeps the file systems of the caller.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a line of words inside and gives what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        output(self.command(program).args(words))
    }

    /// `ip LINE` on this namespace.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        output(Command::new("ip").args(["-n", &self.name]).args(line.split_whitespace()))
    }

    /// Runs `work` on a thread inside. Sockets that it makes stay in the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered; or the work's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| self.name.clone())?;
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow::anyhow!("panic in {}", self.name))?
    }

    /// Connects this namespace's `here` with `other`'s `there` by a veth pair, both up, with the given addresses.
    ///
    /// # Errors
    /// When a link or an address cannot be made.
    pub fn connect(&self, here: (&str, &[&str]), other: &Self, there: (&str, &[&str])) -> Result<()> {
        self.ip(&format!("link add {} type veth peer name {} netns {}", here.0, there.0, other.name))?;
        for (namespace, (link, addresses)) in [(self, here), (other, there)] {
            // Link-local addresses are usable at once: neighbour discovery needs them.
            let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_dad");
            namespace.run(|| std::fs::write(&path, "0").with_context(|| path.clone()))?;
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("addr add {address} dev {link} {nodad}"))?;
            }
            namespace.ip(&format!("link set {link} up"))?;
        }
        Ok(())
    }

    /// Fails unless `count` pings to `target` are all answered.
    ///
    /// # Errors
    /// When one is not.
    pub fn ping(&self, target: impl std::fmt::Display, count: u32) -> Result<()> {
        let said = self.sh(&format!("ping -n -q -c {count} -i 0.01 -W 2 {target}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(why) = output(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("namespace {} stays behind: {why:#}", self.name);
        }
    }
}
