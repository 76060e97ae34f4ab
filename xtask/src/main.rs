//! Build and test runner of pv-net: `cargo xtask setup`, `build`, `demo`, `test`, `bench`, `vm`, `fuzz`,
//! `dist`, `ci`.

mod bench;
mod build;
mod ci;
mod cross;
mod demo;
mod dist;
mod fault;
mod fuzz;
#[cfg(test)]
mod layers;
mod run;
mod setup;
mod signals;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build and test runner of pv-net.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need, on Debian 12 or beside a rustup nightly. Does nothing when all is there
    Setup(setup::Args),
    /// Build the eBPF programs and the daemon
    Build(build::Args),
    /// Show pv-net at work in namespaces of its own: three containers, two pools, a killed daemon. Needs root
    Demo,
    /// Run all tests. Those that touch the kernel need root
    Test(test::Args),
    /// Compare pv-net with what one would use without it, side by side. Needs root
    Bench(bench::Args),
    /// Boot the kernels of distributions in emulated machines, and check the data plane on each
    Vm(vm::Args),
    /// Feed what reads configuration, state, netlink messages and packets with what is made up
    Fuzz(fuzz::Args),
    /// Make what is installed: static programs for two architectures, packages for Debian, archives and checksums
    Dist(dist::Args),
    /// What CI runs: formatting, lints, docs, licences, all tests, fuzzing and kernels. A skipped test fails it
    Ci,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Task::Setup(args) => setup::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Demo => demo::run(),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::from(if why.is::<fault::Misuse>() { 2 } else { 1 })
        }
    }
}
