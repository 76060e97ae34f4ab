//! The command line, and whether the machine can run what it asks for.

use crate::case::{Case, Metric};
use crate::fault::misuse;
use crate::{cases, cpu, load};
use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Benchmarks: pv-net beside what a user would otherwise use on the same machine.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", disable_help_subcommand = true, max_term_width = 100)]
pub struct Options {
    /// Cases to run; all unless given
    #[arg(value_name = "CASE")]
    pub cases: Vec<String>,
    /// Say which cases there are
    #[arg(long)]
    pub list: bool,
    /// Rounds: each measures every path once, in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Length of one measurement
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds)]
    pub seconds: Duration,
    /// Only these loads, such as `rr-same,stream4-split`, in cases that send traffic
    #[arg(long, value_delimiter = ',', value_name = "LOAD")]
    pub loads: Vec<String>,
    /// Only paths whose name contains one of these; the first path of a case, the baseline, always runs
    #[arg(long, value_delimiter = ',', value_name = "PATH")]
    pub paths: Vec<String>,
    /// Another build of the daemon: each of pv-net's paths is measured with it, too, in the same rounds
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Small numbers of containers and rules: for a quick look, and for the tests
    #[arg(long)]
    pub small: bool,
    /// Folder for JSON, charts and tables; `tables.md` there has the tables of all cases that were run
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// Only check the arguments and the machine
    #[arg(long, hide = true)]
    pub check: bool,
}

/// The length of a measurement.
fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.05..=60.0).contains(&value) {
        return Err("0.05 to 60 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(value))
}

impl Options {
    /// The cases to run, when this machine can run them.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn chosen(&self) -> Result<Vec<Box<dyn Case>>> {
        let mut all = cases::all();
        if let Some(name) = self.cases.iter().find(|n| !all.iter().any(|c| c.name() == n.as_str())) {
            let known: Vec<&str> = all.iter().map(|c| c.name()).collect();
            return Err(misuse(
                format!("case {name:?}: there is none of this name"),
                format!("one of {}", known.join(", ")),
            ));
        }
        if let Some(name) = self.loads.iter().find(|n| load::Load::named(n).is_none()) {
            let known: Vec<String> = load::Load::all().iter().map(load::Load::name).collect();
            return Err(misuse(
                format!("load {name:?}: there is none of this name"),
                format!("one of {}", known.join(", ")),
            ));
        }
        all.retain(|c| self.cases.is_empty() || self.cases.iter().any(|n| n == c.name()));
        let paths: Vec<String> = all.iter().flat_map(|c| c.paths(self)).map(|path| path.name).collect();
        if let Some(name) = self.paths.iter().find(|n| !paths.iter().any(|path| path.contains(n.as_str()))) {
            let what = format!("path {name:?}: no path's name contains it");
            let known: std::collections::BTreeSet<String> = paths.into_iter().collect();
            return Err(misuse(what, format!("there are: {}", Vec::from_iter(known).join("; "))));
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(misuse(
                "benchmarks make network namespaces and load eBPF programs: not root",
                "run it as root",
            ));
        }
        for program in all.iter().flat_map(|c| c.needs()).chain(&["ip", "nsenter", "ping"]) {
            if !in_path(program) {
                return Err(misuse(format!("{program}: no such program"), "install it, or run `cargo xtask setup`"));
            }
        }
        // With `--check` the daemon may not be built yet.
        if !self.check && !harness::binary().is_ok_and(|file| file.is_file()) {
            return Err(misuse("pv-net: not built", "run `cargo xtask bench`, or name it in PV_NET_BIN"));
        }
        if let Some(file) = self.against.as_ref().filter(|file| !file.is_file()) {
            return Err(misuse(
                format!("--against {}: no such file", file.display()),
                "name the pv-net of another build, such as one of a second checkout",
            ));
        }
        if !load::congestion_is_known() {
            return Err(misuse(
                format!("TCP congestion control {:?}: this kernel has none of this name", load::CONGESTION),
                format!("load the module tcp_{}", load::CONGESTION),
            ));
        }
        if cpu::allowed().len() < 2 && self.loads.iter().any(|l| l.ends_with("split")) {
            return Err(misuse(
                "one CPU: \"split\" loads need two",
                "leave out --loads, or name loads that end in \"same\"",
            ));
        }
        Ok(all)
    }

    /// The traffic loads of a case: those that the user asked for, else `usual`. Loads that need two CPUs are left out
    /// on a machine with one.
    #[must_use]
    pub fn traffic(&self, usual: &[&str]) -> Vec<Metric> {
        let asked: Vec<&str> = self.loads.iter().map(String::as_str).collect();
        let names = if asked.is_empty() { usual } else { &asked };
        let loads = names.iter().filter_map(|n| load::Load::named(n));
        let two = cpu::allowed().len() > 1;
        loads.filter(|l| two || l.pin == cpu::Pin::Same).map(Metric::traffic).collect()
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
