//! `cargo xtask setup`: finds what is missing, says what it will install, and installs it.

mod needs;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{self, find, is_root};
use crate::vm;
use needs::{LLVM, Need, PROGRAMS, SERVICES, UNPACKED, UNPACKED_AT, Unpacked, VM, VM_ARM};

/// What `cargo xtask setup` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Say what would be installed, and install nothing
    #[arg(long)]
    dry_run: bool,
    /// Only what building needs: no programs for tests
    #[arg(long)]
    build_only: bool,
}

/// What to install, in the right order.
#[derive(Default)]
struct Plan {
    apt: Vec<&'static str>,
    /// Programs that are unpacked, but not installed.
    unpacked: Vec<&'static Unpacked>,
    /// Arguments of `rustup`, one list for each call.
    rustup: Vec<Vec<&'static str>>,
    /// Arguments of `cargo install`, one list for each call.
    cargo: Vec<Vec<&'static str>>,
}

/// Installs what is missing; does nothing if nothing is.
pub fn run(args: &Args) -> Result<()> {
    carry_out(args.dry_run, || missing(args.build_only))
}

/// Installs what `missing` finds, and checks again.
fn carry_out(dry_run: bool, missing: impl Fn() -> Plan) -> Result<()> {
    let plan = missing();
    if plan.is_empty() {
        println!("setup: all is there");
        return Ok(());
    }
    println!("setup: to be installed:\n{}", plan.by_hand());
    if dry_run {
        return Ok(());
    }
    plan.install().map_err(|why| why.context(format!("setup did not finish; by hand:\n{}", plan.by_hand())))?;
    let left = missing();
    if !left.is_empty() {
        bail!("installed, and still not found:\n{}", left.by_hand());
    }
    println!("setup: done");
    Ok(())
}

/// Setup before another task; prints nothing when nothing is missing.
pub fn ensure(build_only: bool) -> Result<()> {
    if missing(build_only).is_empty() {
        return Ok(());
    }
    run(&Args { dry_run: false, build_only })
}

/// Setup for emulated machines. If it cannot install, a single error lists everything that is missing.
pub fn ensure_vm(arm: bool) -> Result<()> {
    let lists: &[&[Need]] = if arm { &[VM, VM_ARM] } else { &[VM] };
    let Some(first) = lists.iter().copied().flatten().find(|need| find(need.program).is_none()) else { return Ok(()) };
    if find("apt-get").is_none() || !is_root() {
        let Need { program, package, why } = first;
        bail!("{program}: not found: {why}\nhelp: install Debian's {package}, or what has it here");
    }
    carry_out(false, || {
        let mut plan = Plan::default();
        lists.iter().for_each(|needs| plan.add(needs));
        plan
    })
}

