//! Pins loads to CPUs, and tells who used these.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the two ends of a load run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Both on one CPU.
    Same,
    /// The client on one, the server on another.
    Split,
}

impl Pin {
    /// The client's CPU and the server's.
    #[must_use]
    pub fn cpus(self) -> (usize, usize) {
        let all = allowed();
        // CPU 0 handles most interrupts. If there is a choice the client runs there, since it waits more than the
        // server.
        let last = all.last().copied().unwrap_or_default();
        match self {
            Self::Same => (last, last),
            Self::Split => (all.first().copied().unwrap_or_default(), last),
        }
    }
}

/// CPUs that this process was started on.
pub fn allowed() -> &'static [usize] {
    static ALL: OnceLock<Vec<usize>> = OnceLock::new();
    ALL.get_or_init(|| {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
    })
}

/// Whether loads have priority over other programs.
static FIRST: AtomicBool = AtomicBool::new(false);

/// Gives all later loads the real-time class, before all other programs: a compiler that runs at the same time then
/// changes the figures little, and those of each path alike. Where the system refuses this, loads run like any program.
pub fn go_first() {
    let works = std::thread::spawn(|| real_time(0).is_ok()).join().unwrap_or(false);
    FIRST.store(works, Ordering::Relaxed);
}

/// How loads are scheduled.
#[must_use]
pub fn class() -> &'static str {
    if FIRST.load(Ordering::Relaxed) { "SCHED_FIFO" } else { "SCHED_OTHER" }
}

fn real_time(pid: i32) -> Result<()> {
    let priority = nix::libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure lives until the call returns.
    let done = unsafe { nix::libc::sched_setscheduler(pid, nix::libc::SCHED_FIFO, &raw const priority) };
    nix::errno::Errno::result(done).map(drop).context("real-time priority")
}

/// Makes a thread or process part of a load, on these CPUs; `pid` 0 is the caller.
///
/// # Errors
/// When the process does not exist any more, or such a CPU does not.
pub fn pin(pid: u32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    let id = i32::try_from(pid)?;
    sched_setaffinity(Pid::from_raw(id), &set).with_context(|| format!("CPUs {cpus:?} for {pid}"))?;
    if FIRST.load(Ordering::Relaxed) { real_time(id) } else { Ok(()) }
}

/// CPU time used so far, on the CPUs of a load.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pin: Pin,
    all_secs: f64,
    own_secs: f64,
}

/// CPU time between two marks.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Used by this process, by programs that carry its packets, and by the kernel threads that process these.
    pub own_secs: f64,
    /// Used by all others, and taken by the hypervisor.
    pub foreign_secs: f64,
}

impl Mark {
    /// The times now. `carriers` are programs that carry the packets, such as a proxy.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn now(pin: Pin, carriers: &[u32]) -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let secs = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        let softirq: f64 = softirq_threads().iter().map(|pid| run_secs(*pid)).sum();
        let own_secs = secs(usage.user_time()) + secs(usage.system_time()) + softirq + family_secs(carriers);
        let (client, server) = pin.cpus();
        let other = if server == client { 0.0 } else { busy_secs(server)? };
        Ok(Self { pin, all_secs: busy_secs(client)? + other, own_secs })
    }

    /// The CPU time used since this mark.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn used(self, carriers: &[u32]) -> Result<Used> {
        let now = Self::now(self.pin, carriers)?;
        let own_secs = (now.own_secs - self.own_secs).max(0.0);
        Ok(Used { own_secs, foreign_secs: (now.all_secs - self.all_secs - own_secs).max(0.0) })
    }
}

/// Clock ticks in a second, as `/proc` counts them; the same on every architecture that is measured.
const USER_HZ: f64 = 100.0;

/// Time of a CPU that was neither idle nor waiting for a disk; proc(5) has the columns.
fn busy_secs(cpu: usize) -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("cpu{cpu} ")));
    let line = line.with_context(|| format!("/proc/stat has no cpu{cpu}"))?;
    let ticks: Vec<f64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let busy: f64 = ticks.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    Ok(busy / USER_HZ)
}

/// `ksoftirqd` of each CPU.
fn softirq_threads() -> &'static [u32] {
    static ALL: OnceLock<Vec<u32>> = OnceLock::new();
    ALL.get_or_init(|| {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let named = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
        };
        pids.filter(named).collect()
    })
}

/// CPU time of a thread so far, in seconds.
#[must_use]
pub fn run_secs(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// CPU time so far of processes, of their children, and of their children that ended: a proxy may fork for each
/// connection.
fn family_secs(pids: &[u32]) -> f64 {
    members(pids).map(|(_, secs)| secs).sum()
}

/// Processes with all their children, and the CPU time of each so far.
fn members(pids: &[u32]) -> impl Iterator<Item = (u32, f64)> + use<> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids_of = entries.take_while(|_| !pids.is_empty()).filter_map(|e| e.file_name().to_str()?.parse().ok());
    let all: Vec<(u32, u32, f64)> = pids_of.filter_map(process).collect();
    let mut family = pids.to_vec();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(all.iter().filter(|(_, ppid, _)| *ppid == parent).map(|(pid, _, _)| *pid));
        at += 1;
    }
    all.into_iter().filter(move |(pid, _, _)| family.contains(pid)).map(|(pid, _, secs)| (pid, secs))
}

/// All threads of processes and of their children.
#[must_use]
pub fn threads(pids: &[u32]) -> Vec<u32> {
    let tasks = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    members(pids).flat_map(|(pid, _)| tasks(pid)).filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// A process, its parent, and the CPU time of it and of its children that ended; proc(5) has the columns.
fn process(pid: u32) -> Option<(u32, u32, f64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses, and may have spaces.
    let columns: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = columns.get(11..15)?.iter().filter_map(|n| n.parse::<f64>().ok()).sum();
    Some((pid, columns.get(1)?.parse().ok()?, ticks / USER_HZ))
}
