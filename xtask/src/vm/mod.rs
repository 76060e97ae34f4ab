//! `cargo xtask vm`: the data plane on the kernels of distributions, each in an emulated machine.

mod apt;
mod arch;
mod budget;
mod cpio;
mod guest;
mod kernel;
mod modules;
mod power;
mod qemu;
mod report;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{run, setup, signals};
pub use apt::mirrors;
pub use apt::{Apt, Suite, said};
pub use arch::Arch;
use budget::Budget;
use kernel::Kernel;
use qemu::{Boot, Ended, Then};
use report::Report;
use wire::Wire;

/// What `cargo xtask vm` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only these series: 5.10, 6.1, 6.12, 6.18, 7.3 (ARM: 6.1, 7.3). The newest of each is fetched from Debian, once;
    /// deleting target/vm makes it be fetched anew
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// The guests' processor
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
    /// One machine with 64 MiB left to programs: the daemon starts, forwards, and bears a full flow table
    #[arg(long, conflicts_with = "update_budget")]
    memory_floor: bool,
    /// Cut the power of a machine N times while clients of DHCP are given leases: none that was acknowledged may be lost,
    /// and no address given twice
    #[arg(long, value_name = "N", conflicts_with_all = ["memory_floor", "update_budget"])]
    power_cut: Option<u32>,
    /// Leave out what takes the longest with netkit links, as CI does
    #[arg(long)]
    brief: bool,
    /// Write what the verifier went through into tests/budget.json, instead of comparing
    #[arg(long)]
    update_budget: bool,
    /// Machines at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
}

/// Time limit of a machine, several times what it usually needs. Most of the time is spent on loading the programs,
/// four times.
const LIMIT: Duration = Duration::from_secs(1200);
/// Memory of a machine, MiB.
const MEMORY: u32 = 512;
/// The kernel for `--memory-floor`, unless another is asked for.
const FLOOR_KERNEL: &str = "6.1";
/// Memory of that machine, MiB; the guest itself allocates the excess.
const FLOOR_MEMORY: u32 = 256;
/// The kernel for `--power-cut`, unless others are asked for.
const POWER_CUT_KERNEL: &str = "6.12";
/// How many times slower an emulated machine is at worst; see `harness::patience`.
const SLOW: u32 = 10;

impl Args {
    /// The arguments of `cargo xtask ci`, which has an hour for everything: the oldest kernel and the newest.
    pub fn for_ci() -> Self {
        let kernels = ["5.10", "7.3"].map(str::to_owned).to_vec();
        Self {
            kernels,
            arch: Arch::X86,
            memory_floor: false,
            power_cut: None,
            brief: true,
            update_budget: false,
            jobs: 2,
        }
    }

    /// The series, each once, in the order of the arguments.
    fn series(&self) -> Vec<String> {
        let usual = || match (self.memory_floor, self.power_cut) {
            (true, _) => vec![FLOOR_KERNEL.to_owned()],
            (false, Some(_)) => vec![POWER_CUT_KERNEL.to_owned()],
            (false, None) => self.arch.usual().iter().map(|s| (*s).to_owned()).collect(),
        };
        let mut all = if self.kernels.is_empty() { usual() } else { self.kernels.clone() };
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|series| seen.insert(series.clone()));
        all
    }
}

