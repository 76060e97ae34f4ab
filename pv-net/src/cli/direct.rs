//! `containers exec` and `containers wait`: this process calls the container's runtime itself. What is executed is what its
//! user says, who is root; the runner, which other programs may ask, executes nothing of the kind.

use super::Ended;
use super::output::{pretty, say};
use crate::daemon::Paths;
use crate::failure::{Failure, Kind, Message};
use crate::model::Ending;
use crate::runner::Direct;
use crate::runtime::start::{RuntimeError, Stream, Take, Waited};
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What is added to the number of the signal that has ended a command.
const BY_SIGNAL: i32 = 128;

/// Passes on what the command says.
struct Through;

impl Take for Through {
    fn take(&mut self, from: Stream, bytes: &[u8]) -> io::Result<()> {
        match from {
            Stream::Output => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Stream::Errors => io::stderr().write_all(bytes),
        }
    }
}

fn seconds(timeout: Option<u32>) -> Option<Duration> {
    timeout.map(|secs| Duration::from_secs(secs.into()))
}

fn internal(e: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Internal, format!("containers exec: {e}"))
}

/// The first message of a failure.
fn time_is_up(failure: Failure) -> Ended {
    let message = failure.messages.into_iter().next();
    Ended::TimeIsUp(message.unwrap_or(Message { error: "the time is up".to_owned(), help: None }))
}

/// Runs a command in a container, and passes on its output and its exit status.
pub(super) async fn exec(
    paths: &Paths,
    name: &str,
    command: Vec<OsString>,
    timeout: Option<u32>,
) -> Result<ExitCode, Ended> {
    let (waits, given_up) = UnixStream::pair().map_err(internal)?;
    let direct = Direct::new(paths, name)?.until(given_up.into());
    let catch = |kind| signal(kind).map_err(internal);
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    let mut quit = catch(SignalKind::quit())?;
    let within = seconds(timeout);
    let mut work = tokio::task::spawn_blocking(move || {
        let done = direct.exec(&command, within, &mut Through);
        (done, direct)
    });
    let (ended, by) = tokio::select! {
        ended = &mut work => (Some(ended), None),
        _ = interrupt.recv() => (None, Some(SignalKind::interrupt())),
        _ = terminate.recv() => (None, Some(SignalKind::terminate())),
        _ = hangup.recv() => (None, Some(SignalKind::hangup())),
        _ = quit.recv() => (None, Some(SignalKind::quit())),
    };
    // The runtime's program is in a process group of its own, and has not got the signal.
    drop(waits);
    let ended = match ended {
        Some(ended) => ended,
        None => work.await,
    };
    let (done, direct) = ended.map_err(internal)?;
    let code = match (done, by) {
        (Ok(Some(code)), _) => code,
        (Err(RuntimeError::GivenUp), Some(by)) => BY_SIGNAL + by.as_raw_value(),
        // Its reader has hung up, as with `| head`.
        (Err(RuntimeError::Output(e)), _) if e.kind() == ErrorKind::BrokenPipe => 0,
        (Err(e @ RuntimeError::Late { .. }), _) => return Err(time_is_up(direct.refused(&e))),
        (Err(e), _) => return Err(direct.refused(&e).into()),
        (Ok(None), _) => return Err(internal("the runtime's program was ended by a signal").into()),
    };
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Waits for the end of a container, and says how it has ended.
pub(super) fn wait(paths: &Paths, name: &str, timeout: Option<u32>, json: bool) -> Result<(), Ended> {
    let direct = Direct::new(paths, name)?;
    let within = seconds(timeout);
    match direct.wait(within).map_err(|e| direct.refused(&e))? {
        Waited::Ended(ending) if json => say(&pretty(&json!({"name": name, "ending": ending}))),
        Waited::Ended(ending) => say(&format!("container {name} has ended{}", how(ending))),
        Waited::Runs => {
            let secs = within.unwrap_or_default().as_secs();
            let error = format!("container {name}: it goes on after {secs} s");
            return Err(Ended::TimeIsUp(Message { error, help: None }));
        }
    }
    Ok(())
}

/// How a container has ended, if that is known.
fn how(ending: Ending) -> String {
    match (ending.exit_status, ending.signal) {
        (Some(status), _) => format!(" with exit status {status}"),
        (None, Some(signal)) => format!(" by signal {signal}"),
        (None, None) => String::new(),
    }
}
