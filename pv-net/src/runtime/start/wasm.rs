//! Modules of WebAssembly runtimes. Such a runtime makes no network namespace and knows no containers: pv-net's launcher makes
//! the namespace, has it attached, and becomes the runtime. The container is that process, and what belongs to its group.

use super::{
    AFTER_KILL, CommandLine, End, Execute, Found, Output, Runtime, RuntimeError, State, has_ended, running, startable,
};
use crate::model::{WasmCli, WasmSpec};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The launcher's subcommand.
pub const LAUNCH: &str = "launch";

/// A module.
pub(super) struct Wasm<'a> {
    pub spec: &'a WasmSpec,
    pub execute: &'a dyn Execute,
}

impl Wasm<'_> {
    /// The arguments of the runtime. wasmtime is told everything that it may grant, since what it grants unasked depends on its
    /// version. WasmEdge has no such flags.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let spec = self.spec;
        let mut arguments: Vec<OsString> = Vec::new();
        if spec.cli == WasmCli::Wasmtime {
            let (tcp, udp) = spec.sockets.transports();
            let word = |is_granted: bool| if is_granted { "y" } else { "n" };
            let grants = format!(
                "inherit-network={},tcp={},udp={},allow-ip-name-lookup={}",
                word(tcp || udp),
                word(tcp),
                word(udp),
                word(spec.sockets.resolve)
            );
            // Its user has no directory for a cache, without which it would not start.
            arguments.extend(["run", "-C", "cache=n", "-S"].map(OsString::from));
            arguments.push(grants.into());
        }
        for (name, value) in &spec.env {
            arguments.extend(["--env".into(), format!("{name}={value}").into()]);
        }
        arguments.push(spec.module.clone().into());
        arguments.extend(spec.args.iter().map(OsString::from));
        arguments
    }

    /// The launcher ends well when the runtime has been started.
    pub(super) fn start_line(&self) -> CommandLine {
        let launcher = self.execute.launcher();
        let mut line = CommandLine::new(&launcher.call.program, &launcher.call.flags);
        line.arguments.extend([
            LAUNCH.into(),
            self.spec.name.as_str().into(),
            "--process".into(),
            self.process().into(),
        ]);
        line.arguments.extend(["--resolv-conf".into(), launcher.resolv_conf.clone().into()]);
        line.arguments.extend(["--user".into(), self.spec.user.to_string().into(), "--".into()]);
        line.arguments.push(self.spec.program.clone().into());
        line.arguments.extend(self.arguments());
        line.output(Output::Runner)
    }

    /// The file in which the launcher writes down the process.
    fn process(&self) -> PathBuf {
        self.execute.scratch("process")
    }

    fn end(&self, pid: u32, by: End) -> Result<(), RuntimeError> {
        self.execute.end(pid, by).map_err(|source| RuntimeError::Process { pid, source })
    }
}

impl Runtime for Wasm<'_> {
    fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let found = |state| Found { id: self.spec.name.to_string(), state };
        Ok(match self.state()? {
            State::Absent => Vec::new(),
            state => vec![found(state)],
        })
    }

    fn state(&self) -> Result<State, RuntimeError> {
        Ok(self.execute.written(&self.process()).map_or(State::Absent, State::Running))
    }

    fn start(&self, within: Duration) -> Result<u32, RuntimeError> {
        startable(self.state()?)?;
        let failed = match self.execute.run(&self.start_line(), within) {
            Ok(finished) if finished.code == Some(0) => match self.state()? {
                State::Running(pid) => return Ok(pid),
                State::Absent | State::Stopped | State::Changing => RuntimeError::AtOnce,
            },
            Ok(finished) => {
                let said = finished.answer.trim();
                let said = if said.is_empty() { "pv-net's launcher has failed" } else { said };
                RuntimeError::Refused { program: self.spec.program.clone(), said: said.to_owned() }
            }
            Err(e) => e,
        };
        // A launcher that was killed may have let the runtime begin just before.
        if let State::Running(pid) = self.state()? {
            self.end(pid, End::Kill)?;
        }
        self.clear()?;
        Err(failed)
    }

    fn stop(&self, patience: Duration) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        self.end(pid, End::Ask)?;
        if has_ended(self.execute, pid, patience)? { self.clear() } else { self.kill() }
    }

    fn kill(&self) -> Result<(), RuntimeError> {
        let pid = running(self.state()?)?;
        self.end(pid, End::Kill)?;
        if has_ended(self.execute, pid, AFTER_KILL)? { self.clear() } else { Err(RuntimeError::Survives(pid)) }
    }

    fn execute(&self) -> &dyn Execute {
        self.execute
    }

    fn exec_line(&self, _command: &[OsString]) -> Result<(CommandLine, Option<PathBuf>), RuntimeError> {
        Err(RuntimeError::NoPrograms)
    }

    fn clear(&self) -> Result<(), RuntimeError> {
        let file = self.process();
        self.execute.remove(&file).map_err(|source| RuntimeError::Program { program: file, source })
    }
}