/// Fetches the kernels, builds the guest, boots all kernels, and sums up.
pub fn run(args: &Args) -> Result<()> {
    args.series().iter().try_for_each(|series| kernel::check(series))?;
    signals::catch()?;
    setup::ensure(true)?;
    setup::ensure_vm(args.arch == Arch::Arm)?;
    let cache = run::target_dir()?.join("vm");
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    sweep(&cache)?;
    let kernels =
        args.series().iter().map(|series| kernel::get(&cache, series, args.arch)).collect::<Result<Vec<_>>>()?;
    let program = guest::build(&cache, args.arch)?;
    if let Some(times) = args.power_cut {
        return kernels.iter().try_for_each(|kernel| power::run(times, args.arch, &cache, kernel, &program));
    }
    let mut budget = Budget::read()?;
    let reports = boot_all(args, &cache, &kernels, &program)?;
    let mut failed = 0;
    for report in &reports {
        let mut wrong = report.faults();
        if args.update_budget && wrong.is_empty() {
            budget.set(args.arch, &report.series, &report.counts);
        } else if !args.memory_floor && report.ended != Ended::Silent {
            wrong.extend(budget.judge(args.arch, &report.series, &report.counts));
        }
        println!("{}", report.line(&wrong));
        failed += usize::from(!wrong.is_empty());
    }
    if args.update_budget {
        budget.write()?;
    }
    if failed > 0 {
        let logs = cache.join("logs");
        bail!(
            "{failed} of {} kernels failed\nhelp: the consoles are in {}; a budget that is meant to grow: cargo xtask vm --update-budget",
            reports.len(),
            logs.display()
        );
    }
    Ok(())
}

/// Boots all kernels, several at a time. The reports are in the order of the kernels.
fn boot_all(args: &Args, cache: &Path, kernels: &[Kernel], program: &Path) -> Result<Vec<Report>> {
    std::fs::create_dir_all(cache.join("logs"))?;
    let next = Mutex::new(kernels.iter().enumerate());
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            // The lock is released before the machine starts.
            let taken = next.lock().ok().and_then(|mut next| next.next());
            let Some((index, kernel)) = taken.filter(|_| signals::check().is_ok()) else { return };
            let report = boot(args, cache, kernel, program);
            if let Ok(mut done) = done.lock() {
                done.push((index, report));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(work);
        }
    });
    signals::check()?;
    let mut done = done.into_inner().map_err(|_| anyhow::anyhow!("a machine's thread failed"))?;
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, report)| report).collect()
}

fn boot(args: &Args, cache: &Path, kernel: &Kernel, program: &Path) -> Result<Report> {
    let start = Instant::now();
    let name = format!("{}-{}", args.arch.name(), kernel.series);
    let initramfs = Scratch(cache.join(format!("{name}-{}.cpio", std::process::id())));
    let has = guest::initramfs(program, kernel, &initramfs.0, false)?;
    let (kinds, cards) = (has.kinds.join(","), has.cards.join(","));
    let wire = Wire::lay();
    if let Wire::Hub(why) = &wire {
        println!("{:<5}| its cards are without offloads: no taps: {why:#}", kernel.series);
    }
    let (memory, guest) = if args.memory_floor {
        (FLOOR_MEMORY, "memory-floor")
    } else {
        (MEMORY, if args.brief { "brief" } else { "suite" })
    };
    let boot = Boot {
        arch: args.arch,
        image: &kernel.image,
        initramfs: &initramfs.0,
        memory,
        wire: &wire,
        disk: None,
        words: &format!(
            "PV_NET_BIN=/pv-net PV_NET_SLOW={SLOW} PV_NET_GUEST={guest} PV_NET_KINDS={kinds} PV_NET_CARDS={cards} \
             PV_NET_WIRE={}{}",
            wire.word(),
            attack()
        ),
        log: &cache.join("logs").join(format!("{name}.log")),
        limit: LIMIT,
    };
    let mut report = Report::new(kernel, boot.log);
    report.ended = qemu::run(&boot, |line| {
        if report.hear(line) {
            println!("{:<5}| {line}", kernel.series);
        }
        Then::Go
    })?;
    report.took = start.elapsed();
    Ok(report)
}

/// Removes files that killed runs have left; the names of an initramfs and of a disk include the process id.
fn sweep(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let own = name.strip_suffix(".cpio").or_else(|| name.strip_suffix(".disk"));
        let Some((_, process)) = own.and_then(|name| name.rsplit_once('-')) else { continue };
        if !Path::new("/proc").join(process).exists() {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// A file that is removed when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may not exist if writing it failed at once.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Settings of the random attacker from the environment, for the guest.
fn attack() -> String {
    let words = ["PV_NET_SEED", "PV_NET_SHOT", "PV_NET_FRAMES"];
    words.iter().filter_map(|name| Some(format!(" {name}={}", std::env::var(name).ok()?))).collect()
}
