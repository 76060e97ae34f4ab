//! Benchmarks: compares pv-net with what a user would otherwise use on the same machine. Started by `cargo xtask
//! bench`.

mod bpf;
mod case;
mod cases;
mod chart;
mod cpu;
mod fault;
mod interrupt;
mod load;
mod machine;
mod nets;
mod options;
mod pvnet;
mod report;
mod rules;
mod runner;
mod stats;
mod table;
mod wire;
mod witness;

use anyhow::Result;
use clap::Parser;
use fault::{Fault, failure};
use options::Options;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why:#}");
            match why.downcast_ref::<Fault>() {
                Some(fault) => {
                    eprintln!("help: {}", fault.help);
                    ExitCode::from(fault.code)
                }
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    if options.list {
        let all = cases::all();
        let width = all.iter().map(|case| case.name().len()).max().unwrap_or_default();
        for case in all {
            println!("{:<width$}  {}", case.name(), case.about());
        }
        return Ok(());
    }
    let chosen = options.chosen()?;
    if options.check {
        return Ok(());
    }
    interrupt::catch()?;
    // Not in small runs: these are tests, and run beside others.
    if !options.small {
        cpu::go_first();
    }
    report::writable(&options.out)?;
    let mut failed = Vec::new();
    for case in chosen {
        let name = case.name();
        match runner::run(case.as_ref(), options) {
            Ok(report) => {
                report.print();
                report.save(&options.out)?;
                failed.extend(report.failed.iter().map(|(path, _)| format!("{name}: {path}")));
            }
            // The other cases are measured even if this one cannot be.
            Err(why) => {
                interrupt::check()?;
                println!("\n{name}: {}\n  {why:#}\n", case.about());
                failed.push(format!("{name}: all"));
            }
        }
    }
    report::join(&options.out)?;
    println!("JSON and a chart of each case, tables of all in tables.md: {}", options.out.display());
    if !failed.is_empty() {
        let help = "why is with each case above; figures of other paths stand";
        return Err(failure(format!("paths without figures: {}", failed.join("; ")), help));
    }
    Ok(())
}
