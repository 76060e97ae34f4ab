//! Builds `pv-net-ebpf`, and puts the object with its SHA-256 where `kernel::bpf` includes it. The hash is stored
//! separately so that a daemon which adopts pinned programs need not read the object.
//!
//! Two toolchains work: rustup's nightly with `rust-src`, or Debian's `rustc` with its precompiled `core` for the BPF
//! target. `cargo xtask setup` installs one of them.

use lzma_rust2::{LzmaOptions, LzmaWriter};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;
use sha2::{Digest, Sha256};
use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "pv-net-ebpf";
/// Without the second flag the linker turns each `memset`, however small, into a call of a byte-by-byte loop.
const LINKER_FLAGS: &str = "-Cdebuginfo=2 -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let root = manifest.parent().expect("a member of the workspace").to_owned();
    for dir in ["pv-net-ebpf/src", "pv-net-ebpf/Cargo.toml", "pv-net-ebpf/Cargo.lock", "pv-net-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).display());
    }
    if knows_relr() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if is_linked_by_lld() {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
    if let Err(why) = build(&root.join(OBJECT), &out) {
        println!("cargo::error=the eBPF programs were not built: {why}");
        println!("cargo::error=help: `cargo xtask setup` installs what is missing");
        #[expect(clippy::disallowed_methods, reason = "it borrows nothing, and cargo shows what was printed")]
        std::process::exit(1);
    }
}

/// Whether the system's C library, which the daemon is linked with, reads packed relocations (`DT_RELR`): glibc does since
/// 2.36. They make the daemon 250 KiB smaller.
fn knows_relr() -> bool {
    let target = env::var("TARGET").unwrap_or_default();
    let is_native = target.ends_with("-linux-gnu") && env::var("HOST").is_ok_and(|host| host == target);
    let Ok(said) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    // "glibc 2.36".
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = text.trim().strip_prefix("glibc ").and_then(|v| v.split_once('.'));
    let version = version.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    is_native && version.is_some_and(|version| version >= (2, 36))
}

/// Whether rustc links with its own lld, as it does by default where it brings one. That can keep one of functions with the
/// same instructions, which makes the daemon 90 KiB smaller; GNU ld does not know the option.
fn is_linked_by_lld() -> bool {
    let target = env::var("TARGET").unwrap_or_default();
    let chosen = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"));
    if chosen || env::var_os("RUSTC_LINKER").is_some() || env::var("HOST").is_ok_and(|host| host != target) {
        return false;
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(said) = Command::new(rustc).args(["--print", "sysroot"]).output() else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
    sysroot.join("lib/rustlib").join(target).join("bin/gcc-ld/ld.lld").exists()
}

fn build(source: &Path, out: &Path) -> Result<(), String> {
    let mut command = nightly().or_else(debian).ok_or("no compiler for the BPF target was found")?;
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        // This cargo's settings for its own rustc would be wrong for the other toolchain.
        if name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUSTC_W") || name == "RUSTFLAGS" {
            command.env_remove(&key);
        }
    }
    let target_dir = out.join("ebpf");
    command
        .current_dir(source)
        .env("PATH", search_path())
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", "bpf-linker")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", LINKER_FLAGS)
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET]);
    let done = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        eprintln!("{text}");
        let line = text.lines().find(|l| l.trim_start().starts_with("error")).unwrap_or("see above").to_owned();
        return Err(format!("{line} ({})", done.status));
    }
    let object = target_dir.join(TARGET).join("release").join(OBJECT);
    let bytes = std::fs::read(&object).map_err(|e| format!("read {}: {e}", object.display()))?;
    let bytes = without_debug_sections(&bytes).map_err(|e| format!("strip {}: {e}", object.display()))?;
    let compressed = compress(&bytes).map_err(|e| format!("compress {}: {e}", object.display()))?;
    let files =
        [(OBJECT, "", bytes.as_slice()), (OBJECT, ".lzma", &compressed), (OBJECT, ".sha256", &Sha256::digest(&bytes))];
    for (name, what) in files.map(|(name, kind, what)| (format!("{name}{kind}"), what)) {
        let file = out.join(name);
        std::fs::write(&file, what).map_err(|e| format!("write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// The object in the format `.lzma`. Instructions have 8 bytes, so the place within these says more about a byte than the
/// byte before it. The daemon has the dictionary in memory while it unpacks.
fn compress(object: &[u8]) -> std::io::Result<Vec<u8>> {
    let options = LzmaOptions { dict_size: 256 << 10, lc: 0, lp: 3, pb: 3, ..LzmaOptions::with_preset(9) };
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(object.len() as u64))?;
    writer.write_all(object)?;
    writer.finish()
}

/// The object without DWARF, which is three quarters of its size. The linker has made BTF from it, which is all that
/// the kernel and `bpftool` read.
fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut file = Builder::read(object)?;
    for section in &mut file.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    file.delete_orphans();
    // LLVM puts the names of sections and symbols into one table, while the builder needs two.
    let names = file.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    file.write(&mut stripped)?;
    Ok(stripped)
}

/// rustup's nightly, if it has the sources of `core`.
fn nightly() -> Option<Command> {
    let sysroot = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).ok()?.trim());
    sysroot.join("lib/rustlib/src/rust/library/core").exists().then(|| {
        let mut command = Command::new("rustup");
        // `rustup run` selects rustc by PATH; an inherited RUSTC would override it.
        command.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
        command.env("CARGO_UNSTABLE_BUILD_STD", "core");
        command
    })
}

/// Debian's compiler, if it has `core` for the BPF target.
fn debian() -> Option<Command> {
    let (rustc, cargo) = (Path::new("/usr/bin/rustc"), Path::new("/usr/bin/cargo"));
    let sysroot = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).ok()?.trim());
    (cargo.exists() && sysroot.join("lib/rustlib").join(TARGET).exists()).then(|| {
        let mut command = Command::new(cargo);
        // aya-ebpf uses unstable features, which RUSTC_BOOTSTRAP allows in this stable compiler.
        command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
        command
    })
}

/// PATH, with the directory into which `cargo install` puts bpf-linker.
fn search_path() -> std::ffi::OsString {
    let home =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(home.map(|h| h.join("bin")));
    env::join_paths(dirs).unwrap_or(path)
}
