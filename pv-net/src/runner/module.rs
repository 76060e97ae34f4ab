//! Whether a module can be started, as far as its files tell that: before a module that runs is stopped for it.

use super::execute::PATH;
use super::mounts::HIDDEN;
use crate::failure::{Failure, Kind};
use crate::model::WasmSpec;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, format!("{what}: {why}"))
}

/// Checks the program and the module.
///
/// # Errors
/// When one of them is not there, the user that it will have may not use it, or it is hidden from the program.
pub(super) fn check(spec: &WasmSpec) -> Result<(), Failure> {
    let program = found(&spec.program);
    let (usable, readable) = as_user(spec.user, || (usable(&program), readable(&spec.module)))
        .map_err(|e| failed(format!("user {}", spec.user), e))?;
    usable.map_err(|e| {
        failed(program.display(), e).help("install the runtime, or name its program in the container's run.json")
    })?;
    readable.map_err(|e| {
        let help = format!("put the module there, so that user {} can read it", spec.user);
        failed(spec.module.display(), e).help(help)
    })?;
    for path in [&program, &spec.module] {
        if is_hidden(path) {
            let help = "put it into another directory: the runtime sees nothing of /run";
            return Err(failed(path.display(), "is in /run").help(help));
        }
    }
    Ok(())
}

/// The program, which may be a name that is looked for in the usual directories.
fn found(program: &Path) -> PathBuf {
    if program.is_absolute() {
        return program.to_owned();
    }
    let mut places = PATH.split(':').map(|dir| Path::new(dir).join(program));
    places.find(|path| path.is_file()).unwrap_or_else(|| program.to_owned())
}

fn usable(program: &Path) -> io::Result<()> {
    let about = program.metadata()?;
    let may = about.is_file() && about.permissions().mode() & 0o111 != 0;
    if may { Ok(()) } else { Err(io::Error::other("is no program")) }
}

fn readable(module: &Path) -> io::Result<()> {
    // A pipe would wait for somebody who writes.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(module)?;
    if file.metadata()?.is_file() { Ok(()) } else { Err(io::Error::other("is no regular file")) }
}

/// Whether a file is where the program sees nothing, however its path is spelled.
fn is_hidden(path: &Path) -> bool {
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = place(path);
    HIDDEN.iter().any(|dir| path.starts_with(place(Path::new(dir))))
}

/// Does `work` with the rights to files of a user. They are a thread's own, so it is done by another thread.
fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            rustix::thread::set_thread_groups(&[])?;
            setfsgid(Gid::from_raw(user));
            setfsuid(Uid::from_raw(user));
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Sockets, WasmCli};
    use std::collections::BTreeMap;

    #[test]
    fn what_the_program_does_not_see() {
        assert!(is_hidden(Path::new("/run/app.wasm")) && is_hidden(Path::new("/run/../run/a/b")));
        assert!(!is_hidden(Path::new("/runner/app.wasm")) && !is_hidden(Path::new("/etc/app.wasm")));
    }

    #[test]
    fn what_a_program_would_not_see_is_not_started() {
        // Only root can put something there.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dirs = [tempfile::tempdir(), tempfile::tempdir_in("/run")].map(|dir| dir.expect("a directory"));
        let [seen, hidden] = dirs.each_ref().map(|dir| dir.path().join("app.wasm"));
        let link = dirs[0].path().join("link.wasm");
        std::fs::write(&seen, "").expect("written");
        std::fs::copy("/bin/true", &hidden).expect("copied");
        std::os::unix::fs::symlink(&hidden, &link).expect("linked");
        let checked = |program: &Path, module: &Path| {
            check(&WasmSpec {
                name: "web".parse().expect("a name"),
                program: program.to_owned(),
                cli: WasmCli::default(),
                module: module.to_owned(),
                args: Vec::new(),
                env: BTreeMap::new(),
                user: 0,
                sockets: Sockets::default(),
            })
        };
        let sh = Path::new("sh");
        checked(sh, &seen).expect("both are seen");
        for (program, module) in [(sh, &hidden), (sh, &link), (&hidden, &seen)] {
            let failure = checked(program, module).expect_err("it is hidden");
            assert!(failure.line().contains("is in /run"), "{failure}");
        }
    }

    #[test]
    fn files_that_are_no_modules() {
        let dir = tempfile::tempdir().expect("a directory");
        let (pipe, module) = (dir.path().join("pipe"), dir.path().join("app.wasm"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        std::fs::write(&module, "").expect("written");
        for path in [&*pipe, dir.path()] {
            assert!(readable(path).expect_err("no file").to_string().contains("no regular file"));
        }
        readable(&module).expect("a file");
        assert!(usable(&module).expect_err("no program").to_string().contains("no program"));
        usable(&found(Path::new("sh"))).expect("a program");
        assert_eq!(found(Path::new("pv-net-no-such-program")), Path::new("pv-net-no-such-program"));
        std::fs::set_permissions(&module, std::fs::Permissions::from_mode(0o600)).expect("set");
        // Only root has another user's rights.
        if nix::unistd::geteuid().is_root() {
            let refused = as_user(65534, || readable(&module)).expect("asked").expect_err("it is root's alone");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            readable(&module).expect("this thread is root's");
        }
    }
}