fn missing(build_only: bool) -> Plan {
    let mut plan = Plan::default();
    let debian = find("apt-get").is_some();
    let nightly = nightly_with_source();
    if !nightly && !debian_core() {
        if debian {
            plan.apt.extend(["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]);
        } else {
            plan.rustup.push(vec![
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]);
        }
    }
    if find("bpf-linker").is_none() {
        if debian && !nightly {
            if !Path::new(LLVM).join("llvm-config").exists() {
                plan.apt.extend(["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"]);
            }
            plan.cargo.push(vec!["bpf-linker", "--locked", "--no-default-features", "--features", "llvm-22"]);
        } else {
            plan.cargo.push(vec!["bpf-linker", "--locked"]);
        }
    }
    if build_only {
        return plan;
    }
    plan.add(PROGRAMS);
    plan.add(VM);
    // The tests that need them are skipped elsewhere.
    if debian {
        plan.unpacked.extend(UNPACKED.iter().filter(|unpacked| !is_unpacked(unpacked)));
        let needs_pip = plan.unpacked.iter().any(|unpacked| unpacked.script.contains("-m pip"));
        if needs_pip && !has_pip() {
            plan.apt.push("python3-pip");
        }
    }
    if find("cargo-deny").is_none() {
        plan.cargo.push(vec!["cargo-deny", "--locked"]);
    }
    plan
}

/// Whether a program is unpacked. Since Debian 13 those of packages are below `usr`.
fn is_unpacked(unpacked: &Unpacked) -> bool {
    let dir = Path::new(UNPACKED_AT).join(unpacked.name);
    ["", "usr"].iter().any(|below| dir.join(below).join(unpacked.program).exists())
}

fn has_pip() -> bool {
    Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|told| told.status.success())
}

impl Plan {
    /// Adds the packages of missing programs.
    fn add(&mut self, needs: &[Need]) {
        for need in needs.iter().filter(|need| find(need.program).is_none()) {
            if !self.apt.contains(&need.package) {
                self.apt.push(need.package);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.apt.is_empty() && self.unpacked.is_empty() && self.rustup.is_empty() && self.cargo.is_empty()
    }

    fn uses_apt(&self) -> bool {
        !self.apt.is_empty() || !self.unpacked.is_empty()
    }

    fn commands(&self) -> Vec<Command> {
        let mut all = Vec::new();
        if self.uses_apt() {
            let mut update = Command::new("apt-get");
            update.args(["update", "-qq"]);
            all.push(update);
        }
        if !self.apt.is_empty() {
            let mut install = Command::new("apt-get");
            install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&self.apt);
            all.push(install);
        }
        for unpacked in &self.unpacked {
            let Unpacked { name, script, .. } = unpacked;
            let dir = format!("{UNPACKED_AT}/{name}");
            let mut unpack = Command::new("sh");
            unpack.arg("-ec").arg(format!("rm -rf {dir} && mkdir -p {dir} && cd {dir} && {script}"));
            unpack.env("MIRROR", vm::mirrors().0);
            all.push(unpack);
        }
        for words in &self.rustup {
            let mut command = Command::new("rustup");
            command.args(words);
            all.push(command);
        }
        for words in &self.cargo {
            let mut command = run::cargo();
            command.args(["install", "--quiet"]).args(words);
            if words.contains(&"llvm-22") {
                // bpf-linker's build script uses this LLVM's llvm-config.
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{LLVM}:{path}"));
            }
            all.push(command);
        }
        all
    }

    fn by_hand(&self) -> String {
        let line = |command: &Command| {
            let has = |name: &str| command.get_envs().any(|(key, _)| key == name);
            let before = match (has("PATH"), has("MIRROR")) {
                (true, _) => format!("PATH={LLVM}:$PATH "),
                (false, true) => format!("MIRROR={} ", vm::mirrors().0),
                (false, false) => String::new(),
            };
            format!("    {before}{}", plain(command))
        };
        let mut lines: Vec<String> = self.commands().iter().map(line).collect();
        for need in [PROGRAMS, VM, VM_ARM].iter().copied().flatten().filter(|need| self.apt.contains(&need.package)) {
            lines.push(format!("    # {}: {}", need.package, need.why));
        }
        for Unpacked { name, why, .. } in &self.unpacked {
            lines.push(format!("    # {name}: {why}"));
        }
        lines.join("\n")
    }

    fn install(&self) -> Result<()> {
        if self.uses_apt() {
            if find("apt-get").is_none() {
                bail!("this machine has no apt-get: install the named packages its own way");
            }
            if !is_root() {
                bail!("installing packages needs root");
            }
        }
        // So that an interrupt ends this function, not the process: the answer below is removed then.
        crate::signals::catch()?;
        let _quiet = NoServices::while_installing(!self.apt.is_empty())?;
        for mut command in self.commands() {
            command.env("DEBIAN_FRONTEND", "noninteractive");
            println!("setup: {}", plain(&command));
            run::run(&mut command).context("no network, or a package that this machine's sources do not have")?;
        }
        self.disable_services()
    }

    /// Keeps the services of new packages from starting with the machine.
    fn disable_services(&self) -> Result<()> {
        if !Path::new("/run/systemd/system").is_dir() {
            return Ok(());
        }
        for (_, units) in SERVICES.iter().filter(|(package, _)| self.apt.contains(package)) {
            run::run(Command::new("systemctl").args(["disable", "--quiet"]).args(*units))?;
        }
        Ok(())
    }
}

/// The answer, which is no, with whose it is.
const NO_SERVICES: &str = "#!/bin/sh\n# of pv-net's setup, which removes it\nexit 101\n";

/// What Debian's packages ask before they start a service: the answer is no while this exists. A machine that has an
/// answer of its own keeps it.
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn while_installing(needed: bool) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = Path::new("/usr/sbin/policy-rc.d");
        // One that an interrupted setup has left is this one's own.
        let is_own = std::fs::read_to_string(path).is_ok_and(|text| text == NO_SERVICES);
        let is_others = path.symlink_metadata().is_ok() && !is_own;
        if !needed || is_others {
            return Ok(Self(None));
        }
        std::fs::write(path, NO_SERVICES).with_context(|| path.display().to_string())?;
        let made = Self(Some(path));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        Ok(made)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = self.0
            && let Err(e) = std::fs::remove_file(path)
        {
            eprintln!("warning: {}: {e}", path.display());
        }
    }
}

/// The command without the path of its program.
fn plain(command: &Command) -> String {
    let shown = run::show(command);
    match shown.split_once(' ') {
        Some((program, rest)) => format!("{} {rest}", program.rsplit('/').next().unwrap_or(program)),
        None => shown,
    }
}

/// rustup's nightly with the sources of `core`.
fn nightly_with_source() -> bool {
    sysroot(Command::new("rustup").args(["run", "nightly", "rustc"]))
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core").exists())
}

/// Debian's compiler with a ready-built `core` for the BPF target.
fn debian_core() -> bool {
    Path::new("/usr/bin/cargo").exists()
        && sysroot(&mut Command::new("/usr/bin/rustc"))
            .is_some_and(|root| Path::new(&root).join("lib/rustlib/bpfel-unknown-none").exists())
}

fn sysroot(rustc: &mut Command) -> Option<String> {
    let told = rustc.args(["--print", "sysroot"]).output().ok()?;
    told.status.success().then(|| String::from_utf8_lossy(&told.stdout).trim().to_owned())
}
