//! Puts a container's network into its runtime's configuration: LXC's lines, or the hooks of an OCI bundle.

use super::{Replaced, module};
use crate::config::load;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use crate::model::{Container, ContainerKind, ContainerName, NetworkMode, RuntimeSpec, Startable};
use crate::runtime::oci::{self, Patch};
use crate::runtime::start::Launcher;
use crate::runtime::{Call, InTheWay, lxc};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The usual directory of the daemon's socket.
pub const RUN_DIR: &str = "/run/pv-net";

/// A failure of the caller: a wrong file or argument.
pub fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, format!("{what}: {why}"))
}

fn from_setting(file: &Path, e: &InTheWay) -> Failure {
    failed(file.display(), e).help(e.help)
}

/// What the hooks of containers are told.
#[derive(Clone, Debug)]
pub struct Hooks {
    call: Call,
    resolv_confs: PathBuf,
}

impl Hooks {
    /// Hooks that call this program.
    ///
    /// # Errors
    /// When it is not known where the program is.
    pub fn of_this_program(paths: &Paths) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| failed("this program", e))?;
        let is_usual = paths.run_dir == Path::new(RUN_DIR);
        let run_dir = absolute(paths.run_dir.clone())?;
        let flags = if is_usual { Vec::new() } else { vec![format!("--run-dir={}", run_dir.display())] };
        Ok(Self { call: Call { program, flags }, resolv_confs: absolute(paths.resolv_confs())? })
    }

    /// How a container is started whose runtime makes no network namespace.
    pub(super) fn launcher(&self, name: &ContainerName) -> Launcher {
        Launcher { call: self.call.clone(), resolv_conf: self.resolv_conf(name) }
    }

    fn resolv_conf(&self, name: &ContainerName) -> PathBuf {
        self.resolv_confs.join(format!("{name}.conf"))
    }

    /// The lines for a container of LXC.
    #[must_use]
    pub fn lxc_lines(&self, container: &Container) -> String {
        let resolv_conf = self.resolv_conf(&container.name);
        lxc::lines(&self.call, &container.name, &container.hostname, Some(&resolv_conf))
    }

    /// Puts the lines into LXC's configuration of the container.
    ///
    /// # Errors
    /// When the file cannot be replaced, or has a network of its own.
    pub fn write_lxc(&self, container: &Container, file: &Path) -> Result<(), Failure> {
        let config = Replaced::read(file)?;
        let placed = lxc::place(config.text(), &self.lxc_lines(container)).map_err(|e| from_setting(file, &e))?;
        config.with(&placed)
    }

    /// Puts the network into a bundle. Returns the `resolv.conf` that is not mounted, because it is not there.
    ///
    /// # Errors
    /// When its file cannot be replaced, or has another network namespace.
    pub fn patch_oci(
        &self,
        container: &Container,
        bundle: &Path,
        netns: Option<&Path>,
    ) -> Result<Option<PathBuf>, Failure> {
        let file = oci::file(bundle);
        let bundled = Replaced::read(&file)?;
        let config: Value = serde_json::from_str(bundled.text()).map_err(|e| failed(file.display(), e))?;
        let resolv_conf = self.resolv_conf(&container.name);
        let has_resolv_conf = resolv_conf.exists();
        let patch = Patch {
            call: &self.call,
            name: &container.name,
            hostname: &container.hostname,
            resolv_conf: &resolv_conf,
            has_resolv_conf,
            netns,
        };
        let patched = patch.apply(&config).map_err(|e| from_setting(&file, &e))?;
        bundled.with(&format!("{patched:#}\n"))?;
        Ok((!has_resolv_conf).then_some(resolv_conf))
    }

    /// Sees to it that a container starts in its pools and nowhere else.
    ///
    /// # Errors
    /// When its runtime's configuration or its program is not there, cannot be replaced or used, or has another network.
    pub fn prepare(&self, container: &Container, runtime: &RuntimeSpec) -> Result<(), Failure> {
        match runtime {
            RuntimeSpec::Lxc(spec) => self.write_lxc(container, &spec.path.join(&spec.id).join("config")),
            RuntimeSpec::Oci(spec) => self.patch_oci(container, &spec.bundle, None).map(|_| ()),
            // Its launcher makes the namespace, and has it attached.
            RuntimeSpec::Wasm(spec) => module::check(spec),
        }
    }
}

/// The `run.json` of a declared container.
///
/// # Errors
/// When there is none, or it is wrong.
pub fn declared(paths: &Paths, name: &ContainerName) -> Result<Container, Failure> {
    let file = run_file(paths, name);
    if !file.exists() {
        let why = format!("it is not declared: there is no {}", file.display());
        return Err(failed(format!("container {name}"), why)
            .help("write its run.json there, or name the directory with --containers"));
    }
    Ok(load::declared_run(&file, name, paths.form())?)
}

/// A declared container, and how it is started.
///
/// # Errors
/// When it is not declared, or its `run.json` does not say how it is started.
pub(super) fn startable(paths: &Paths, name: &ContainerName) -> Result<(Container, Startable), Failure> {
    let container = declared(paths, name)?;
    match container.startable.clone() {
        Some(startable) => Ok((container, startable)),
        None => Err(failed(format!("container {name}"), "its run.json does not say how it is started")
            .help("write \"runtime\" into it, or start it by its runtime")),
    }
}

/// A container that is declared for a runtime of this kind, with interfaces in pools.
///
/// # Errors
/// When it is not declared, or declared otherwise.
pub fn declared_for(paths: &Paths, name: &str, kind: ContainerKind) -> Result<Container, Failure> {
    let name: ContainerName = name.parse().map_err(|e| failed(format!("container {name:?}"), e))?;
    let container = declared(paths, &name)?;
    let file = run_file(paths, &name);
    let wrong = |why: String, help: &str| Err(failed(file.display(), why).help(help));
    if container.kind != kind {
        let text = json!(kind).as_str().unwrap_or_default().to_owned();
        return wrong("type: another one starts this container".to_owned(), &format!("set \"type\": \"{text}\""));
    }
    if container.mode != NetworkMode::Pool {
        return wrong(
            "network.mode: the container is in no pool".to_owned(),
            "give it interfaces, or leave its runtime's configuration as it is",
        );
    }
    Ok(container)
}

fn run_file(paths: &Paths, name: &ContainerName) -> PathBuf {
    paths.containers.join(name.as_str()).join("run.json")
}

/// A path for files that are read in another working directory.
///
/// # Errors
/// When the path is empty.
pub fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|e| failed(path.display(), e))
}
