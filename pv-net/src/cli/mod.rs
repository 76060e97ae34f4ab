//! The command line: a thin client of the API; and `run`, `check` and `doctor`, which need no daemon.

mod args;
mod client;
mod commands;
mod containers;
mod direct;
mod doctor;
mod output;
mod pantavisor;
mod policy;
mod privileges;
mod runtime;
mod starts;
mod table;

use crate::app;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind, Message};
use crate::kernel::broker;
use crate::runner;
use crate::runner::launcher::Launch;
use args::{Args, Command};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The exit code when the time that the caller has given is over, as that of timeout(1).
const TIME_IS_UP: u8 = 124;

/// Why a command failed.
pub(crate) enum Ended {
    /// It was not done.
    Failed(Failure),
    /// No daemon can be reached.
    NoDaemon(Message),
    /// The time that the caller has given is over.
    TimeIsUp(Message),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The commands and their flags, for manual pages.
#[must_use]
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// Parses the arguments and runs the command. The exit code is 0 for success, 1 for failure, 2 for wrong usage or
/// configuration, 3 when no daemon is running. `containers exec` has that of the command that it has run.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            // If the terminal is gone, nobody can be told.
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
    let pv_ctrl = args.places.pv_ctrl.clone();
    let paths = Paths::from(args.places);
    if let Command::Run { runner } = args.command {
        app::run(&paths, runner)?;
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(args.command, Command::Runner) {
        runner::run(&paths)?;
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(args.command, Command::Broker) {
        broker::run().map_err(|e| Failure::new(Kind::Internal, format!("broker: {e}")))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Launch { name, process, resolv_conf, user, waiting, words } = args.command {
        runtime::launch(&paths, &Launch { name, process, resolv_conf, user, is_waiting: waiting, words })?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Kind::Internal, format!("start: {e}")))?;
    if let Command::Pantavisor { command } = args.command {
        runtime.block_on(pantavisor::run(&pv_ctrl, command, args.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    runtime.block_on(commands::run(args.command, paths, args.json))
}

fn report(ended: Ended) -> ExitCode {
    match ended {
        Ended::NoDaemon(message) => {
            tell(&message);
            ExitCode::from(3)
        }
        Ended::TimeIsUp(message) => {
            tell(&message);
            ExitCode::from(TIME_IS_UP)
        }
        Ended::Failed(failure) => {
            failure.messages.iter().for_each(tell);
            ExitCode::from(if failure.kind == Kind::Usage { 2 } else { 1 })
        }
    }
}

fn tell(message: &Message) {
    eprintln!("error: {}", message.error);
    if let Some(help) = &message.help {
        eprintln!("help: {help}");
    }
}

/// Starts logging to stderr. `RUST_LOG` selects what is logged; the default of `run` and `runner` is more than that of
/// other commands.
fn start_tracing(command: &Command) {
    let default =
        if matches!(command, Command::Run { .. } | Command::Runner) { LevelFilter::INFO } else { LevelFilter::WARN };
    // `Targets` knows levels by module, and not the spans of `EnvFilter`, which costs half a megabyte of regular
    // expressions.
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(default));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal()).with_target(false);
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}
