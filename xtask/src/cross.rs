//! Programs without libraries of the system, for this architecture and another one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::vm::{Apt, Arch, Suite, said};

/// Makes a `cargo build` one for `arch` that links everything into the program. `cache` is for what is fetched: the
/// standard library of another architecture, where the usual compiler has none.
pub fn link_statically(command: &mut Command, cache: &Path, arch: Arch) -> Result<()> {
    let target = arch.target();
    command.args(["--target", target]);
    let mut flags = "-C target-feature=+crt-static".to_owned();
    if arch == Arch::Arm && !has_std(arch)? {
        let sysroot = debian_std(cache, arch)?;
        flags += &format!(" --sysroot {}", sysroot.display());
        command.env("RUSTC", DEBIAN_RUSTC);
    }
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", target.replace('-', "_").to_uppercase());
    if arch == Arch::Arm {
        command
            .env(variable("LINKER"), "aarch64-linux-gnu-gcc")
            .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc");
    }
    // These variables would override the settings for the target.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env(variable("RUSTFLAGS"), flags);
    Ok(())
}

/// Debian's compiler, which is installed for the eBPF programs already.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Whether the usual compiler can build for `arch`.
fn has_std(arch: Arch) -> Result<bool> {
    let sysroot = said(Command::new("rustc").args(["--print", "sysroot"]).current_dir(run::root()))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib").join(arch.target()).join("lib").is_dir())
}

/// A sysroot for Debian's compiler with the standard library of another architecture. Debian has that package only for
/// machines of that architecture, so it is unpacked and not installed.
fn debian_std(cache: &Path, arch: Arch) -> Result<PathBuf> {
    const SUITE: Suite = Suite { name: "bookworm", security: true };
    const PACKAGE: &str = "libstd-rust-web-dev";
    let help = "help: cargo xtask setup, or: rustup target add aarch64-unknown-linux-gnu";
    let version = said(Command::new(DEBIAN_RUSTC).arg("--version")).with_context(|| help.to_owned())?;
    let own = said(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    let dir = cache.join("std").join(arch.name());
    let stamp = dir.join("version");
    if std::fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == version) {
        return Ok(dir.join("sysroot"));
    }
    println!("fetching the standard library for {}", arch.name());
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    Apt::open(cache, SUITE, arch)?.unpack(&[PACKAGE.to_owned()], &dir.join("root"))?;
    let rustlib = dir.join("sysroot/lib/rustlib");
    std::fs::create_dir_all(&rustlib)?;
    let host = Arch::X86.target();
    let other = dir.join("root/usr/lib/rustlib").join(arch.target());
    ensure!(other.is_dir(), "{PACKAGE} has nothing for {}\n{help}", arch.name());
    std::os::unix::fs::symlink(Path::new(own.trim()).join("lib/rustlib").join(host), rustlib.join(host))?;
    std::os::unix::fs::symlink(other, rustlib.join(arch.target()))?;
    std::fs::write(stamp, version)?;
    Ok(dir.join("sysroot"))
}
