//! `cargo xtask test`: all tests, with a count at the end that includes what was skipped and why.

mod programs;

use anyhow::{Context, Result, bail};

use crate::{run, setup};

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Fail when a test was skipped
    #[arg(long, env = "CI", value_parser = clap::builder::FalseyValueParser::new())]
    no_skips: bool,
}

impl Args {
    /// Every test, and none may be skipped.
    pub fn strict() -> Self {
        Self { filter: None, no_skips: true }
    }
}

#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
}

/// Builds the daemon as it is shipped, runs all tests against it, and sums up.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    run::run(run::cargo().args(["build", "--release", "--package", "pv-net"]))?;
    let daemon = run::target_dir()?.join("release/pv-net");
    let skips = tempfile()?;
    let mut sum = Sum::default();

    let mut flags = Vec::new();
    if run::is_root() {
        flags.push("--include-ignored");
    }
    flags.extend(args.filter.as_deref());
    let env = [("PV_NET_BIN", daemon.as_path()), ("PV_NET_SKIPS", skips.as_path())];
    let broken = programs::run(&programs::build()?, &flags, &env, |output| {
        print!("{output}");
        output.lines().for_each(|line| sum.add(line));
    })?;
    run::run(run::cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;

    let skipped = std::fs::read_to_string(&skips).context("the list of skipped tests")?;
    std::fs::remove_file(&skips).context("the list of skipped tests")?;
    let mut skipped: Vec<String> = skipped.lines().map(str::to_owned).collect();
    if !run::is_root() {
        skipped.push("every test that touches the kernel: not root".to_owned());
    }
    for line in &skipped {
        println!("SKIP {line}");
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, skipped.len());
    if !broken.is_empty() || sum.failed > 0 {
        bail!("tests failed: {}", broken.join(", "));
    }
    if sum.passed == 0 {
        bail!("no test ran: {:?} matches none", args.filter.as_deref().unwrap_or(""));
    }
    if args.no_skips && !skipped.is_empty() {
        bail!("{} skipped: none may be here", skipped.len());
    }
    Ok(())
}

impl Sum {
    /// Takes libtest's `test result: ok. 3 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        for part in counts.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse::<u64>().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }
}

fn tempfile() -> Result<std::path::PathBuf> {
    let path = std::env::temp_dir().join(format!("pv-net-skips-{}", std::process::id()));
    std::fs::write(&path, "").with_context(|| format!("{}", path.display()))?;
    Ok(path)
}
