//! `cargo xtask bench`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{run, setup, signals};

/// Arguments of `cargo xtask bench`, which are passed on to the benchmarks.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Cases and options; `--list` says which cases there are, `--help` which options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CASE")]
    words: Vec<String>,
}

/// Builds the benchmarks, lets them check the arguments, builds the daemon as it is shipped, and runs the benchmarks.
pub fn run(args: &Args) -> Result<()> {
    let only_says = args.words.iter().any(|w| ["--list", "--help", "-h"].contains(&w.as_str()));
    if !only_says {
        run::need_root("benchmarks make network namespaces and load eBPF programs")?;
    }
    signals::catch()?;
    setup::ensure(only_says)?;
    run::run(run::cargo().args(["build", "--quiet", "--release", "--package", "pv-net-tests", "--bin", "bench"]))?;
    let bin = run::target_dir()?.join("release");
    if only_says {
        return bench(&bin, &args.words);
    }
    // Arguments are checked first, so that a wrong one does not cost the minutes of the other build.
    bench(&bin, &[args.words.as_slice(), &["--check".to_owned()]].concat())?;
    run::run(run::cargo().args(["build", "--release", "--package", "pv-net"]))?;
    bench(&bin, &args.words)
}

fn bench(bin: &Path, words: &[String]) -> Result<()> {
    let mut command = Command::new(bin.join("bench"));
    command.args(words).env("PV_NET_BIN", bin.join("pv-net")).env("PATH", run::search_path()?).current_dir(run::root());
    let status = signals::run(&mut command).with_context(|| run::show(&command))?;
    match status.code() {
        Some(0) => Ok(()),
        // The benchmarks have printed the error themselves.
        Some(code) => std::process::exit(code),
        None => bail!("{}: {status}", run::show(&command)),
    }
}
