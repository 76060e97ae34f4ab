//! Benchmarks: pv-net beside what a user would otherwise use on the same machine. Started by `cargo xtask bench`.

mod bpf;
mod case;
mod cases;
mod chart;
mod cpu;
mod interrupt;
mod load;
mod nets;
mod options;
mod pvnet;
mod report;
mod runner;
mod stats;
mod wire;
mod witness;

use anyhow::{Context, Result};
use clap::Parser;
use options::{Bad, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why:#}");
            match why.downcast_ref::<Bad>() {
                Some(bad) => {
                    eprintln!("help: {}", bad.help);
                    ExitCode::from(2)
                }
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    if options.list {
        for case in cases::all() {
            println!("{:<12} {}", case.name(), case.about());
        }
        return Ok(());
    }
    let chosen = options.chosen()?;
    if options.check {
        return Ok(());
    }
    interrupt::catch()?;
    // Small runs are for tests, which run beside others.
    if !options.small {
        cpu::go_first();
    }
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    for case in chosen {
        let report = runner::run(case.as_ref(), options).with_context(|| case.name())?;
        report.print();
        report.save(&options.out)?;
    }
    println!("JSON, charts and tables: {}", options.out.display());
    Ok(())
}
