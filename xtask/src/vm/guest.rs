//! The guest's one program, and the initramfs around it.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::arch::Arch;
use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules::{self, Has};
use crate::{cross, run};

/// Builds the program statically linked, since the guest has no libraries.
pub fn build(cache: &Path, arch: Arch) -> Result<PathBuf> {
    let mut command = run::cargo();
    command.args(["build", "--quiet", "--profile", "guest", "--package", "pv-net-tests", "--bin", "guest"]);
    cross::link_statically(&mut command, cache, arch)?;
    run::run(&mut command).context("the guest's program")?;
    Ok(run::target_dir()?.join(arch.target()).join("guest/guest"))
}

/// Writes the initramfs: the program under both of its names, the kernel's modules, with those of a disk if it `has_disk`,
/// and the directories of a system. Returns what the kernel supports with these modules.
pub fn initramfs(program: &Path, kernel: &Kernel, to: &Path, has_disk: bool) -> Result<Has> {
    let modules = modules::of(&kernel.modules, &kernel.config, has_disk)?;
    let write = || -> Result<()> {
        let mut archive = Archive::new(BufWriter::new(std::fs::File::create(to)?));
        for folder in ["dev", "proc", "sys", "tmp", "run", "modules"] {
            archive.folder(folder)?;
        }
        archive.characters("dev/console", (5, 1))?;
        archive.program("init", program)?;
        archive.link("pv-net", "init")?;
        let mut order = String::new();
        for (name, data) in &modules.files {
            archive.file(&format!("modules/{name}"), data)?;
            order += &format!("{name}\n");
        }
        archive.file("modules/order", order.as_bytes())?;
        archive.finish()?;
        Ok(())
    };
    write().with_context(|| format!("initramfs {}", to.display()))?;
    Ok(modules.has)
}
