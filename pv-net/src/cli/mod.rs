//! The command line: a thin client of the API, and `run`, `check` and `doctor`, that need no daemon.

mod args;
mod client;
mod commands;
mod doctor;
mod output;
mod policy;
mod table;

use crate::app;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use args::{Args, Command};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;

/// Why a command ended.
pub(crate) enum Ended {
    /// Not done.
    Failed(Failure),
    /// There is no daemon to ask.
    NoDaemon(String),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Parses the arguments, does what they say, and says how it ended: 0 done, 1 failed, 2 wrong usage or config, 3 no
/// daemon.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            // When the terminal is gone there is nobody to tell.
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    start_tracing(&args.command);
    match run(args) {
        Ok(code) => code,
        Err(ended) => report(ended),
    }
}

fn run(args: Args) -> Result<ExitCode, Ended> {
    let paths = Paths::from(args.places);
    if matches!(args.command, Command::Run) {
        app::run(&paths)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Kind::Internal, format!("start: {e}")))?;
    runtime.block_on(commands::run(args.command, paths, args.json))
}

fn report(ended: Ended) -> ExitCode {
    match ended {
        Ended::NoDaemon(why) => {
            eprintln!("error: {why}");
            eprintln!("help: start it with: pv-net run");
            ExitCode::from(3)
        }
        Ended::Failed(failure) => {
            for message in &failure.messages {
                eprintln!("error: {}", message.error);
                if let Some(help) = &message.help {
                    eprintln!("help: {help}");
                }
            }
            ExitCode::from(if failure.kind == Kind::Usage { 2 } else { 1 })
        }
    }
}

/// Logs go to stderr; `RUST_LOG` chooses what, and `run` says more than the other commands.
fn start_tracing(command: &Command) {
    let default = if matches!(command, Command::Run) { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(terminal).with_target(false).init();
}
