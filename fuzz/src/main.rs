//! `pv-net-fuzz TARGET`: what `cargo xtask fuzz` starts, one process a target.

use anyhow::{Context, Result, bail};
use clap::Parser;
use fuzz::hunt::{Current, Options, hunt, keep};
use fuzz::{Target, targets};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Limit of the process's address space; beyond it an allocation fails, and the process ends.
const ADDRESS_SPACE: u64 = 4 << 30;

/// Looks for inputs that break a target.
#[derive(Parser)]
struct Args {
    /// The target; none: their names
    target: Option<String>,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Begin with this seed; a random one unless set
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for what is kept from run to run
    #[arg(long, default_value = "target/fuzz")]
    dir: PathBuf,
    /// The file that says which input is tried
    #[arg(long, hide = true)]
    current: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Ends this process when its parent dies.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns `false` when an input was found that breaks the target.
fn run(args: &Args) -> Result<bool> {
    let Some(name) = &args.target else {
        targets::ALL.iter().for_each(|t| println!("{}", t.name));
        return Ok(true);
    };
    let Some(target) = targets::ALL.iter().find(|t| t.name == name) else {
        bail!("no target {name:?}\nhelp: the targets are {}", targets::ALL.map(|t| t.name).join(", "));
    };
    let seed = args.seed.unwrap_or_else(|| std::process::id().into());
    match &args.current {
        None => watch(args, target, seed),
        Some(current) => work(args, target, seed, current),
    }
}

/// Runs the search in a child process, and keeps the input if the child dies of it.
fn watch(args: &Args, target: &Target, seed: u64) -> Result<bool> {
    let note = File::from(memfd_create("input", MFdFlags::MFD_CLOEXEC).context("a file in memory")?);
    let current = format!("/proc/{}/fd/{}", std::process::id(), note.as_raw_fd());
    let status = Command::new(std::env::current_exe().context("this program")?)
        .args([target.name, "--seconds", &args.seconds.to_string(), "--seed", &seed.to_string()])
        .arg("--dir")
        .arg(&args.dir)
        .args(["--current", &current])
        .status()
        .context("this program")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        Some(_) => bail!("{}: {status}", target.name),
        None => {
            found(args, target, &Current::get(&note)?, &format!("the process died of it: {status}"))?;
            Ok(false)
        }
    }
}

fn work(args: &Args, target: &Target, seed: u64, current: &PathBuf) -> Result<bool> {
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE).context("the limit of memory")?;
    let options =
        Options { time: Duration::from_secs(args.seconds), seed, grown: args.dir.join("corpus").join(target.name) };
    let note = File::options().write(true).open(current).with_context(|| current.display().to_string())?;
    let report = hunt(target, &options, &mut Current(note))?;
    let (reached, counters) = report.reached;
    println!(
        "{}: {} inputs in {} s, seed {seed}; {} kept, {reached} of {counters} counters reached",
        target.name, report.tried, args.seconds, report.corpus
    );
    match report.found {
        None => Ok(true),
        Some(input) => {
            found(args, target, &input.input, &input.why)?;
            Ok(false)
        }
    }
}

fn found(args: &Args, target: &Target, input: &[u8], why: &str) -> Result<()> {
    let path = keep(&args.dir.join("findings").join(target.name), input)?;
    println!("{}: FOUND {}\n{why}\n{}", target.name, path.display(), input.escape_ascii());
    println!("help: mend it, and put the input under a name that says what it is into fuzz/corpus/{}", target.name);
    Ok(())
}
