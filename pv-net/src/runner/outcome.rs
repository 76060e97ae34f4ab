//! What comes of operations on containers, for people and for the states.

use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, OciSpec, RunStatus, RuntimeSpec};
use crate::runtime::start::{Runtime, RuntimeError};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The state of a container after an operation that has failed; `before` was the one before it.
pub(super) fn after_failure(
    name: &ContainerName,
    failure: &Failure,
    before: RunStatus,
    runtime: &dyn Runtime,
) -> RunStatus {
    let why = failure.line();
    let why = why.strip_prefix(&format!("container {name}: ")).unwrap_or(&why).to_owned();
    // A request at the wrong time is no fault of the container.
    let is_wrong = failure.kind == Kind::Conflict;
    match runtime.pid() {
        Ok(Some(pid)) => RunStatus { why: (!is_wrong).then_some(why), ..RunStatus::running(pid) },
        Ok(None) if is_wrong && before.pid.is_none() => before,
        Ok(None) if is_wrong => RunStatus::stopped(),
        Ok(None) | Err(_) => RunStatus::failed(why),
    }
}

/// How a process has ended, in words.
pub(super) fn in_words(how: Option<ExitStatus>) -> String {
    match how.map(|how| (how.code(), how.signal())) {
        Some((Some(code), _)) => format!("it has ended by itself with exit status {code}"),
        Some((None, Some(signal))) => format!("it was ended by signal {signal}"),
        Some((None, None)) | None => "it has ended by itself".to_owned(),
    }
}

/// The failure of an operation on a container.
pub(super) fn refused(name: &ContainerName, e: &RuntimeError) -> Failure {
    let kind = match e {
        RuntimeError::Running(_) | RuntimeError::NotRunning | RuntimeError::Changing => Kind::Conflict,
        RuntimeError::Program { .. } | RuntimeError::NoPrograms => Kind::Usage,
        _ => Kind::Internal,
    };
    let failure = Failure::new(kind, format!("container {name}: {e}"));
    match e {
        RuntimeError::Running(_) => failure.help(format!("pv-net containers restart {name}")),
        RuntimeError::NotRunning => failure.help(format!("pv-net containers start {name}")),
        RuntimeError::Program { .. } => {
            failure.help("install the runtime, or name its program in the container's run.json")
        }
        RuntimeError::Slow { .. } => failure.help("what was started is killed: look at the runtime's configuration"),
        RuntimeError::AtOnce => failure.help("look at its program: it runs as soon as there is one that does not end"),
        RuntimeError::Refused { .. }
        | RuntimeError::Changing
        | RuntimeError::NoPrograms
        | RuntimeError::Late { .. }
        | RuntimeError::GivenUp
        | RuntimeError::Output(_)
        | RuntimeError::Survives(_)
        | RuntimeError::Answer { .. }
        | RuntimeError::Process { .. } => failure,
    }
}

/// Whether two containers are one in their runtime, however their paths are spelled, or would write to the same
/// configuration.
pub(super) fn are_same(one: &RuntimeSpec, other: &RuntimeSpec) -> bool {
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match (one, other) {
        (RuntimeSpec::Lxc(one), RuntimeSpec::Lxc(other)) => {
            one.id == other.id && place(&one.path) == place(&other.path)
        }
        (RuntimeSpec::Oci(one), RuntimeSpec::Oci(other)) => {
            let root = |spec: &OciSpec| spec.root.as_deref().map(place);
            let are_one = one.id == other.id && one.program.file_name() == other.program.file_name();
            place(&one.bundle) == place(&other.bundle) || (are_one && root(one) == root(other))
        }
        (RuntimeSpec::Wasm(one), RuntimeSpec::Wasm(other)) => one.name == other.name,
        (RuntimeSpec::Lxc(_) | RuntimeSpec::Oci(_) | RuntimeSpec::Wasm(_), _) => false,
    }
}

/// Whether two modules would run as one user: each could end the other, and read its memory.
pub(super) fn share_user(one: &RuntimeSpec, other: &RuntimeSpec) -> bool {
    matches!((one, other), (RuntimeSpec::Wasm(one), RuntimeSpec::Wasm(other)) if one.user == other.user)
}

/// Whether a process is in this one's network namespace.
pub(super) fn shares_network(pid: u32) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let own = id(Path::new("/proc/self/ns/net"));
    own.is_some() && own == id(&PathBuf::from(format!("/proc/{pid}/ns/net")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LxcSpec;
    use std::os::unix::fs::symlink;

    #[test]
    fn containers_are_the_same_however_their_paths_are_spelled() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).expect("made");
        symlink(&real, &link).expect("linked");
        let lxc = |path: &Path, id: &str| RuntimeSpec::Lxc(LxcSpec { path: path.to_owned(), id: id.to_owned() });
        assert!(are_same(&lxc(&real, "web"), &lxc(&link, "web")));
        assert!(!are_same(&lxc(&real, "web"), &lxc(&real, "db")));
        let oci = |program: &str, bundle: &Path, id: &str| {
            let (program, bundle, id) = (program.into(), bundle.to_owned(), id.to_owned());
            RuntimeSpec::Oci(OciSpec { program, bundle, id, root: None })
        };
        let other = dir.path().join("other");
        assert!(are_same(&oci("runc", &real, "web"), &oci("crun", &link, "db")), "one bundle");
        assert!(are_same(&oci("runc", &real, "web"), &oci("/usr/bin/runc", &other, "web")), "one id");
        assert!(!are_same(&oci("runc", &real, "web"), &oci("crun", &other, "web")));
        assert!(!are_same(&oci("runc", &real, "web"), &lxc(&real, "web")));
    }
}
