//! `cargo xtask fuzz`.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::{run, setup};

/// A compiler wrapper that adds coverage counters to this workspace's crates. Dependencies are built as for the tests,
/// and cargo keeps both kinds of builds.
const COMPILER: &str = "fuzz/rustc-with-coverage";

/// How many targets are fuzzed at the same time.
const AT_ONCE: usize = 2;

/// What `cargo xtask fuzz` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only this target; all unless set, two at a time
    target: Option<String>,
    /// How long each one
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Begin with this seed; another one on each run unless set. Every run says its own
    #[arg(long)]
    seed: Option<u64>,
}

impl Args {
    /// All targets, each for 25 s.
    pub fn for_ci() -> Self {
        Self { target: None, seconds: 25, seed: None }
    }
}

/// Builds the targets with coverage, and fuzzes them.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    let build = ["build", "--package", "pv-net-fuzz"];
    run::run(run::cargo().args(build).env("RUSTC_WORKSPACE_WRAPPER", run::root().join(COMPILER)))?;
    let dir = run::target_dir()?.join("fuzz");
    let bin = run::target_dir()?.join("debug/pv-net-fuzz");
    let targets = match &args.target {
        Some(target) => vec![target.clone()],
        None => {
            let told = Command::new(&bin).output().with_context(|| bin.display().to_string())?;
            String::from_utf8(told.stdout)?.lines().map(str::to_owned).collect()
        }
    };
    let queue = Mutex::new(VecDeque::from(targets));
    let next = || queue.lock().ok()?.pop_front();
    let fuzz = |target: &str| -> Result<bool> {
        let mut command = Command::new(&bin);
        command.args([target, "--seconds", &args.seconds.to_string()]).arg("--dir").arg(&dir);
        if let Some(seed) = args.seed {
            command.args(["--seed", &seed.to_string()]);
        }
        let done = command.current_dir(run::root()).output().with_context(|| run::show(&command))?;
        print!("{}", String::from_utf8_lossy(&done.stdout));
        eprint!("{}", String::from_utf8_lossy(&done.stderr));
        Ok(done.status.success())
    };
    let work = || -> Result<Vec<String>> {
        let mut broken = Vec::new();
        while let Some(target) = next() {
            if !fuzz(&target)? {
                broken.push(target);
            }
        }
        Ok(broken)
    };
    let broken = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        done.collect::<Result<Vec<_>>>()
    })?
    .concat();
    if !broken.is_empty() {
        bail!("fuzzing failed: {}", broken.join(", "));
    }
    Ok(())
}
